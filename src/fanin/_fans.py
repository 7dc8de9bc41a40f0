"""Fans: how many connections a unit sums (fan_in) and feeds (fan_out).

Sources: LeCun et al. 1998 (fan-in), Glorot & Bengio 2010 (both), He et al. 2015 section 2.2
(convolutions: the kernel's taps count). Exact forms for stride, groups and transposed
convolutions follow from counting the terms of the sum that the layer really computes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import prod
from typing import Any

from ._errors import InvalidValueError, finite, one_of

MODES = ("fan_in", "fan_out", "fan_avg", "fan_geo_avg")
CONVENTIONS = ("exact", "torch")


@dataclass(frozen=True)
class Fan:
    """Effective connections of one weight; real numbers, because stride divides them.

    Args:
        fan_in: terms summed into one output unit, > 0 (0 for an empty weight).
        fan_out: output units that one input unit reaches, > 0 (0 for an empty weight).

    >>> Fan(512, 2048).by_mode("fan_avg")
    1280.0
    """

    fan_in: float
    fan_out: float

    def __post_init__(self) -> None:
        for name in ("fan_in", "fan_out"):
            object.__setattr__(self, name, finite(name, getattr(self, name), least=0.0))

    def by_mode(self, mode: str) -> float:
        """fan_in, fan_out, their mean (Glorot & Bengio 2010 eq. 12) or their geometric mean.

        Raises:
            InvalidValueError: an unknown mode.
        """
        one_of("mode", mode, MODES, "For a linear layer that feeds a ReLU use fan_in.")
        if mode == "fan_avg":
            return (self.fan_in + self.fan_out) / 2
        if mode == "fan_geo_avg":
            return math.sqrt(self.fan_in * self.fan_out)
        return self.fan_in if mode == "fan_in" else self.fan_out

    def to_dict(self) -> dict[str, float]:
        """Plain data, for JSON."""
        return {"fan_in": self.fan_in, "fan_out": self.fan_out}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Fan:
        """The inverse of `to_dict`."""
        return cls(data["fan_in"], data["fan_out"])


@dataclass(frozen=True)
class Layout:
    """What the axes of a weight mean: enough to know its fans.

    Args:
        inputs: channels (features) that enter the layer, all groups together.
        outputs: channels that leave it, all groups together.
        kernel: taps per spatial axis; empty for a dense layer.
        stride: step per spatial axis; empty means 1.
        groups: the channels are split into this many independent groups.
        transposed: a transposed convolution, whose sums run over the output grid.
    """

    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False


def exact_fan(layout: Layout) -> Fan:
    r"""The fans of what the layer computes, away from borders.

    A convolution sums ``inputs/groups * prod(kernel)`` terms into an output; an input reaches
    ``outputs/groups * prod(kernel)`` outputs, of which stride keeps one in ``prod(stride)``.
    A transposed convolution is the mirror image: stride thins the sum, not the reach.

    >>> exact_fan(Layout(512, 8, kernel=(4, 4), stride=(2, 2), transposed=True))
    Fan(fan_in=2048.0, fan_out=128.0)
    """
    taps, step = prod(layout.kernel), prod(layout.stride)
    fan_in = layout.inputs / layout.groups * taps
    fan_out = layout.outputs / layout.groups * taps
    return Fan(fan_in / step, fan_out) if layout.transposed else Fan(fan_in, fan_out / step)


def shape_fan(shape: tuple[int, ...]) -> Fan:
    """What ``torch.nn.init`` computes: dim 1 is the input, dim 0 the output, the rest are taps.

    Raises:
        InvalidValueError: fewer than two dimensions.

    >>> shape_fan((64, 1, 3, 3))
    Fan(fan_in=9.0, fan_out=576.0)
    """
    if len(shape) < 2:
        raise InvalidValueError(
            f"fans need a weight of at least 2 dimensions; got shape {tuple(shape)}. "
            "A bias or a norm's scale has no fan: give it a constant."
        )
    taps = prod(shape[2:])
    return Fan(shape[1] * taps, shape[0] * taps)
