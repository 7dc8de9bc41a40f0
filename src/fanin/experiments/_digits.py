"""scikit-learn's handwritten digits: 1,797 images of 8 x 8, inside its wheel, so no download."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._errors import MissingExtraError

CLASSES = 10
TRAIN = 1400
CHANCE = math.log(CLASSES)  # cross-entropy of a network that says nothing
SPLIT_SEED = 0


@dataclass(frozen=True)
class Digits:
    """Pixels standardised by the training images' mean and std; pixels that never vary are 0.

    Args:
        x_train: (1400, 64) float32.
        y_train: (1400,) int64, 0 to 9.
        x_test: (397, 64) float32.
        y_test: (397,) int64.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def load_digits() -> Digits:
    """The digits, split the same way every time.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise MissingExtraError(
            "this experiment's data set, the digits,", "scikit-learn", "data"
        ) from error
    bunch = datasets.load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(SPLIT_SEED))
    x = torch.from_numpy(bunch.data).float()[order]
    y = torch.from_numpy(bunch.target).long()[order]
    std, mean = torch.std_mean(x[:TRAIN], dim=0)
    x = torch.where(std > 0, (x - mean) / std, 0.0)
    return Digits(x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:])
