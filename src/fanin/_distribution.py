"""The base of every distribution and initializer: values with a kind, equal, printable, JSON both ways."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike

from ._errors import InvalidValueError, closest, one_of
from ._normal import Array

Shape = Sequence[int]


class Value:
    """A frozen dataclass that is known by the name of its class and its constructor's arguments."""

    # Field -> the constructor's name for it, where they differ.
    _argument_of: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def _arguments(self) -> dict[str, Any]:
        names = (f.name for f in fields(self))  # type: ignore[arg-type]
        return {self._argument_of.get(n, n): getattr(self, n) for n in names}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the kind and the arguments; infinities as "inf" and "-inf"."""
        return {"kind": type(self).__name__, **{k: _plain(v) for k, v in self._arguments().items()}}

    @classmethod
    def _of_this_kind(cls, value: Value) -> Self:
        if not isinstance(value, cls):
            raise InvalidValueError(
                f"expected a {cls.__name__}; got the kind {type(value).__name__!r}."
            )
        return value

    def __repr__(self) -> str:
        said = ", ".join(f"{k}={v!r}" for k, v in self._arguments().items())
        return f"{type(self).__name__}({said})"

    def __str__(self) -> str:
        optional = inspect.signature(type(self)).parameters
        arguments = self._arguments().items()
        shown = {k: v for k, v in arguments if k != "mean" or v != optional[k].default}
        said = ", ".join(
            f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in shown.items()
        )
        return f"{type(self).__name__}({said})"


V = TypeVar("V", bound=Value)
D = TypeVar("D", bound="Distribution")


def _plain(value: Any) -> Any:
    if isinstance(value, Value):
        return value.to_dict()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def from_kind(what: str, kinds: Mapping[str, type[V]], data: Mapping[str, Any]) -> V:
    """The value that `Value.to_dict` described.

    Args:
        what: "distribution" or "initializer", for messages.
        kinds: name -> class.
        data: the kind and the constructor's arguments.

    Raises:
        InvalidValueError: not a mapping, an unknown kind, missing or unknown arguments, or values
            that the class refuses.
    """
    if not isinstance(data, Mapping) or "kind" not in data:
        raise InvalidValueError(
            f"{'an' if what[0] in 'aeiou' else 'a'} {what} is a mapping with a 'kind', one of {', '.join(kinds)}; got {data!r}."
        )
    kind = one_of(f"the {what}'s kind", data["kind"], kinds)
    given = {k: _parsed(v) for k, v in data.items() if k != "kind"}
    parameters = inspect.signature(kinds[kind]).parameters
    unknown = [k for k in given if k not in parameters]
    missing = [k for k, p in parameters.items() if p.default is p.empty and k not in given]
    if unknown:
        raise InvalidValueError(
            f"{kind} takes {', '.join(parameters) or 'no arguments'}; got {unknown[0]!r} too."
            f"{closest(unknown[0], parameters)}"
        )
    if missing:
        raise InvalidValueError(
            f"{kind} needs {', '.join(missing)}; got {', '.join(given) or 'nothing'}."
        )
    return kinds[kind](**given)


def _parsed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return from_kind("distribution", DISTRIBUTIONS, value)
    return float(value) if value in ("inf", "-inf") else value


def assign(owner: object, /, **attributes: object) -> None:
    """Set attributes of a frozen dataclass while it is being made."""
    vars(owner).update(attributes)


def _elementwise(name: str, law: Callable[[Array], Array], x: Any) -> Any:
    try:
        values = np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidValueError(
            f"{name} must be a number or an array of numbers; got {x!r}."
        ) from None
    with np.errstate(over="ignore"):  # far beyond a tiny std is infinitely many sigmas away
        out = law(values.ravel())
    return float(out[0]) if values.ndim == 0 else out.reshape(values.shape)


class Distribution(Value, ABC):
    """What a tensor is filled with.

    Of one element: ``mean``, ``std``, ``variance``, ``second_moment``, ``support``, `cdf` and `ppf`,
    None or an error where they depend on the tensor's shape. Of a tensor: `mean_for`, `std_for`.
    """

    if TYPE_CHECKING:  # fields of some distributions, properties of others

        @property
        def mean(self) -> float | None:
            """Expectation of one element; None if it depends on the shape."""

        @property
        def std(self) -> float | None:
            """Realised standard deviation of one element; None if it depends on the shape."""

    @property
    @abstractmethod
    def support(self) -> tuple[float, float] | None:
        """(low, high): the smallest closed interval that holds every element."""

    @abstractmethod
    def mean_for(self, shape: Shape) -> float:
        """Expectation of an element picked at random from a tensor of this shape."""

    @abstractmethod
    def std_for(self, shape: Shape) -> float:
        """Standard deviation of an element picked at random from a tensor of this shape."""

    @abstractmethod
    def scaled(self, factor: float) -> Distribution:
        """The distribution of ``factor`` times the values.

        Raises:
            InvalidValueError: ``factor`` is negative or not finite.
        """

    @abstractmethod
    def _cdf(self, x: Array) -> Array: ...

    @abstractmethod
    def _ppf(self, u: Array) -> Array: ...

    @property
    def variance(self) -> float | None:
        """std^2."""
        return None if self.std is None else self.std * self.std

    @property
    def second_moment(self) -> float | None:
        """E[x^2] = variance + mean^2."""
        return (
            None
            if self.std is None or self.mean is None
            else self.std * self.std + self.mean * self.mean
        )

    @overload
    def cdf(self, x: float) -> float: ...
    @overload
    def cdf(self, x: ArrayLike) -> Any: ...
    def cdf(self, x: Any) -> Any:
        """P(element <= x): a float for a number, a float64 array for a sequence or an array.

        Raises:
            InvalidValueError: ``x`` is not numeric, or the law depends on the tensor's shape.
        """
        return _elementwise("x", self._cdf, x)

    @overload
    def ppf(self, u: float) -> float: ...
    @overload
    def ppf(self, u: ArrayLike) -> Any: ...
    def ppf(self, u: Any) -> Any:
        """The quantile: the least x with cdf(x) >= u; the ends of the support at 0 and 1.

        Raises:
            InvalidValueError: a value outside [0, 1], or the law depends on the tensor's shape.
        """
        return _elementwise("u", lambda p: self._ppf(_probabilities(p)), u)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            InvalidValueError: another kind than this class, an unknown kind, missing or unknown
                arguments, or values that the distribution cannot have.
        """
        return cls._of_this_kind(from_kind("distribution", DISTRIBUTIONS, data))


