"""Probabilities of the standard normal, correctly rounded: the same doubles on every machine.

`math.erf` comes from the platform's libm and differs in the last bit between platforms; a
parameter that moves by one bit moves every draw. Decimal arithmetic is the same everywhere.
"""

from __future__ import annotations

import math
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from functools import lru_cache

_CONTEXT = Context(prec=60, Emin=MIN_EMIN, Emax=MAX_EMAX)
_TWO_PI = Decimal("6.2831853071795864769252867665590057683943387987502116419498891846156328125724")
_SERIES_BELOW = 4


@lru_cache(maxsize=1024)
def interval(low: float, high: float) -> tuple[float, float, float]:
    """(P(Z < low), P(low < Z < high), P(Z > high)) of a standard normal Z.

    Args:
        low: lower end in sigmas, -inf allowed.
        high: upper end in sigmas, inf allowed.

    >>> interval(-3.0, 3.0)
    (0.0013498980316300946, 0.9973002039367398, 0.0013498980316300946)
    """
    with localcontext(_CONTEXT):
        below, above = _upper(-low), _upper(high)
        if low > 0:
            inside = _upper(low) - above
        elif high < 0:
            inside = _upper(-high) - below
        else:
            inside = 1 - below - above
        return float(below), float(inside), float(above)


@lru_cache(maxsize=1024)
def tail_ratio(low: float, high: float) -> float:
    """P(Z > high) / P(Z > low), where both may be too small for a double.

    >>> tail_ratio(40.0, 40.01)
    0.6701192098037155
    """
    with localcontext(_CONTEXT):
        return float(_upper(high) / _upper(low))


def _upper(x: float) -> Decimal:
    """P(Z > x) to more than 40 digits."""
    if math.isinf(x):
        return Decimal(0 if x > 0 else 1)
    if x < 0:
        return 1 - _upper(-x)
    z = Decimal(x)
    density = (-z * z / 2).exp() / _TWO_PI.sqrt()
    return density * _mills(z) if x >= _SERIES_BELOW else Decimal("0.5") - density * _series(z)


def _series(z: Decimal) -> Decimal:
    """P(0 < Z < z) / density: z + z^3/3 + z^5/(3 5) + ... (Abramowitz & Stegun 26.2.11)."""
    term = total = z
    odd = 1
    while term > total.scaleb(-60):
        odd += 2
        term = term * z * z / odd
        total += term
    return total


def _mills(z: Decimal) -> Decimal:
    """P(Z > z) / density: 1/(z + 1/(z + 2/(z + ...))) (Abramowitz & Stegun 26.2.14)."""
    value = z
    for k in range(60 + int(14000 / (z * z)), 0, -1):
        value = z + k / value
    return 1 / value
