"""Initializers: frozen values that map a weight's fans, and a gain, to a distribution.

All are cases of one law, std = gain sqrt(scale / fan): `VarianceScaling`. ``std`` is always the
realised one, also where the distribution is truncated; only the `CS336Linear` pair keeps its
assignment's convention. The gain multiplies the std in every one of them.

A weight with a fan of 0 has no elements, and gets ``Constant(0.0)``: harmless, and no division.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar, final

from ._distribution import Value, assign, from_kind
from ._errors import InvalidValueError, finite, one_of
from ._fans import MODES, Fan
from ._gains import gain as gain_of
from .distributions import (
    Constant,
    Distribution,
    Normal,
    Orthogonal,
    TruncatedNormal,
    Uniform,
)

__all__ = [
    "INITIALIZERS",
    "CS336Embedding",
    "CS336Linear",
    "Fixed",
    "Initializer",
    "KaimingNormal",
    "KaimingUniform",
    "LecunNormal",
    "LecunUniform",
    "OrthogonalInit",
    "TorchDefault",
    "VarianceScaling",
    "XavierNormal",
    "XavierUniform",
    "initializer_from_dict",
]

FAMILIES = ("normal", "uniform", "truncated_normal", "orthogonal")
_MODE_HINT = "For a linear layer that feeds a ReLU use fan_in."


class Initializer(Value, ABC):
    """A rule that turns fans into a distribution: ``initializer(fan, gain)``."""

    def __call__(self, fan: Fan, gain: float = 1.0) -> Distribution:
        """The distribution of a weight with these fans.

        Args:
            fan: effective connections of the weight; a fan of 0 gives ``Constant(0.0)``.
            gain: factor on the std, >= 0, normally that of the nonlinearity that follows.

        Raises:
            InvalidValueError: ``gain`` is negative or not finite.
        """
        return self._draw(fan, finite("gain", gain, least=0.0))

    @abstractmethod
    def _draw(self, fan: Fan, gain: float) -> Distribution: ...

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            InvalidValueError: another kind than this class, an unknown kind, missing or unknown
                arguments, or values that the initializer cannot have.
        """
        return cls._of_this_kind(initializer_from_dict(data))


I = TypeVar("I", bound=Initializer)  # noqa: E741 - one letter, as the other type variables
INITIALIZERS: dict[str, type[Initializer]] = {}


def initializer(cls: type[I]) -> type[I]:
    """Class decorator: `from_dict` knows this initializer by its name."""
    INITIALIZERS[cls.__name__] = cls
    return cls


def initializer_from_dict(data: Mapping[str, Any]) -> Initializer:
    """The initializer that `Initializer.to_dict` described.

    Raises:
        InvalidValueError: not a mapping, an unknown kind, missing or unknown arguments, or values
            that the initializer cannot have.

    >>> initializer_from_dict({"kind": "XavierNormal"})
    XavierNormal()
    """
    return from_kind("initializer", INITIALIZERS, data)


def _uniform(std: float) -> Uniform:
    bound = math.sqrt(3.0) * std
    return Uniform(-bound, bound)


def _scaled_std(scale: float, gain: float, fans: float) -> float | None:
    """Gain sqrt(scale / fans); None for an empty weight."""
    return gain * math.sqrt(scale / fans) if fans else None


def _of_std(std: float | None, law: Callable[[float], Distribution]) -> Distribution:
    return Constant(0.0) if std is None else law(std)


@initializer
@final
@dataclass(frozen=True)
class VarianceScaling(Initializer):
    """std = gain sqrt(scale / fan), realised, in each of four families.

    ``truncated_normal`` draws from a parent whose sigma makes up for the cut, as jax and keras do
    (sigma = std / .87962566 at their cut of 2); `Orthogonal` is scaled by
    std sqrt(max(fan_in, fan_out)), which is exact where those are the sides of the matrix: linear
    layers, not convolutions with more than one tap or a stride.

    Args:
        scale: the variance times the fan, at gain 1; >= 0.
        mode: fan_in, fan_out, fan_avg or fan_geo_avg.
        distribution: normal, uniform, truncated_normal or orthogonal.
        cut: where truncated_normal is cut, in sigmas; > 0.

    >>> VarianceScaling(2.0, "fan_in", "uniform")(Fan(600, 100)).std
    0.05773502691896258

    Sources: jax.nn.initializers.variance_scaling; Glorot & Bengio 2010, He et al. 2015.
    """

    scale: float = 1.0
    mode: str = "fan_in"
    distribution: str = "normal"
    cut: float = 2.0

    def __post_init__(self) -> None:
        one_of("mode", self.mode, MODES, _MODE_HINT)
        one_of("distribution", self.distribution, FAMILIES)
        assign(
            self,
            scale=finite("scale", self.scale, least=0.0),
            cut=finite("cut (in sigmas)", self.cut, above=0.0),
        )

    def _draw(self, fan: Fan, gain: float) -> Distribution:
        laws: dict[str, Callable[[float], Distribution]] = {
            "normal": Normal,
            "uniform": _uniform,
            "truncated_normal": lambda std: TruncatedNormal.with_std(std, self.cut),
            "orthogonal": lambda std: Orthogonal(std * math.sqrt(max(fan.fan_in, fan.fan_out))),
        }
        std = _scaled_std(self.scale, gain, fan.by_mode(self.mode))
        return _of_std(std, laws[self.distribution])


