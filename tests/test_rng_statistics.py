"""Is it random? Every threshold follows from the number of samples; the seeds are fixed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from fanin._fill import fill_
from fanin._rng import Elements, Stream, haar, normal
from fanin._rng.philox import words
from fanin.distributions import BoundedNormal, Normal, Orthogonal, TruncatedNormal, Uniform

LAWS = [
    Normal(1.0),
    Uniform(-1.0, 1.0),
    TruncatedNormal(1.0, 2.0),
    TruncatedNormal(1.0, 3.0),
    TruncatedNormal(1.0, 5.0),
    BoundedNormal(0.0, 1.0, -0.5, 2.0),
    BoundedNormal(0.0, 1.0, 1.0, math.inf),
    BoundedNormal(0.0, 1.0, 40.0, math.inf),
]
COUNTS = [200_000, pytest.param(10_000_000, marks=pytest.mark.slow)]
# Two-sided z of the standard normal that 1 sound test in 16 000 exceeds; about 60 are made here.
Z = 4.0
P = 1e-4


def sample(law, count, key="statistics"):
    return fill_(torch.empty(count, dtype=torch.float64), law, key=key, seed=11).numpy()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_kolmogorov_smirnov(law, count):
    assert scipy.stats.kstest(sample(law, count), law.cdf).pvalue > P


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("law", LAWS[:5], ids=str)
def test_moments_to_order_8(law, count):
    """The k-th sample moment has variance (m_2k - m_k^2) / count."""
    x, grid = sample(law, count), np.linspace(0, 1, 100_001)
    quantiles = law.ppf((grid[1:] + grid[:-1]) / 2)
    for k in range(1, 9):
        if isinstance(law, Normal):
            m, m2 = (math.prod(range(1, j, 2)) if j % 2 == 0 else 0.0 for j in (k, 2 * k))
        else:
            m, m2 = np.mean(quantiles**k), np.mean(quantiles ** (2 * k))
        z = (np.mean(x**k) - m) / math.sqrt((m2 - m * m) / count)
        assert abs(z) < Z, (k, z)


@pytest.mark.parametrize("law", LAWS[:3], ids=str)
@pytest.mark.parametrize("power", [1, 2])
def test_serial_correlation(law, power):
    """Lags up to two tiles, and one row apart: each is N(0, 1/count); 129 are looked at."""
    x = fill_(torch.empty(256, 1024, dtype=torch.float64), law, key="serial").numpy() ** power
    x = (x - x.mean()) / x.std()
    lags = [np.mean(x[:, lag:] * x[:, :-lag]) * math.sqrt(x[:, lag:].size) for lag in range(1, 129)]
    lags.append(np.mean(x[1:] * x[:-1]) * math.sqrt(x[1:].size))
    assert np.abs(lags).max() < 4.5
    # their mean square is 1 with standard error sqrt(2 / 129) = .12
    assert abs(np.mean(np.square(lags)) - 1) < 4 * math.sqrt(2 / len(lags))


@pytest.mark.parametrize("vary", ["key", "seed"])
def test_streams_are_uncorrelated(vary):
    """64 streams of names or seeds in sequence: 2016 pairs, each N(0, 1/16384)."""
    count = 16384
    x = np.stack(
        [
            fill_(
                torch.empty(count),
                Normal(1.0),
                key=f"layers.{i if vary == 'key' else 0}.weight",
                seed=i if vary == "seed" else 0,
            ).numpy()
            for i in range(64)
        ]
    ).astype(np.float64)
    z = (x @ x.T / math.sqrt(count))[np.triu_indices(64, 1)]
    assert np.abs(z).max() < 5
    assert abs(np.mean(z * z) - 1) < 4 * math.sqrt(2 / z.size)


def test_every_bit_is_fair_and_changes_with_every_bit_of_the_index():
    """Bits of 65536 words: N(1/2, 1/(4 n)) each; flipping an index bit flips half of them."""
    rows, columns = np.arange(256), np.arange(256)
    word = words(Elements(Stream("bits"), rows, columns)).reshape(-1)
    bits = (word[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    assert np.abs(bits.mean(axis=0) - 0.5).max() < Z * 0.5 / math.sqrt(word.size)
    for flip in (1, 16, 64, 128):
        other = words(Elements(Stream("bits"), rows, columns ^ flip)).reshape(-1)
        share = (
            np.bitwise_count(word ^ other).mean() / 32
            if hasattr(np, "bitwise_count")
            else np.unpackbits((word ^ other).view(np.uint8)).mean()
        )
        assert abs(share - 0.5) < Z * 0.5 / math.sqrt(32 * word.size)


@pytest.mark.slow
def test_tails():
    """Counts beyond 4, 5 and 5.5 sigmas of 2e7 draws are Poisson."""
    x = np.abs(fill_(torch.empty(20_000_000), Normal(1.0), key="tails").numpy())
    for cut in (4.0, 5.0, 5.5):
        expected = 2 * scipy.stats.norm.sf(cut) * x.size
        assert P < scipy.stats.poisson.cdf((x > cut).sum(), expected) < 1 - P


# Orthogonal matrices are Haar


def matrices(n, count, dtype=torch.float64, rows=None):
    made = [
        fill_(torch.empty(rows or n, n, dtype=dtype), Orthogonal(), key=f"haar.{i}")
        for i in range(count)
    ]
    return torch.stack(made)


def test_haar_determinants_have_both_signs():
    """det = +-1 with probability 1/2: the number of positive ones among 400 is N(200, 10^2)."""
    signs = torch.linalg.det(matrices(3, 400)).numpy()
    assert np.allclose(np.abs(signs), 1)
    assert abs((signs > 0).sum() - 200) < Z * 10


def test_haar_traces():
    """E tr Q = 0, E (tr Q)^2 = 1, E tr(Q^2) = 1, for n >= 2 (Diaconis & Shahshahani 1994)."""
    q = matrices(6, 400).numpy()
    trace, square = np.trace(q, axis1=1, axis2=2), np.trace(q @ q, axis1=1, axis2=2)
    for value, expected in ((trace, 0.0), (trace**2, 1.0), (square, 1.0)):
        assert abs(value.mean() - expected) < Z * value.std() / math.sqrt(value.size)


@pytest.mark.parametrize(("rows", "n"), [(5, 5), (8, 3), (3, 8)])
def test_haar_marginals_are_beta(rows, n):
    """The square of an entry of a Haar matrix of size m is Beta(1/2, (m - 1)/2), whichever entry."""
    q = matrices(n, 400, rows=rows).numpy()
    for i, j in ((0, 0), (rows - 1, n - 1), (0, n - 1), (rows - 1, 0)):
        m = max(rows, n)
        assert (
            scipy.stats.kstest(q[:, i, j] ** 2, scipy.stats.beta(0.5, (m - 1) / 2).cdf).pvalue > P
        )
        assert abs((q[:, i, j] > 0).sum() - 200) < Z * 10


def test_haar_unitary_eigenvalues_are_uniform_on_the_circle():
    q = matrices(4, 300, torch.complex128)
    angles = torch.angle(torch.linalg.eigvals(q)).numpy()
    assert (
        scipy.stats.kstest(angles[:, 0], scipy.stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > P
    )
    traces = np.trace(q.numpy(), axis1=1, axis2=2)
    assert abs(np.mean(np.abs(traces) ** 2) - 1) < Z * np.std(np.abs(traces) ** 2) / math.sqrt(300)


def test_haar_is_invariant_under_rotation():
    """Rows of Q R, for a fixed rotation R, have the law of rows of Q: two-sample KS."""

    def draw(key):
        stream = Stream(key)
        return haar(4, 4, lambda i, j: normal(Elements(stream, i, j), 1.0, 0.0, real=np.float64))

    rotation = draw("rotation")
    plain = np.array([draw(f"a.{i}")[1, 2] for i in range(300)])
    turned = np.array([(draw(f"b.{i}") @ rotation)[1, 2] for i in range(300)])
    assert scipy.stats.ks_2samp(plain, turned).pvalue > P
