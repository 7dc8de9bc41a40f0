"""benchmarks/randomness.py at a small size: it passes the engine, finds bad ones, and counts rightly."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from fanin import fill_
from fanin._rng import Stream

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import _generators as generators
import _goodness as g
import randomness


def ignore(_fraction, _text):
    pass


def beyond_threshold(tests):
    return [t.what for t in tests if t.p < randomness.ALPHA / len(tests)]


# The whole


def test_the_engine_passes():
    """A million values of each law; one sound generator in a thousand fails, the seed is fixed."""
    tests = randomness.battery(generators.Fanin(), 10**6, 0, np.float32, ignore)
    assert beyond_threshold(tests) == []
    assert len(tests) > 80
    assert all(0 <= t.p <= 1 for t in tests)


def test_64_bits_pass():
    law = randomness.LAWS[0]
    sample = randomness.survey(law, generators.Fanin(), 2**18, 0, np.float64, ignore)
    tests = [*randomness.goodness_of_fit(sample), *randomness.moments(sample)]
    assert beyond_threshold([*tests, *randomness.extremes(sample, np.float64)]) == []


def of_one_law(control):
    sample = randomness.survey(randomness.LAWS[0], control, 2**18, 0, np.float32, ignore)
    return [*randomness.goodness_of_fit(sample), *randomness.moments(sample)]


def of_streams(control):
    return randomness.between_streams(control, 2**18, 0, np.float32, ignore)


def of_bits(control):
    return randomness.bits(control, 2**18, 0, ignore)


FOUND_BY = {
    "lcg": of_bits,
    "philox-2": of_bits,
    "philox-6": of_bits,
    "nameless": of_streams,
    "coarse": of_bits,
    "wide": of_one_law,
}


def test_every_control_is_tried():
    assert set(FOUND_BY) == set(generators.CONTROLS)


@pytest.mark.parametrize("name", FOUND_BY)
def test_a_bad_generator_fails(name):
    assert beyond_threshold(list(FOUND_BY[name](generators.CONTROLS[name])))


@pytest.mark.parametrize("find", [of_bits, of_streams])
def test_what_finds_bad_generators_passes_the_same_harness_without_a_fault(find):
    sound = generators.Control("sound", "none", generators.philox_of(10))
    assert beyond_threshold(list(find(sound))) == []


def test_exit_status_and_last_line(capsys):
    assert randomness.main(["--n", "262144", "--control", "coarse"]) == 1
    assert "failed: " in capsys.readouterr().out.splitlines()[-1]


def test_too_few_values_are_refused(capsys):
    with pytest.raises(SystemExit):
        randomness.main(["--n", "1000"])
    assert "at least 262144" in capsys.readouterr().err


def test_reachable():
    """sqrt(-2 ln u) at the least u: (1/2) / 2^31 and (1/2) / 2^63."""
    short, long = randomness.reachable()
    assert short == pytest.approx(math.sqrt(2 * math.log(2**32)), rel=1e-6)
    assert long == pytest.approx(math.sqrt(2 * math.log(2**64)), rel=1e-12)


# Controls differ from the engine in their fault alone


@pytest.mark.parametrize("law", randomness.LAWS, ids=lambda law: law.name)
def test_transforms_of_controls_are_the_engine_s(law):
    stream = Stream("layer.weight", 3)
    sound = generators.Control("sound", "none", generators.whole)
    expected = fill_(torch.empty(3, 256), law.distribution, key=stream.key, seed=stream.seed)
    values = sound.values(law.distribution, stream, (3, 256), np.float32)
    assert np.array_equal(values.view(np.int32), expected.numpy().view(np.int32))


def test_philox_with_ten_rounds_is_the_engine_s():
    stream, rows, columns = Stream("w"), np.arange(5), np.array([0, 15, 16, 63, 64, 1000, 2**33])
    expected = generators.whole(stream, rows, columns)
    assert np.array_equal(generators.philox_of(10)(stream, rows, columns), expected)


def test_congruential_steps():
    stream, (factor, summand) = Stream("w"), generators.LCG
    x, steps = stream.words[0], []
    for _ in range(100):
        steps.append(x)
        x = (factor * x + summand) % 2**32
    drawn = generators.congruential(stream, np.array([0]), np.arange(100))
    assert drawn[0].tolist() == steps


# Statistics against independent ones


@pytest.fixture
def sample():
    return np.random.default_rng(0).standard_normal(5000)


def test_fit(sample):
    """Of 64-bit values, where rounding is negligible: scipy's D and the definition of A^2."""
    law = scipy.stats.norm(0.05, 1.02)
    u, n = law.cdf(np.sort(sample)), sample.size
    i = np.arange(1, n + 1)
    squared = -n - np.sum((2 * i - 1) * (np.log(u) + np.log(1 - u[::-1]))) / n
    distance, statistic = g.fit(sample.copy(), law.cdf)
    assert distance == pytest.approx(scipy.stats.kstest(sample, law.cdf).statistic, rel=1e-9)
    assert statistic == pytest.approx(squared, rel=1e-9)


def test_fit_in_chunks(sample, monkeypatch):
    whole = g.fit(sample.copy(), scipy.stats.norm.cdf)
    monkeypatch.setattr(g, "CHUNK", 777)
    assert g.fit(sample.copy(), scipy.stats.norm.cdf) == pytest.approx(whole, rel=1e-9)


