"""What numbers to draw: frozen values with exact moments, cdf and quantiles.

An elementwise distribution (`Normal`, `Uniform`, ...) says the same of every element. A matrix-wide
one (`Orthogonal`, `Identity`, ...) speaks of a whole tensor: ask it with a shape,
``std_for(shape)``. ``sigma`` always means the std of a parent normal; ``std`` is what is realised.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, final

import numpy as np

from . import _normal
from ._distribution import (
    DISTRIBUTIONS,
    Distribution,
    Elementwise,
    assign,
    distribution,
    from_kind,
)
from ._errors import InvalidValueError, finite
from ._matrixwide import DeltaOrthogonal, Dirac, Identity, Kept, LooksLinear, Orthogonal, Sparse
from ._normal import Array, step_cdf

__all__ = [
    "DISTRIBUTIONS",
    "BoundedNormal",
    "Constant",
    "DeltaOrthogonal",
    "Dirac",
    "Distribution",
    "Identity",
    "Kept",
    "LooksLinear",
    "Normal",
    "Orthogonal",
    "Sparse",
    "TruncatedNormal",
    "Uniform",
    "distribution_from_dict",
]

_LARGEST = sys.float_info.max


def distribution_from_dict(data: Mapping[str, Any]) -> Distribution:
    """The distribution that `Distribution.to_dict` described.

    Raises:
        InvalidValueError: not a mapping, an unknown kind, missing or unknown arguments, or values
            that the distribution cannot have.

    >>> distribution_from_dict({"kind": "Uniform", "low": -0.1, "high": 0.1})
    Uniform(low=-0.1, high=0.1)
    """
    return from_kind("distribution", DISTRIBUTIONS, data)


def _ordered(low: float, high: float) -> None:
    if not low <= high:
        raise InvalidValueError(f"low must not exceed high; got low={low:g}, high={high:g}.")


@distribution
@final
@dataclass(frozen=True)
class Constant(Elementwise):
    """Every element is ``value``.

    >>> Constant(1.0).second_moment
    1.0
    """

    value: float

    def __post_init__(self) -> None:
        assign(self, value=finite("value", self.value))

    @property
    def mean(self) -> float:
        """The value."""
        return self.value

    @property
    def std(self) -> float:
        """0."""
        return 0.0

    @property
    def support(self) -> tuple[float, float]:
        """The value, twice."""
        return (self.value, self.value)

    def scaled(self, factor: float) -> Constant:
        """The constant ``factor * value``."""
        return Constant(self.value * finite("factor", factor, least=0.0))

    def _cdf(self, x: Array) -> Array:
        return step_cdf(x, self.value)

    def _ppf(self, u: Array) -> Array:
        return np.full_like(u, self.value)


@distribution
@final
@dataclass(frozen=True)
class Normal(Elementwise):
    """The normal distribution N(mean, std^2); all mass at the mean if std is 0.

    Args:
        std: standard deviation, >= 0.
        mean: expectation.

    >>> round(Normal(0.02).ppf(0.975), 9)
    0.03919928
    """

    std: float
    mean: float = 0.0

    def __post_init__(self) -> None:
        assign(self, std=finite("std", self.std, least=0.0), mean=finite("mean", self.mean))

    @property
    def support(self) -> tuple[float, float]:
        """The real line; the mean alone if std is 0."""
        return (-math.inf, math.inf) if self.std else (self.mean, self.mean)

    def scaled(self, factor: float) -> Normal:
        """N(factor mean, (factor std)^2)."""
        finite("factor", factor, least=0.0)
        return Normal(self.std * factor, self.mean * factor)

    def _cdf(self, x: Array) -> Array:
        return _normal.cdf((x - self.mean) / self.std) if self.std else step_cdf(x, self.mean)

    def _ppf(self, u: Array) -> Array:
        return self.mean + self.std * _normal.ppf(u) if self.std else np.full_like(u, self.mean)


@distribution
@final
@dataclass(frozen=True)
class Uniform(Elementwise):
    """Uniform on [low, high]: variance (high - low)^2 / 12.

    Args:
        low: lower bound.
        high: upper bound, >= low.

    >>> round(Uniform(-0.5, 0.5).std, 4)
    0.2887
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        assign(self, low=finite("low", self.low), high=finite("high", self.high))
        _ordered(self.low, self.high)
        finite("high - low", self.high - self.low)

    @property
    def mean(self) -> float:
        """(low + high) / 2."""
        return self.low / 2.0 + self.high / 2.0

    @property
    def std(self) -> float:
        """(high - low) / sqrt(12)."""
        return (self.high - self.low) / math.sqrt(12.0)

    @property
    def support(self) -> tuple[float, float]:
        """(low, high)."""
        return (self.low, self.high)

    def scaled(self, factor: float) -> Uniform:
        """Uniform on [factor low, factor high]."""
        finite("factor", factor, least=0.0)
        return Uniform(self.low * factor, self.high * factor)

    def _cdf(self, x: Array) -> Array:
        if self.low == self.high:
            return step_cdf(x, self.low)
        return np.clip((x - self.low) / (self.high - self.low), 0.0, 1.0)

    def _ppf(self, u: Array) -> Array:
        width = self.high - self.low
        return np.where(u < 0.5, self.low + u * width, self.high - (1.0 - u) * width)


