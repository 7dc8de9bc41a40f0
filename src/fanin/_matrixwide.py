"""Distributions of whole tensors: orthogonal, identity, Dirac, and sparse columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, final

import numpy as np

from . import _normal
from ._distribution import Distribution, MatrixWide, Shape, assign, distribution
from ._errors import InvalidValueError, finite
from ._normal import Array, step_cdf


@distribution
@final
@dataclass(frozen=True, init=False, repr=False)
class Sparse(Distribution):
    """Normal, with a fixed share of every column set to 0 (Martens 2010).

    Of each column of a (rows, columns) tensor ``ceil(sparsity rows)`` elements, chosen at random,
    are 0; the others are N(0, std^2). ``std``, `cdf` and `ppf` give the limit of many rows, the
    mixture with an atom of weight ``sparsity`` at 0: std sqrt(1 - sparsity). `std_for` is exact.

    Args:
        sparsity: share of zeros, 0 <= sparsity <= 1.
        std: standard deviation of an element that is not set to 0 (kept as ``sigma``), >= 0.

    >>> round(Sparse(0.5, std=0.1).std_for((3, 8)), 6)  # 2 zeros of 3: 0.1 sqrt(1/3)
    0.057735

    Source: Martens 2010, "Deep learning via Hessian-free optimization".
    """

    sparsity: float
    sigma: float

    _argument_of: ClassVar[Mapping[str, str]] = MappingProxyType({"sigma": "std"})

    def __init__(self, sparsity: float, std: float = 0.01) -> None:
        assign(
            self,
            sparsity=finite("sparsity", sparsity, least=0.0),
            sigma=finite("std", std, least=0.0),
        )
        if self.sparsity > 1.0:
            raise InvalidValueError(f"sparsity is the share of zeros, at most 1; got {sparsity:g}.")

    @property
    def mean(self) -> float:
        """0."""
        return 0.0

    @property
    def std(self) -> float:
        """Sigma sqrt(1 - sparsity), the limit of many rows."""
        return self.sigma * math.sqrt(1.0 - self.sparsity)

    @property
    def support(self) -> tuple[float, float]:
        """The real line; 0 alone if nothing else can occur."""
        return (-math.inf, math.inf) if self.std else (0.0, 0.0)

    def zeros_of(self, rows: int) -> int:
        """How many elements of a column of ``rows`` are set to 0: ceil(sparsity rows), as in torch."""
        return math.ceil(self.sparsity * rows)

    def mean_for(self, shape: Shape) -> float:
        """0, after checking the shape."""
        _matrix(self, shape)
        return 0.0

    def std_for(self, shape: Shape) -> float:
        """Sigma sqrt(1 - ceil(sparsity rows) / rows)."""
        rows, _ = _matrix(self, shape)
        return self.sigma * math.sqrt(1.0 - self.zeros_of(rows) / rows) if rows else 0.0

    def scaled(self, factor: float) -> Sparse:
        """The same zeros, the rest times ``factor``."""
        return Sparse(self.sparsity, self.sigma * finite("factor", factor, least=0.0))

    def _cdf(self, x: Array) -> Array:
        dense = 1.0 - self.sparsity
        normal = _normal.cdf(x / self.sigma) if self.sigma else step_cdf(x, 0.0)
        return dense * normal + self.sparsity * step_cdf(x, 0.0)

    def _ppf(self, u: Array) -> Array:
        dense = 1.0 - self.sparsity
        if not self.std:
            return np.zeros_like(u)
        lower = self.sigma * _normal.ppf(np.minimum(u / dense, 0.5))
        upper = -self.sigma * _normal.ppf(np.minimum((1.0 - u) / dense, 0.5))
        return np.where(u < 0.5, lower, upper) + 0.0


@distribution
@final
@dataclass(frozen=True, repr=False)
class Orthogonal(MatrixWide):
    """``gain`` times a (semi-)orthogonal matrix, uniform over all of them (Haar).

    The tensor is flattened to (rows, cols) = (shape[0], rest). Its smaller side is orthonormal:
    the mean of squares is gain^2 / max(rows, cols), exactly, in every draw.

    Args:
        gain: every singular value of the matrix.
        reproducible: the same bits on every machine and for any number of threads, orthonormal to
            2e-8 in 32 bits. False is faster, with the same matrix to 3e-6, in bits that hold for one
            machine and number of threads only.

    >>> Orthogonal().std_for((64, 16, 2, 2))
    0.125
    >>> Orthogonal(2.0), Orthogonal(2.0, reproducible=False)
    (Orthogonal(gain=2.0), Orthogonal(gain=2.0, reproducible=False))

    Sources: Saxe, McClelland & Ganguli 2014; Mezzadri 2007 (Haar measure by QR).
    """

    gain: float = 1.0
    reproducible: bool = True

    def __post_init__(self) -> None:
        assign(self, gain=finite("gain", self.gain), reproducible=_choice(self.reproducible))

    def _arguments(self) -> dict[str, Any]:
        return _unless_reproducible(super()._arguments())

    def mean_for(self, shape: Shape) -> float:
        """0, after checking the shape."""
        _sides(self, shape, 2)
        return 0.0

    def std_for(self, shape: Shape) -> float:
        """|gain| / sqrt(max(rows, cols))."""
        rows, cols = _sides(self, shape, 2)
        return abs(self.gain) / math.sqrt(max(rows, cols)) if rows and cols else 0.0

    def scaled(self, factor: float) -> Orthogonal:
        """The gain times ``factor``."""
        return replace(self, gain=self.gain * finite("factor", factor, least=0.0))


@distribution
@final
@dataclass(frozen=True, repr=False)
class DeltaOrthogonal(MatrixWide):
    """A convolution whose centre tap is ``gain`` times a (semi-)orthogonal matrix, the rest 0.

    For a weight (out, in, *kernel) the centre is ``k // 2`` on each axis; the mean of squares is
    gain^2 / (max(out, in) prod(kernel)). With stride 1 and padding k // 2 the layer is an isometry.

    Args:
        gain: every singular value of the centre tap.
        reproducible: as of `Orthogonal`.

    >>> round(DeltaOrthogonal().std_for((64, 16, 3, 3)), 6)
    0.041667

    Source: Xiao et al. 2018, "Dynamical isometry and a mean field theory of CNNs".
    """

    gain: float = 1.0
    reproducible: bool = True

    def __post_init__(self) -> None:
        assign(self, gain=finite("gain", self.gain), reproducible=_choice(self.reproducible))

    def _arguments(self) -> dict[str, Any]:
        return _unless_reproducible(super()._arguments())

    def mean_for(self, shape: Shape) -> float:
        """0, after checking the shape."""
        _sides(self, shape, 3, 5)
        return 0.0

    def std_for(self, shape: Shape) -> float:
        """|gain| / sqrt(max(out, in) prod(kernel))."""
        rows, cols = _sides(self, shape, 3, 5)
        if not rows or not cols:
            return 0.0
        taps = math.prod(shape[2:])
        return abs(self.gain) / math.sqrt(max(rows, shape[1]) * taps)

    def scaled(self, factor: float) -> DeltaOrthogonal:
        """The gain times ``factor``."""
        return replace(self, gain=self.gain * finite("factor", factor, least=0.0))


@distribution
@final
@dataclass(frozen=True, repr=False)
class LooksLinear(MatrixWide):
    """A weight in mirror images, [[A, -A], [-A, A]], with A ``gain`` times a (semi-)orthogonal matrix.

    Between layers of such weights stand functions with f(x) - f(-x) = c x: relu, gelu, silu,
    leaky_relu. The halves of a layer then hold f(z) and f(-z), the next layer takes their
    difference, and the network is linear when it starts, c A ... c A, however deep, so that neither
    signal nor gradient nor directions are lost. Training lets the halves grow apart.

    Args:
        gain: every singular value of A.
        outputs: whether dim 0 is mirrored; it must then be even.
        inputs: whether dim 1 is mirrored; it must then be even.
        centre: A is at tap ``k // 2`` of a convolution, as in `DeltaOrthogonal`, else over all taps.
        reproducible: as of `Orthogonal`.

    >>> LooksLinear().std_for((64, 64)) == Orthogonal().std_for((32, 32))
    True

    Source: Balduzzi et al. 2017, "The shattered gradients problem", section 5 (arXiv 1702.08591).
    """

    gain: float = 1.0
    outputs: bool = True
    inputs: bool = True
    centre: bool = False
    reproducible: bool = True

    def __post_init__(self) -> None:
        names = ("outputs", "inputs", "centre", "reproducible")
        flags = {n: _choice(getattr(self, n), n) for n in names}
        assign(self, gain=finite("gain", self.gain), **flags)

    def _arguments(self) -> dict[str, Any]:
        return _unless_reproducible(super()._arguments())

    def block_of(self, shape: Shape) -> tuple[int, ...]:
        """The shape of A for a weight of ``shape``.

        Raises:
            InvalidValueError: fewer than 2 dims (``centre``: 3), or a mirrored one is odd.
        """
        _sides(self, shape, 3 if self.centre else 2, 5)
        halves = (self.outputs, self.inputs)
        if any(half and n % 2 for half, n in zip(halves, shape, strict=False)):
            raise InvalidValueError(
                f"{self} mirrors dims that must be even; got shape {tuple(shape)}."
            )
        sides = (n // 2 if half else n for half, n in zip(halves, shape, strict=False))
        return (*sides, *shape[2:])

    def mean_for(self, shape: Shape) -> float:
        """0, after checking the shape."""
        self.block_of(shape)
        return 0.0

    def std_for(self, shape: Shape) -> float:
        """That of A."""
        law = DeltaOrthogonal if self.centre else Orthogonal
        return law(self.gain).std_for(self.block_of(shape))

    def scaled(self, factor: float) -> LooksLinear:
        """The gain times ``factor``."""
        return replace(self, gain=self.gain * finite("factor", factor, least=0.0))


@distribution
@final
@dataclass(frozen=True)
class Identity(MatrixWide):
    """``gain`` on the diagonal of a 2-D tensor, 0 elsewhere.

    Args:
        gain: the diagonal's value.

    >>> Identity().mean_for((4, 8))
    0.125
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        assign(self, gain=finite("gain", self.gain))

    def mean_for(self, shape: Shape) -> float:
        """Gain min(rows, cols) / (rows cols) = gain / max(rows, cols)."""
        return self.gain * _share(self, shape)

    def std_for(self, shape: Shape) -> float:
        """|gain| sqrt(p (1 - p)), p the diagonal's share of the elements."""
        return _two_valued_std(self.gain, _share(self, shape))

    def scaled(self, factor: float) -> Identity:
        """The gain times ``factor``."""
        return Identity(self.gain * finite("factor", factor, least=0.0))


