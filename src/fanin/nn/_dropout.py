"""Dropout."""

from __future__ import annotations

from torch import nn


class Dropout(nn.Dropout):
    """torch.nn.Dropout."""
