"""Statistics of a sample, and how likely chance is to go as far: what `randomness.py` is made of.

Every p-value is two-sided: too good a fit is as suspect as a bad one. Expectations and variances are
those of the law, not estimates, so that a z-score is N(0, 1) for a sound generator.

Axes: R rows, C columns, S streams.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from scipy import integrate, special, stats

Array = npt.NDArray
Cdf = Callable[[Array], Array]

CHUNK = 2**20  # elements that are worked on in 64 bits at a time
SLAB = 2**21  # elements that are transformed at a time
FAR = 20.0  # beyond it A^2 is as likely as its first term alone, within 2 %


# p-values


def normal_p(z: float) -> float:
    """P(|Z| >= |z|) of a standard normal Z."""
    return float(2 * special.ndtr(-abs(z)))


def both(below: float, above: float) -> float:
    """The two-sided p-value of a statistic, given P(<= it) and P(>= it)."""
    return float(min(1.0, 2 * min(below, above)))


def smallest_p(p: float, count: int) -> float:
    """P(the smallest of ``count`` independent p-values <= p) (Sidak 1967)."""
    return -math.expm1(count * math.log1p(-p)) if p < 1 else 1.0


def usual_largest(count: int) -> float:
    """The median of the largest of ``count`` independent |z|."""
    return float(-special.ndtri(-math.expm1(math.log(0.5) / count) / 2))


def count_p(observed: int, trials: int, probability: float) -> float:
    """Of how often something happened."""
    law = stats.binom(trials, probability)
    return both(law.cdf(observed), law.sf(observed - 1))


def chi_square_p(total: float, count: int) -> float:
    """Of the sum of ``count`` squared z-scores."""
    law = stats.chi2(count)
    return both(law.cdf(total), law.sf(total))


def kolmogorov_p(distance: float, count: int) -> float:
    """Of the largest distance between two distribution functions (Stephens 1970)."""
    root = math.sqrt(count)
    above = float(special.kolmogorov((root + 0.12 + 0.11 / root) * distance))
    return both(1 - above, above)


def anderson_darling_p(statistic: float) -> float:
    """Of A^2 of a large sample and a law without free parameters.

    >>> round(anderson_darling_p(2.492) / 2, 4)
    0.05
    """
    if statistic > FAR:
        # A^2 is the sum of Y^2 / (j (j + 1)); its first term, Y^2 / 2, carries the tail.
        return 2 * math.sqrt(3) * math.erfc(math.sqrt(statistic))
    below = anderson_darling_cdf(statistic)
    return both(below, 1 - below)


def anderson_darling_cdf(z: float) -> float:
    """P(A^2 <= z) in the limit of large samples (Anderson & Darling 1952)."""
    total = 0.0
    for j in range(40):
        rate = ((4 * j + 1) * math.pi) ** 2 / (8 * z)
        if rate > 700:
            break

        def integrand(w: float, rate: float = rate) -> float:
            return math.exp(z / (8 * (w * w + 1)) - rate * (w * w + 1))

        end = math.sqrt(1 + 40 / rate)
        area = integrate.quad(integrand, 0, end, epsabs=0, epsrel=1e-12)[0]
        total += special.binom(-0.5, j) * (4 * j + 1) * area
    return float(math.sqrt(2 * math.pi) / z * total)


# Goodness of fit


def edges(values: Array) -> tuple[Array, Array]:
    """The interval of real numbers that round to each float, in 64 bits."""
    real = values.dtype.type
    below, above = np.nextafter(values, real(-math.inf)), np.nextafter(values, real(math.inf))
    exact = values.astype(np.float64)
    return exact / 2 + below / 2.0, exact / 2 + above / 2.0


def fit(values: Array, cdf: Cdf) -> tuple[float, float]:
    """(Kolmogorov and Smirnov's D, Anderson and Darling's A^2) against a law rounded to floats.

    D compares the distribution functions where the rounded law has its steps. A^2 takes the
    probability of a value to be that of the middle of its step.

    Args:
        values: a sample in any order; sorted in place.
        cdf: of the law before rounding.
    """
    values.sort()
    count, distance, total = values.size, 0.0, 0.0
    for start in range(0, count, CHUNK):
        low, high = map(cdf, edges(values[start : start + CHUNK]))
        rank = np.arange(start, start + low.size, dtype=np.float64)  # how many come before
        gap = max(((rank + 1) / count - high).max(), (low - rank / count).max())
        distance = max(distance, float(gap))
        middle = (low + high) / 2
        with np.errstate(divide="ignore"):  # what the law cannot draw is infinitely unlikely
            logs = (2 * rank + 1) * np.log(middle) + (2 * (count - rank) - 1) * np.log1p(-middle)
        total += float(logs.sum())
    return distance, -count - total / count


def power_sums(values: Array, highest: int) -> Array:
    """Sums of the powers 1 to ``highest``."""
    sums = np.zeros(highest)
    for x in chunks(values):
        power = x.copy()
        for k in range(highest):
            sums[k] += power.sum()
            power *= x
    return sums


def truncated_moment(k: int, cut: float) -> float:
    """E z^k of the standard normal given |z| <= cut, inf allowed; by parts, two orders at a time."""
    if k % 2:
        return 0.0
    inside = 1 - 2 * float(special.ndtr(-cut))
    density = math.exp(-cut * cut / 2) / math.sqrt(2 * math.pi)
    moment = 1.0
    for order in range(2, k + 1, 2):
        edge = 2 * cut ** (order - 1) * density / inside if density else 0.0
        moment = (order - 1) * moment - edge
    return moment


# Independence


def autocorrelation(grid: Array, lags: int) -> Array:
    """Sums of x[r, c] x[r, c + lag], columns taken round, for lags 1 to ``lags``; R x C -> lags."""
    columns = grid.shape[1]
    power = torch.zeros(columns // 2 + 1, dtype=torch.float64)
    height = max(1, SLAB // columns)
    for start in range(0, len(grid), height):
        spectrum = torch.fft.rfft(torch.from_numpy(grid[start : start + height]))
        power += (spectrum.real**2 + spectrum.imag**2).sum(0, dtype=torch.float64)
    return torch.fft.irfft(power, n=columns)[1 : lags + 1].numpy()


def correlations(streams: Array) -> Array:
    """z-scores of the correlation of each pair of rows; S x C standardised values -> S x S."""
    x = torch.from_numpy(streams)
    return (x @ x.T).double().numpy() / math.sqrt(streams.shape[1])


def pairs(scores: Array) -> Array:
    """The scores above the diagonal."""
    return scores[np.triu_indices(len(scores), 1)]


def mean_square_error(streams: int, columns: int, fourth: float) -> float:
    """Standard error of the mean square of all pairs' z-scores, which is 1 on average.

    Two pairs that share a stream are not independent: cov(z_ij^2, z_ik^2) = (m_4 - 1)/C.

    Args:
        streams: S.
        columns: C.
        fourth: m_4, the fourth moment of the standardised values.
    """
    own = 2 + (fourth**2 - 3) / columns
    shared = 2 * (streams - 2) * (fourth - 1) / columns
    return math.sqrt((own + shared) / math.comb(streams, 2))


def shifted_largest(streams: Array) -> tuple[float, int]:
    """(the largest |z| of neighbouring streams' correlation at any shift, how many there are)."""
    largest, columns = 0.0, streams.shape[1]
    last = torch.fft.rfft(torch.from_numpy(streams[0]))
    for stream in streams[1:]:
        following = torch.fft.rfft(torch.from_numpy(stream))
        sums = torch.fft.irfft(last * following.conj(), n=columns)
        largest = max(largest, float(sums.abs().max()) / math.sqrt(columns))
        last = following
    return largest, columns * (len(streams) - 1)


# Bits


def signs(words: Array) -> Array:
    """Each bit as -1 or 1; N words -> N x 32."""
    bits = np.unpackbits(
        words.astype("<u4").view(np.uint8).reshape(-1, 4), axis=1, bitorder="little"
    )
    return np.float32(1) - np.float32(2) * bits


def bit_correlations(words: Array, others: Array) -> Array:
    """z-scores of each bit of a word with each bit of its partner; N and N words -> 32 x 32."""
    sums = np.zeros((32, 32))
    for start in range(0, words.size, SLAB // 32):
        a, b = signs(words[start : start + SLAB // 32]), signs(others[start : start + SLAB // 32])
        sums += a.T @ b
    return sums / math.sqrt(words.size)


def bit_scores(words: Array) -> Array:
    """z-scores of how often each bit is clear; N words -> 32."""
    sums = np.zeros(32)
    for start in range(0, words.size, SLAB // 32):
        sums += signs(words[start : start + SLAB // 32]).sum(0, dtype=np.float64)
    return sums / math.sqrt(words.size)


def chunks(values: Array) -> Iterator[Array]:
    """Contiguous values, some at a time, in 64 bits."""
    flat = values.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        yield flat[start : start + CHUNK].astype(np.float64)
