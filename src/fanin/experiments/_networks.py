"""The networks of the experiments, as PyTorch's constructors leave them."""

from __future__ import annotations

import torch
from torch import nn

from ._digits import CLASSES

PIXELS = 64


def mlp(depth: int, width: int, activation: type[nn.Module]) -> nn.Sequential:
    """``depth`` linear layers, the activation between them: 64 -> width -> ... -> width -> 10."""
    layers: list[nn.Module] = [nn.Linear(PIXELS, width), activation()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def convnet(depth: int, channels: int, halve_at: int = 10) -> nn.Sequential:
    """``depth - 1`` convolutions 3x3 with ReLU on 8x8 images, then mean over space and a linear head.

    Convolution number ``halve_at`` has stride 2: the rest sees 4x4, at a quarter of the cost.
    """
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for i in range(depth - 1):
        stride = 2 if i == halve_at else 1
        layers += [
            nn.Conv2d(channels if i else 1, channels, 3, stride=stride, padding=1),
            nn.ReLU(),
        ]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))
    net = nn.Sequential(*layers, *head)
    # channels last is the faster layout on a CPU; torch's stub does not know the argument
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
