r"""What mean-field theory says of a deep network of n units a layer: mean path and finite-width spread.

Mean (Poole et al. 2016; Schoenholz et al. 2017, eqs. 2-5):

    q' = sigma_w^2 E f(sqrt(q) z)^2 + sigma_b^2
    c' = (sigma_w^2 E f(u) f(v) + sigma_b^2) / q'

Spread: the mean of f^2 over n units has relative variance k/n about E f^2, with
k = E f^4 / (E f^2)^2 - 1. The next layer takes it over with the factor
s = d log E f^2 / d log q (for ReLU 1: nothing is forgotten, and log m2 has variance 5 L/n).
An orthogonal matrix keeps the vector's length exactly, which takes 2 s^2 off k.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .._activations import nonlinearity
from .._gains import c_map, moments, q_map
from .._quadrature import expectation

LARGEST = 1e290  # beyond it the moments overflow float64


@dataclass(frozen=True)
class Expected:
    """What to expect of the activations after one layer.

    Args:
        std: over units and inputs.
        cosine: between two inputs' activations.
        log_shift: of the log of a measured std: the mean of a log is below the log of a mean.
        log_error: standard error of the log of a measured std, at this width.
    """

    std: float
    cosine: float
    log_shift: float
    log_error: float

    def standard_errors(self, measured: float) -> float:
        """How many standard errors a measured std is above the expectation."""
        return (math.log(measured / self.std) - self.log_shift) / self.log_error


def expected_path(
    activation: str,
    sigma_w2: float,
    sigma_b2: float,
    *,
    depth: int,
    width: int,
    orthogonal: bool = False,
) -> Iterator[Expected]:
    """Layer by layer from inputs N(0, 1), independent of one another.

    Args:
        activation: a nonlinearity's name.
        sigma_w2: fan_in times the weights' variance.
        sigma_b2: the biases' variance.
        depth: layers.
        width: units a layer.
        orthogonal: the weights are orthogonal matrices times a gain.

    Yields:
        One `Expected` per layer, nan where the variance overflows float64.
    """
    q = sigma_w2 + sigma_b2
    c = sigma_b2 / q
    shift = variance = 0.0  # of log q, over networks
    for _ in range(depth):
        if q > LARGEST:
            yield Expected(math.inf, math.nan, math.nan, math.nan)
            continue
        mean, second, _ = moments(activation, q)
        k, s = _kurtosis(activation, q), _slope(activation, q)
        own = max(k - 2 * s**2, 0.0) if orthogonal else k
        shift = s * shift - own / (2 * width)
        variance = s**2 * variance + own / width
        cosine = _cosine(activation, c, q)
        # + k/width^2: a sample of width^2 elements varies by itself
        error = math.sqrt(variance + k / width**2) / 2
        yield Expected(math.sqrt(second - mean**2), cosine, shift / 2, error)
        after = q_map(activation, q, sigma_w2, sigma_b2)
        c = (sigma_w2 * second * cosine + sigma_b2) / after
        share = sigma_w2 * second / after  # the rest of q' is the biases'
        shift, variance, q = share * shift, share**2 * variance, after


def _cosine(activation: str, c: float, q: float) -> float:
    """E f(u) f(v) / E f(u)^2; an odd function keeps independent inputs independent, exactly."""
    if c == 0.0 and nonlinearity(activation).odd:
        return 0.0
    return c_map(activation, min(c, 1.0), 1.0, q=q)


def _kurtosis(activation: str, q: float) -> float:
    """E f^4 / (E f^2)^2 - 1."""
    f = nonlinearity(activation)
    scale = moments(activation, q).second
    return expectation(lambda u: np.square(np.square(f.f(u)) / scale), q, f.kinks) - 1


def _slope(activation: str, q: float, step: float = 1e-3) -> float:
    """D log E f^2 / d log q, by central difference."""
    low, high = (moments(activation, q * math.exp(sign * step)).second for sign in (-1, 1))
    return math.log(high / low) / (2 * step)