# Nonlinearities whose parameter is ``a``, the slope for x < 0.
SLOPED = ("leaky_relu", "prelu")


def _kaiming_std(rule: KaimingNormal | KaimingUniform, fan: Fan, gain: float) -> float | None:
    own = gain_of(rule.nonlinearity, rule.a if rule.nonlinearity in SLOPED else None)
    return _scaled_std(1.0, own * gain, fan.by_mode(rule.mode))


def _check_kaiming(rule: KaimingNormal | KaimingUniform) -> None:
    one_of("mode", rule.mode, MODES, _MODE_HINT)
    assign(rule, a=finite("a", rule.a))
    if rule.a and rule.nonlinearity not in SLOPED:
        raise InvalidValueError(
            f"a is the slope of {' or '.join(SLOPED)} for x < 0; {rule.nonlinearity!r} takes none, got a={rule.a:g}."
        )
    _kaiming_std(rule, Fan(1, 1), 1.0)


@initializer
@final
@dataclass(frozen=True)
class KaimingNormal(Initializer):
    """Normal with std = g gain / sqrt(fan), g = 1 / sqrt(E f(z)^2) for the nonlinearity f.

    g is exact for every nonlinearity (tanh 1.5925, where torch has 5/3); sqrt(2 / (1 + a^2)) for a
    leaky ReLU of slope a, so sqrt(2) as it stands.

    Args:
        mode: fan_in keeps the variance of the signal, fan_out that of the gradient.
        nonlinearity: the name of the function that follows.
        a: slope of leaky_relu or prelu for x < 0.

    >>> print(KaimingNormal()(Fan(200, 50)))
    Normal(std=0.1)

    Source: He et al. 2015, "Delving deep into rectifiers", eq. 10, 14 and 15.
    """

    mode: str = "fan_in"
    nonlinearity: str = "leaky_relu"
    a: float = 0.0

    def __post_init__(self) -> None:
        _check_kaiming(self)

    def _draw(self, fan: Fan, gain: float) -> Distribution:
        return _of_std(_kaiming_std(self, fan, gain), Normal)


@initializer
@final
@dataclass(frozen=True)
class KaimingUniform(Initializer):
    """Uniform on +-sqrt(3) std, std as in `KaimingNormal`.

    Args:
        mode: fan_in keeps the variance of the signal, fan_out that of the gradient.
        nonlinearity: the name of the function that follows.
        a: slope of leaky_relu or prelu for x < 0.

    >>> print(KaimingUniform()(Fan(600, 50)))
    Uniform(low=-0.1, high=0.1)

    Source: He et al. 2015, eq. 10, 14 and 15.
    """

    mode: str = "fan_in"
    nonlinearity: str = "leaky_relu"
    a: float = 0.0

    def __post_init__(self) -> None:
        _check_kaiming(self)

    def _draw(self, fan: Fan, gain: float) -> Distribution:
        return _of_std(_kaiming_std(self, fan, gain), _uniform)


@initializer
@final
@dataclass(frozen=True)
class XavierNormal(Initializer):
    """Normal with std = gain sqrt(2 / (fan_in + fan_out)).

    >>> XavierNormal()(Fan(150, 50))
    Normal(std=0.1, mean=0.0)

    Source: Glorot & Bengio 2010, eq. 12.
    """

    def _draw(self, fan: Fan, gain: float) -> Distribution:
        return _of_std(_scaled_std(1.0, gain, fan.by_mode("fan_avg")), Normal)


@initializer
@final
@dataclass(frozen=True)
class XavierUniform(Initializer):
    """Uniform on +-gain sqrt(6 / (fan_in + fan_out)).

    >>> round(XavierUniform()(Fan(400, 200)).high, 9)
    0.1

    Source: Glorot & Bengio 2010, eq. 16.
    """

    def _draw(self, fan: Fan, gain: float) -> Distribution:
        return _of_std(_scaled_std(1.0, gain, fan.by_mode("fan_avg")), _uniform)