def test_fit_takes_rounding_into_account():
    """Between 1024 and 1124 float16 has whole numbers only: steps of 1 %, sqrt(n) D of 2.5."""
    values = np.random.default_rng(0).uniform(1024, 1124, 2**18).astype(np.float16)
    law = scipy.stats.uniform(1024, 100)
    assert scipy.stats.kstest(values.astype(float), law.cdf).pvalue < 1e-5
    assert g.kolmogorov_p(g.fit(values, law.cdf)[0], values.size) > 1e-3
    below, above = g.edges(np.array([1.0, 1.5], np.float16))
    assert (above - below).tolist() == [0.75 * 2**-10, 2**-10]


@pytest.mark.parametrize("z", [0.2, 0.7749, 2.4924, 6.0, 15.0])
def test_anderson_darling_law(z):
    """A^2 is the sum of Y_j^2 / (j (j + 1)): Imhof 1961, eq. 3.2; terms past 2000 by their mean."""
    j = np.arange(1, 2001)
    weights, rest = 1 / (j * (j + 1)), 1 / 2001

    def integrand(u):
        angle = (np.arctan(weights * u).sum() + rest * u - z * u) / 2
        return math.sin(angle) / (u * math.exp(np.log1p((weights * u) ** 2).sum() / 4))

    area, _ = scipy.integrate.quad(integrand, 0, 500, limit=1000, epsabs=1e-11)
    assert g.anderson_darling_cdf(z) == pytest.approx(0.5 - area / math.pi, abs=1e-8)


def test_anderson_darling_tail_joins():
    assert g.anderson_darling_p(g.FAR + 1e-9) == pytest.approx(
        g.anderson_darling_p(g.FAR - 1e-9), rel=0.02
    )


def test_kolmogorov_p():
    """scipy's exact law of a sample's distance, which 1/sqrt(n) = 0.3 % may part from the limit."""
    for distance in (0.0015, 0.003, 0.006):
        above = scipy.stats.kstwo(10**5).sf(distance)
        expected = 2 * min(above, 1 - above)
        assert g.kolmogorov_p(distance, 10**5) == pytest.approx(expected, rel=0.01)


def test_moments_of_truncated_normals():
    for cut in (1.5, 3.0, math.inf):
        law = scipy.stats.truncnorm(-cut, cut)
        for k in range(1, 17):
            expected = law.expect(lambda x, k=k: x**k, epsabs=0, epsrel=1e-10) if k % 2 == 0 else 0
            assert g.truncated_moment(k, cut) == pytest.approx(expected, rel=1e-7)


def test_power_sums(sample):
    sums = g.power_sums(sample, 4)
    assert sums == pytest.approx([np.sum(sample**k) for k in (1, 2, 3, 4)])


def test_autocorrelation(sample, monkeypatch):
    grid = sample[:4096].reshape(16, 256)
    direct = [np.sum(grid * np.roll(grid, -lag, axis=1)) for lag in range(1, 9)]
    assert g.autocorrelation(grid, 8) == pytest.approx(direct)
    monkeypatch.setattr(g, "SLAB", 1024)
    assert g.autocorrelation(grid, 8) == pytest.approx(direct)


def test_correlations_and_shifts(sample):
    streams = sample[:4800].reshape(10, 480)
    scores = g.correlations(streams)
    assert scores[2, 5] == pytest.approx(streams[2] @ streams[5] / math.sqrt(480))
    assert g.pairs(scores).size == 45
    every = [
        abs(a @ np.roll(b, k))
        for a, b in zip(streams, streams[1:], strict=False)
        for k in range(480)
    ]
    largest, count = g.shifted_largest(streams)
    assert largest == pytest.approx(max(every) / math.sqrt(480))
    assert count == len(every)


def test_mean_square_error():
    """400 simulated families of pairs; the std of their mean square is known to 1/sqrt(800) = 4 %."""
    generator = np.random.default_rng(1)
    for draw, fourth in ((generator.standard_normal, 3.0), (generator.random, 1.8)):
        found = []
        for _ in range(400):
            x = draw((24, 64))
            x = x if fourth == 3 else (x - 0.5) * math.sqrt(12)
            found.append(np.mean(g.pairs(g.correlations(x)) ** 2))
        assert np.std(found) == pytest.approx(g.mean_square_error(24, 64, fourth), rel=0.16)


def test_bits():
    words = np.random.default_rng(2).integers(0, 2**32, 1000, dtype=np.uint32)
    others = np.roll(words, 1)
    signs = 1.0 - 2.0 * ((words[:, None] >> np.arange(32, dtype=np.uint32)) & 1)
    rolled = np.roll(signs, 1, axis=0)
    assert g.bit_scores(words) == pytest.approx(signs.sum(0) / math.sqrt(1000))
    assert g.bit_correlations(words, others) == pytest.approx(signs.T @ rolled / math.sqrt(1000))


def test_p_values():
    assert g.normal_p(-1.959964) == pytest.approx(0.05, abs=1e-6)
    assert g.smallest_p(0.01, 3) == pytest.approx(1 - 0.99**3)
    assert g.smallest_p(1e-30, 1000) == pytest.approx(1e-27)
    assert g.chi_square_p(scipy.stats.chi2(9).ppf(0.98), 9) == pytest.approx(0.04)
    assert g.count_p(0, 1000, 1e-9) == 1.0
    assert g.count_p(10, 1000, 1e-4) < 1e-10
    largest = g.usual_largest(1000)
    assert (1 - g.normal_p(largest)) ** 1000 == pytest.approx(0.5)
