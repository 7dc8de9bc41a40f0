"""Error types, and the one way a wrong name or number is reported: given, expected, what to do."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence

SHOWN = 8  # problems that a message lists; of the rest it says how many


class FaninError(Exception):
    """Base of every error that fanin raises on purpose."""


class InvalidValueError(FaninError, ValueError):
    """An argument has a value that it cannot have."""


class PlanError(FaninError, ValueError):
    """A plan cannot be made, read, or applied to this model. Nothing was written."""


class UncoveredParameterError(PlanError):
    """No rule says how a parameter starts."""


class ModelError(FaninError, RuntimeError):
    """The model cannot be described, run or written in its present state."""


class TargetError(FaninError):
    """A command line TARGET or --input could not be turned into a model or its inputs."""


class MissingExtraError(FaninError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(
            f"{what} needs {package}, which is not installed. "
            f"Install it with: pip install 'fanin[{extra}]'"
        )


def listed(problems: Sequence[str]) -> str:
    """Each on a line of its own, `SHOWN` at most, then how many more there are.

    >>> print("wrong:" + listed(["a", "b"]))
    wrong:
      a
      b
    """
    more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "".join(f"\n  {p}" for p in problems[:SHOWN]) + more


def closest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'fan_in'?"`` for a near miss, else the empty string.

    >>> closest("fan_ni", ["fan_in", "fan_out"])
    " Did you mean 'fan_in'?"
    """
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def one_of(what: str, value: object, known: Iterable[str], hint: str = "") -> str:
    """Return ``value`` if it is one of ``known``; else raise, naming all of them and the closest.

    Raises:
        InvalidValueError: ``value`` is not in ``known``.

    >>> one_of("mode", "fan_in", ["fan_in", "fan_out"])
    'fan_in'
    """
    names = list(known)
    if isinstance(value, str) and value in names:
        return value
    near = closest(value, names) if isinstance(value, str) else ""
    raise InvalidValueError(
        f"{what} must be one of {', '.join(names)}; got {value!r}.{near}{' ' + hint if hint else ''}"
    )


def finite(
    what: str, value: float, *, above: float | None = None, least: float | None = None
) -> float:
    """Return ``value`` as a float if it is a finite number within the bound; else raise.

    Args:
        what: the argument's name, for the message.
        value: any real number.
        above: exclusive lower bound.
        least: inclusive lower bound.

    Raises:
        InvalidValueError: not a real number, not finite, or out of bounds.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    fits = math.isfinite(number) and not isinstance(value, (bool, str, bytes))
    if (
        not fits
        or (above is not None and number <= above)
        or (least is not None and number < least)
    ):
        bound = (
            f" > {above:g}" if above is not None else f" >= {least:g}" if least is not None else ""
        )
        raise InvalidValueError(f"{what} must be a finite number{bound}; got {value!r}.")
    return number