DISTRIBUTIONS: dict[str, type[Distribution]] = {}


def distribution(cls: type[D]) -> type[D]:
    """Class decorator: `from_dict` knows this distribution by its name."""
    DISTRIBUTIONS[cls.__name__] = cls
    return cls


def _probabilities(p: Array) -> Array:
    outside = p[~((p >= 0.0) & (p <= 1.0))]
    if outside.size:
        raise InvalidValueError(f"ppf takes probabilities in [0, 1]; got {outside[0]:g}.")
    return p


class Elementwise(Distribution):
    """The same law for every element, whatever the shape."""

    if TYPE_CHECKING:

        @property
        def mean(self) -> float: ...
        @property
        def std(self) -> float: ...
        @property
        def variance(self) -> float: ...
        @property
        def second_moment(self) -> float: ...

    @property
    @abstractmethod
    def support(self) -> tuple[float, float]: ...

    def mean_for(self, shape: Shape) -> float:  # noqa: ARG002 - the same for every shape
        """``mean``, whatever the shape."""
        return self.mean

    def std_for(self, shape: Shape) -> float:  # noqa: ARG002 - the same for every shape
        """``std``, whatever the shape."""
        return self.std


class MatrixWide(Distribution):
    """A law of the whole tensor: what holds of one element follows from the shape."""

    @property
    def mean(self) -> None:
        """Depends on the shape: see `mean_for`."""
        return

    @property
    def std(self) -> None:
        """Depends on the shape: see `std_for`."""
        return

    @property
    def support(self) -> None:
        """Depends on the shape."""
        return

    def _cdf(self, x: Array) -> Array:
        del x
        raise self._shapeless("cdf")

    def _ppf(self, u: Array) -> Array:
        del u
        raise self._shapeless("ppf")

    def _shapeless(self, what: str) -> InvalidValueError:
        return InvalidValueError(
            f"{self} has no {what} of one element: its elements depend on one another and on the "
            "tensor's shape. Use std_for(shape) and mean_for(shape)."
        )