@initializer
@final
@dataclass(frozen=True)
class LecunNormal(Initializer):
    """Normal with std = gain / sqrt(fan_in): the output's variance is the input's second moment.

    >>> LecunNormal()(Fan(100, 7))
    Normal(std=0.1, mean=0.0)

    Sources: LeCun et al. 1998, "Efficient backprop", section 4.6; Klambauer et al. 2017 (SELU).
    """

    def _draw(self, fan: Fan, gain: float) -> Distribution:
        return _of_std(_scaled_std(1.0, gain, fan.fan_in), Normal)


@initializer
@final
@dataclass(frozen=True)
class LecunUniform(Initializer):
    """Uniform on +-gain sqrt(3 / fan_in).

    >>> round(LecunUniform()(Fan(300, 7)).high, 9)
    0.1

    Source: LeCun et al. 1998, section 4.6.
    """

    def _draw(self, fan: Fan, gain: float) -> Distribution:
        return _of_std(_scaled_std(1.0, gain, fan.fan_in), _uniform)


@initializer
@final
@dataclass(frozen=True)
class TorchDefault(Initializer):
    """Uniform on +-gain / sqrt(fan_in): what ``nn.Linear`` and ``nn.Conv2d`` do by themselves.

    std = gain / sqrt(3 fan_in), a third of the variance that keeps a linear network's signal. torch
    writes it as ``kaiming_uniform_(a=sqrt(5))`` and takes fan_in from the shape: give it
    `fan_of(..., convention="torch")` to get the same bound for transposed convolutions.

    >>> TorchDefault()(Fan(100, 7))
    Uniform(low=-0.1, high=0.1)

    Source: ``reset_parameters`` in torch/nn/modules/linear.py.
    """

    def _draw(self, fan: Fan, gain: float) -> Distribution:
        bound = _scaled_std(1.0, gain, fan.fan_in)
        return _of_std(bound, lambda b: Uniform(-b, b))


@initializer
@final
@dataclass(frozen=True)
class CS336Linear(Initializer):
    """N(0, sigma^2) cut at 3 sigmas, sigma = gain sqrt(2 / (fan_in + fan_out)).

    sigma is the parent's: the realised std is .9866 sigma, as the assignment has it.

    >>> print(CS336Linear()(Fan(150, 50)))
    TruncatedNormal(sigma=0.1, cut=3)

    Source: Stanford CS336, assignment 1 (basics), "Parameter initialization".
    """

    def _draw(self, fan: Fan, gain: float) -> Distribution:
        sigma = _scaled_std(1.0, gain, fan.by_mode("fan_avg"))
        return _of_std(sigma, lambda s: TruncatedNormal(s, cut=3.0))


@initializer
@final
@dataclass(frozen=True)
class CS336Embedding(Initializer):
    """N(0, gain^2) cut at 3 sigmas, whatever the fans.

    >>> print(CS336Embedding()(Fan(1, 512)))
    TruncatedNormal(sigma=1, cut=3)

    Source: Stanford CS336, assignment 1 (basics), "Parameter initialization".
    """

    def _draw(self, fan: Fan, gain: float) -> Distribution:  # noqa: ARG002 - a table has no fans
        return TruncatedNormal(gain, cut=3.0)


@initializer
@final
@dataclass(frozen=True)
class OrthogonalInit(Initializer):
    """A (semi-)orthogonal matrix whose mean of squares is gain^2 / fan.

    A square matrix gets singular values ``gain``. Of a matrix that widens, fan_in keeps the
    variance of the signal: its singular values are gain sqrt(fan_out / fan_in). Exact for linear
    layers, see `VarianceScaling`.

    Args:
        mode: fan_in, fan_out, fan_avg or fan_geo_avg.

    >>> OrthogonalInit()(Fan(256, 1024), gain=1.5)
    Orthogonal(gain=3.0)

    Sources: Saxe, McClelland & Ganguli 2014; the rectangular factor as in Xiao et al. 2018.
    """

    mode: str = "fan_in"

    def __post_init__(self) -> None:
        one_of("mode", self.mode, MODES, _MODE_HINT)

    def _draw(self, fan: Fan, gain: float) -> Distribution:
        return VarianceScaling(1.0, self.mode, "orthogonal")(fan, gain)


@initializer
@final
@dataclass(frozen=True)
class Fixed(Initializer):
    """One distribution for every fan; the gain scales it.

    Args:
        distribution: what gain 1 gives.

    >>> Fixed(Normal(0.02))(Fan(768, 768), gain=0.5)
    Normal(std=0.01, mean=0.0)
    """

    distribution: Distribution

    def __post_init__(self) -> None:
        if not isinstance(self.distribution, Distribution):
            raise InvalidValueError(
                f"Fixed takes a distribution such as Normal(0.02); got {self.distribution!r}."
            )

    def _draw(self, fan: Fan, gain: float) -> Distribution:  # noqa: ARG002 - that is its meaning
        return self.distribution.scaled(gain)