@distribution
@final
@dataclass(frozen=True)
class TruncatedNormal(Elementwise):
    """N(mean, sigma^2) given that it lies within ``cut`` sigmas of the mean.

    std = sigma sqrt(1 - 2 cut phi(cut) / (2 Phi(cut) - 1)), less than sigma: .8796 sigma at cut 2,
    .9866 sigma at cut 3. To ask for the realised std, use `with_std`.

    Args:
        sigma: std of the parent normal, >= 0.
        cut: distance of the bounds from the mean in sigmas, > 0.
        mean: expectation.

    >>> round(TruncatedNormal(0.02, cut=2).std, 6)
    0.017593
    """

    sigma: float
    cut: float = 3.0
    mean: float = 0.0

    def __post_init__(self) -> None:
        assign(
            self,
            sigma=finite("sigma", self.sigma, least=0.0),
            cut=finite("cut (in sigmas)", self.cut, above=0.0),
            mean=finite("mean", self.mean),
        )

    @classmethod
    def with_std(cls, std: float, cut: float = 3.0, mean: float = 0.0) -> TruncatedNormal:
        """The truncated normal whose realised std is ``std``: its sigma is larger.

        Args:
            std: realised standard deviation, >= 0.
            cut: distance of the bounds from the mean in sigmas, > 0.
            mean: expectation.

        >>> TruncatedNormal.with_std(0.02, cut=2).std
        0.02
        """
        finite("std", std, least=0.0)
        return cls(std / cls(1.0, cut).std, cut, mean)

    @property
    def std(self) -> float:
        """The realised std, after the cut."""
        return self.sigma * _normal.window_moments(-self.cut, self.cut)[1]

    @property
    def support(self) -> tuple[float, float]:
        """Mean -+ cut sigma."""
        return (self.mean - self.cut * self.sigma, self.mean + self.cut * self.sigma)

    def scaled(self, factor: float) -> TruncatedNormal:
        """Sigma and mean times ``factor``, the cut as it is."""
        finite("factor", factor, least=0.0)
        return TruncatedNormal(self.sigma * factor, self.cut, self.mean * factor)

    def _cdf(self, x: Array) -> Array:
        if not self.sigma:
            return step_cdf(x, self.mean)
        low, high = self.support
        z = np.clip((x - self.mean) / self.sigma, -self.cut, self.cut)
        inside = _normal.window_cdf(-self.cut, self.cut, z, z + self.cut, self.cut - z)
        return np.where(x <= low, 0.0, np.where(x >= high, 1.0, inside))

    def _ppf(self, u: Array) -> Array:
        return self.mean + self.sigma * _normal.window_ppf(-self.cut, self.cut, u)