@distribution
@final
@dataclass(frozen=True)
class Dirac(MatrixWide):
    """A convolution that hands its input on: ``gain`` at the centre tap from channel i to channel i.

    For a weight (out, in, *kernel) in ``groups`` groups: min(out/groups, in) elements a group at
    the centre ``k // 2`` of each axis, as ``torch.nn.init.dirac_``; the others are 0.

    Args:
        groups: of the convolution, dividing ``out``; >= 1.
        gain: the value at the centre.

    >>> Dirac().mean_for((4, 4, 3, 3)) == 1 / 36
    True
    """

    groups: int = 1
    gain: float = 1.0

    def __post_init__(self) -> None:
        groups = finite("groups", self.groups, least=1)
        if groups != int(groups):
            raise InvalidValueError(f"groups must be a whole number; got {self.groups!r}.")
        assign(self, groups=int(groups), gain=finite("gain", self.gain))

    def _share(self, shape: Shape) -> float:
        rows, cols = _sides(self, shape, 3, 5)
        if rows % self.groups:
            raise InvalidValueError(
                f"Dirac(groups={self.groups}) needs a weight whose dim 0 is divisible by groups; got shape {tuple(shape)}."
            )
        ones = self.groups * min(rows // self.groups, shape[1])
        return ones / (rows * cols) if rows and cols else 0.0

    def mean_for(self, shape: Shape) -> float:
        """Gain times the share of the elements that are not 0."""
        return self.gain * self._share(shape)

    def std_for(self, shape: Shape) -> float:
        """|gain| sqrt(p (1 - p)), p the share of the elements that are not 0."""
        return _two_valued_std(self.gain, self._share(shape))

    def scaled(self, factor: float) -> Dirac:
        """The gain times ``factor``."""
        return Dirac(self.groups, self.gain * finite("factor", factor, least=0.0))


@distribution
@final
@dataclass(frozen=True)
class Kept(MatrixWide):
    """What the tensor holds already: nothing is written.

    For parameters whose present values are a design of their own: decay rates of a state space, an
    index table, a schedule. ``mu`` and ``sigma`` say what was found there.

    Args:
        mu: mean of the present values.
        sigma: their standard deviation.

    >>> Kept(0.5, 0.1).std_for((8,))
    0.1
    """

    mu: float = 0.0
    sigma: float = 0.0

    def __post_init__(self) -> None:
        assign(self, mu=finite("mu", self.mu), sigma=finite("sigma", self.sigma, least=0.0))

    def mean_for(self, shape: Shape) -> float:
        """The mean that was found."""
        del shape
        return self.mu

    def std_for(self, shape: Shape) -> float:
        """The standard deviation that was found."""
        del shape
        return self.sigma

    def scaled(self, factor: float) -> Kept:
        """Only by 1: what is kept is not changed."""
        if factor != 1.0:
            raise InvalidValueError(
                f"a kept parameter cannot be scaled by {factor!r}. Replace it: "
                "plan.replace(name, Normal(0.02), why)."
            )
        return self


def _choice(value: object, name: str = "reproducible") -> bool:
    if value not in (True, False):
        raise InvalidValueError(f"{name} is True or False; got {value!r}.")
    return bool(value)


def _unless_reproducible(arguments: dict[str, Any]) -> dict[str, Any]:
    """Without what is the rule, so that plans written before there was a choice stay as they are."""
    return {k: v for k, v in arguments.items() if (k, v) != ("reproducible", True)}


def _sides(law: Distribution, shape: Shape, least: int, most: int | None = None) -> tuple[int, int]:
    """(rows, cols) of the tensor flattened behind dim 0; raise if it has too few or many dims."""
    if len(shape) < least or (most is not None and len(shape) > most):
        wanted = (
            f"{least} or more"
            if most is None
            else f"{least}"
            if most == least
            else f"{least} to {most}"
        )
        raise InvalidValueError(
            f"{law} fills tensors of {wanted} dimensions; got shape {tuple(shape)}. "
            "For a vector use Constant, Normal or Uniform."
        )
    return shape[0], math.prod(shape[1:])


def _matrix(law: Distribution, shape: Shape) -> tuple[int, int]:
    return _sides(law, shape, 2, 2)


def _share(law: Distribution, shape: Shape) -> float:
    """The diagonal's share of the elements of a matrix."""
    rows, cols = _matrix(law, shape)
    return 1.0 / max(rows, cols) if rows and cols else 0.0


def _two_valued_std(value: float, share: float) -> float:
    return abs(value) * math.sqrt(share * (1.0 - share))