@distribution
@final
@dataclass(frozen=True, init=False, repr=False)
class BoundedNormal(Elementwise):
    """N(mean, std^2) given that it lies in [low, high]: what ``torch.nn.init.trunc_normal_`` means.

    The arguments describe the parent and are kept as ``mu`` and ``sigma``; the properties ``mean``
    and ``std`` are the realised ones. With a = (low - mu)/sigma, b = (high - mu)/sigma, Z = Phi(b) -
    Phi(a): mean = mu + sigma (phi(a) - phi(b))/Z, variance = sigma^2 (1 + (a phi(a) - b phi(b))/Z -
    ((phi(a) - phi(b))/Z)^2), computed without cancellation however far out the window lies.
    If std is 0 all mass is at the point of [low, high] that is nearest to the mean.

    Args:
        mean: expectation of the parent.
        std: standard deviation of the parent, >= 0.
        low: lower bound, -inf allowed.
        high: upper bound, >= low, inf allowed.

    >>> round(BoundedNormal(0.0, 1.0, 20.0, float("inf")).mean, 6)
    20.049753

    Source: Johnson, Kotz & Balakrishnan 1994, vol. 1, section 13.10.1.
    """

    mu: float
    sigma: float
    low: float
    high: float

    _argument_of: ClassVar[Mapping[str, str]] = MappingProxyType({"mu": "mean", "sigma": "std"})

    def __init__(self, mean: float, std: float, low: float, high: float) -> None:
        assign(
            self,
            mu=finite("mean", mean),
            sigma=finite("std", std, least=0.0),
            low=-math.inf if low == -math.inf else finite("low", low),
            high=math.inf if high == math.inf else finite("high", high),
        )
        _ordered(self.low, self.high)

    @property
    def _anchor(self) -> float:
        """The point of the support nearest to the parent's mean."""
        return min(max(self.mu, self.low), self.high)

    @property
    def _window(self) -> tuple[float, float] | None:
        """The bounds in sigmas; None where all mass is at the anchor."""
        if not self.sigma:
            return None
        low, high = (self.low - self.mu) / self.sigma, (self.high - self.mu) / self.sigma
        return (low, high) if low < high else None

    @property
    def mean(self) -> float:
        """The realised mean."""
        window = self._window
        return self._anchor + (self.sigma * _normal.window_moments(*window)[0] if window else 0.0)

    @property
    def std(self) -> float:
        """The realised std."""
        window = self._window
        return self.sigma * _normal.window_moments(*window)[1] if window else 0.0

    @property
    def support(self) -> tuple[float, float]:
        """(low, high); the one point that has mass if std is 0."""
        return (self.low, self.high) if self._window else (self._anchor, self._anchor)

    def scaled(self, factor: float) -> BoundedNormal:
        """Mean, std and finite bounds times ``factor``."""
        finite("factor", factor, least=0.0)
        low, high = (b * factor if math.isfinite(b) else b for b in (self.low, self.high))
        return BoundedNormal(self.mu * factor, self.sigma * factor, low, high)

    def _cdf(self, x: Array) -> Array:
        window = self._window
        if window is None:
            return step_cdf(x, self._anchor)
        inside = np.clip(x, max(self.low, -_LARGEST), min(self.high, _LARGEST))
        z, below, above = (
            y / self.sigma for y in (inside - self.mu, inside - self.low, self.high - inside)
        )
        return np.where(x >= self.high, 1.0, _normal.window_cdf(*window, z, below, above))

    def _ppf(self, u: Array) -> Array:
        window = self._window
        if window is None:
            return np.full_like(u, self._anchor)
        return np.clip(
            self._anchor + self.sigma * _normal.window_ppf(*window, u), self.low, self.high
        )
