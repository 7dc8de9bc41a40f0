"""How random `fanin-1` is: a battery over 1e8 normal, uniform and truncated normal values.

For each law: Kolmogorov-Smirnov and Anderson-Darling against the exact distribution function in
blocks of 2^24 values, moments 1 to 8, tail counts, the largest value, correlation along rows at
lags 1 to 256, between rows, and between the partners of Box-Muller. Then streams of different names
and seeds against each other, at every shift too; and the bits of raw words. Each line of the table
is one test with a two-sided p-value; the battery fails if any is below 0.001 over their number, so
that at most one sound generator in a thousand fails. Exit status: 0 passed, 1 failed.

Run: python benchmarks/randomness.py [--n 1e8] [--seed 0] [--float64] [--control NAME]
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import _goodness as g
import numpy as np
import torch
from _generators import CONTROLS, Fanin, Generator
from _goodness import Array
from scipy import special

from fanin._progress import progress_bar
from fanin._rng import Stream, double, single
from fanin._tables import number, table
from fanin.distributions import Distribution, Normal, TruncatedNormal, Uniform

ROWS, COLUMNS = 256, 65536  # of a block
LEAST_COLUMNS, MOST_COLUMNS = 1024, 131072  # of a stream that is compared with others
LAGS, APART, STREAMS, ORDERS = 256, 16, 256, 8
WORDS = 2**22  # whose bits are examined
FLIPS = 65536  # words that are drawn again for each bit of the index
ALPHA = 1e-3  # the share of sound generators that fail

LITERATURE = """\
TestU01 and PractRand were not run here. What others report of Philox4x32-10, in counter order:
- Its authors: the generators of Random123 "have passed all of the rigorous SmallCrush, Crush and
  BigCrush tests" of TestU01. github.com/DEShawResearch/random123, docs/main.dox (the paper: Salmon,
  Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11).
- OpenRAND, 100 streams interleaved: PractRand 0.95 finds no anomaly in 2^42 bytes; of BigCrush's 160
  p-values one lies outside [.001, .999], at .9994. Past that its streams, whose counter has 32 bits,
  repeat themselves and fail; one alone passes 2^37 bytes. github.com/msu-sparta/OpenRAND,
  docs/statistical_results.md, results/practrandm_philox.txt, results/practrand_philox.txt.
- cpprefjp: no statistical flaw is known from 7 rounds on; ten are the usual margin.
  cpprefjp.github.io/reference/random/philox4x32.html.
- RandomNumbers.jl saw "a slight failure" in BigCrush of two relatives, Philox2x64 and ARS1x128; it
  names none for Philox4x32. juliarandom.github.io/RandomNumbers.jl/stable/man/random123."""


@dataclass(frozen=True)
class Test:
    """One line of the table."""

    subject: str
    what: str
    observed: str
    expected: str
    p: float
    z: float | None = None


@dataclass(frozen=True)
class Law:
    """A distribution symmetric about 0, with scipy's function for it."""

    name: str
    distribution: Distribution
    cdf: g.Cdf
    moment: Callable[[int], float]
    tails: tuple[float, ...]


def truncated_cdf(x: Array) -> Array:
    tail = special.ndtr(-3.0)
    return np.clip((special.ndtr(x) - tail) / (1 - 2 * tail), 0, 1)


LAWS = (
    Law(
        "normal", Normal(1.0), special.ndtr, partial(g.truncated_moment, cut=math.inf), (4, 5, 5.5)
    ),
    Law(
        "uniform",
        Uniform(-1, 1),
        lambda x: np.clip((x + 1) / 2, 0, 1),
        lambda k: 0.0 if k % 2 else 1 / (k + 1),
        (0.999, 0.99999, 0.999999),
    ),
    Law(
        "truncated 3",
        TruncatedNormal(1.0, 3.0),
        truncated_cdf,
        partial(g.truncated_moment, cut=3.0),
        (2, 2.9, 2.99),
    ),
)


# One law


@dataclass
class Sample:
    """What is kept of the values of one law while blocks of them come and go.

    Where there are two of a thing, the second is that of the squares.
    """

    law: Law
    count: int = 0
    fits: list[tuple[float, float]] = field(default_factory=list)  # D and A^2, block by block
    powers: Array = field(default_factory=lambda: np.zeros(ORDERS))
    tails: Array = field(default_factory=lambda: np.zeros(3, np.int64))
    largest: float = 0.0
    lags: Array = field(default_factory=lambda: np.zeros((2, LAGS)))
    partners: Array = field(default_factory=lambda: np.zeros(2))
    rows: list[Array] = field(default_factory=list)  # z-scores of pairs of rows, block by block

    def add(self, x: Array) -> None:
        """Take in a block; R x C, sorted at the end."""
        self.count += x.size
        self.powers += g.power_sums(x, ORDERS)
        self.tails += [np.count_nonzero(np.abs(x) > x.dtype.type(t)) for t in self.law.tails]
        self.largest = max(self.largest, float(np.abs(x).max()))
        for i, standard in enumerate(self._standard(x)):
            self.lags[i] += g.autocorrelation(standard, LAGS)
            pairs = standard.reshape(-1, 2, 16)
            self.partners[i] += (pairs[:, 0] * pairs[:, 1]).sum(dtype=np.float64)
            if i == 0:
                self.rows.append(g.correlations(standard))
        self.fits.append(g.fit(x.reshape(-1), self.law.cdf))

    def _standard(self, x: Array) -> Iterator[Array]:
        """The values, then their squares, with mean 0 and variance 1 under the law."""
        real, m2, m4 = x.dtype.type, self.law.moment(2), self.law.moment(4)
        yield x / real(math.sqrt(m2))
        yield (x * x - real(m2)) / real(math.sqrt(m4 - m2 * m2))


def goodness_of_fit(sample: Sample) -> Iterator[Test]:
    blocks = len(sample.fits)
    size, name = sample.count // blocks, sample.law.name
    distances, statistics = zip(*sample.fits, strict=True)
    p, worst = min((g.kolmogorov_p(d, size), d) for d in distances)
    what = f"Kolmogorov-Smirnov sqrt(n) D, worst of {blocks}"
    yield Test(name, what, number(worst * math.sqrt(size)), "0.83", g.smallest_p(p, blocks))
    p, worst = min((g.anderson_darling_p(a), a) for a in statistics)
    what = f"Anderson-Darling A^2, worst of {blocks}"
    yield Test(name, what, number(worst), "0.77", g.smallest_p(p, blocks))


def moments(sample: Sample) -> Iterator[Test]:
    for k in range(1, ORDERS + 1):
        m, m2 = sample.law.moment(k), sample.law.moment(2 * k)
        mean = float(sample.powers[k - 1]) / sample.count
        z = (mean - m) / math.sqrt((m2 - m * m) / sample.count)
        yield Test(sample.law.name, f"moment {k}", number(mean, 6), number(m, 6), g.normal_p(z), z)


def extremes(sample: Sample, real: type) -> Iterator[Test]:
    law, n = sample.law, sample.count
    for tail, seen in zip(law.tails, sample.tails.tolist(), strict=True):
        p = beyond(law.cdf, tail, real)
        what, expected = f"values beyond {tail}", number(n * p, 6)
        yield Test(law.name, what, str(seen), expected, g.count_p(seen, n, p))
    if law.name == "normal":
        # All n stay within m with probability (1 - P(|X| > m))^n.
        within = math.exp(n * math.log1p(-beyond(law.cdf, sample.largest, np.float64)))
        p = g.both(within, 1 - within)
        yield Test(law.name, "largest |x|", number(sample.largest), number(g.usual_largest(n)), p)


def serial(sample: Sample) -> Iterator[Test]:
    name, n = sample.law.name, sample.count
    for of, sums in zip(("", " of squares"), sample.lags, strict=True):
        yield from family(name, f"along rows{of}, lags 1..{LAGS}", sums / math.sqrt(n))
    if name == "normal":
        for of, total in zip(("", " of squares"), sample.partners.tolist(), strict=True):
            z, mean = total / math.sqrt(n / 2), total / (n / 2)
            what = f"Box-Muller partners{of}: correlation"
            yield Test(name, what, number(mean, 3), "0", g.normal_p(z), z)


def between_rows(sample: Sample) -> Iterator[Test]:
    name, blocks, rows = sample.law.name, len(sample.rows), len(sample.rows[0])
    fourth = sample.law.moment(4) / sample.law.moment(2) ** 2
    error = g.mean_square_error(rows, sample.count // blocks // rows, fourth)
    pairs = np.concatenate([g.pairs(scores) for scores in sample.rows])
    yield from family(name, f"{pairs.size} pairs of rows", pairs, error / math.sqrt(blocks))
    total = np.sum(sample.rows, axis=0) / math.sqrt(blocks)
    apart = [np.trace(total, lag) / math.sqrt(rows - lag) for lag in range(1, APART + 1)]
    yield from family(name, f"rows 1..{APART} apart", np.array(apart))


def beyond(cdf: g.Cdf, tail: float, real: type) -> float:
    """P(|X| > tail) of a symmetric law rounded to floats."""
    _, upper = g.edges(np.array([tail], real))
    return 2 * float(cdf(-upper)[0])


def family(subject: str, what: str, scores: Array, error: float | None = None) -> Iterator[Test]:
    """Many z-scores: the largest, and their mean square."""
    worst = float(scores.flat[np.abs(scores).argmax()])
    p = g.smallest_p(g.normal_p(worst), scores.size)
    usual = number(g.usual_largest(scores.size), 3)
    yield Test(subject, f"{what}: largest z", number(worst, 3), usual, p)
    total = float(np.square(scores).sum())
    if error is None:
        z, p = None, g.chi_square_p(total, scores.size)
    else:
        z = (total / scores.size - 1) / error
        p = g.normal_p(z)
    yield Test(subject, f"{what}: mean z^2", number(total / scores.size), "1", p, z)


def survey(law: Law, generator: Generator, n: int, seed: int, real: type, tell: Tell) -> Sample:
    """Blocks of `ROWS` x `COLUMNS`, a name each, or one smaller block."""
    blocks = max(1, math.ceil(n / (ROWS * COLUMNS)))
    columns = COLUMNS if blocks > 1 else min(COLUMNS, max(LEAST_COLUMNS, n // ROWS // 64 * 64))
    sample = Sample(law)
    for i in range(blocks):
        tell(i / blocks, f"{law.name}, block {i + 1} of {blocks}")
        stream = Stream(f"randomness.{law.name}.{i}", seed)
        sample.add(generator.values(law.distribution, stream, (ROWS, columns), real))
    return sample


# Streams against each other


def real_names() -> list[str]:
    """FQNs of a Llama."""
    leaves = ("q_proj", "k_proj", "v_proj", "o_proj")
    parts = [f"self_attn.{leaf}" for leaf in leaves]
    parts += [f"mlp.{leaf}_proj" for leaf in ("gate", "up", "down")]
    names = [f"model.layers.{i}.{part}.weight" for i in range(STREAMS) for part in parts]
    return names[:STREAMS]


def streams_of(seed: int) -> dict[str, list[Stream]]:
    return {
        "names": [Stream(name, seed) for name in real_names()],
        "seeds": [Stream("model.embed_tokens.weight", seed + i) for i in range(STREAMS)],
        "one letter": [Stream(f"model.layer{chr(i)}.weight", seed) for i in range(STREAMS)],
    }


def between_streams(
    generator: Generator, n: int, seed: int, real: type, tell: Tell
) -> Iterator[Test]:
    columns = min(MOST_COLUMNS, max(LEAST_COLUMNS, n // STREAMS // 64 * 64))
    x: Array = np.empty((STREAMS, columns), real)
    kinds = streams_of(seed)
    for i, (kind, streams) in enumerate(kinds.items()):
        tell(i / len(kinds), f"streams: {kind}")
        for row, stream in zip(x, streams, strict=True):
            row[:] = generator.values(Normal(1.0), stream, (1, columns), real)[0]
        pairs = g.pairs(g.correlations(x))
        error = g.mean_square_error(STREAMS, columns, 3.0)
        yield from family("streams", f"{kind}, {pairs.size} pairs", pairs, error)
        largest, count = g.shifted_largest(x)
        p = g.smallest_p(g.normal_p(largest), count)
        what = f"{kind}, neighbours at {count:.1e} shifts: largest |z|"
        yield Test("streams", what, number(largest, 3), number(g.usual_largest(count), 3), p)


# Words


def bits(generator: Generator, n: int, seed: int, tell: Tell) -> Iterator[Test]:
    tell(0.0, "bits of words")
    columns = min(WORDS, n) // ROWS // 64 * 64
    stream = Stream("randomness.bits", seed)
    grid = generator.words(stream, np.arange(ROWS), np.arange(columns))
    yield from family("bits", "32 of a word", g.bit_scores(grid.reshape(-1)))
    within = g.pairs(g.bit_correlations(grid.reshape(-1), grid.reshape(-1)))
    yield from family("bits", f"{within.size} pairs within a word", within)
    neighbours = {
        "1 column on": (grid[:, :-1], grid[:, 1:]),
        "16 columns on": (grid[:, :-16], grid[:, 16:]),
        "1 row on": (grid[:-1], grid[1:]),
    }
    for what, (a, b) in neighbours.items():
        scores = g.bit_correlations(a.ravel(), b.ravel())
        yield from family("bits", f"{scores.size} pairs with the word {what}", scores)
    tell(0.5, "avalanche")
    yield from avalanche(generator, min(FLIPS, n), seed)


def avalanche(generator: Generator, n: int, seed: int) -> Iterator[Test]:
    """Flipping a bit of the column or the row flips each bit of the word with probability 1/2."""
    stream = Stream("randomness.avalanche", seed)
    rows, columns = np.arange(n // 256), np.arange(256)
    base = generator.words(stream, rows, columns).ravel()
    for what, places in (("column", range(34)), ("row", range(32))):
        scores = []
        for place in places:
            r, c = (
                (rows ^ (1 << place), columns) if what == "row" else (rows, columns ^ (1 << place))
            )
            flipped = generator.words(stream, r, c).ravel() ^ base
            scores.append(flip_scores(flipped, place, what))
        yield from family("bits", f"flipped by a bit of the {what}", np.concatenate(scores))


def flip_scores(flipped: Array, place: int, what: str) -> Array:
    """Scores of each bit; where both words of a pair are in the sample, each pair is there twice."""
    twice = place < (8 if what == "column" else math.log2(flipped.size / 256))
    return g.bit_scores(flipped) / (math.sqrt(2) if twice else 1)


# All


Tell = Callable[[float, str], None]


def battery(generator: Generator, n: int, seed: int, real: type, tell: Tell) -> list[Test]:
    """Every test, in the order of the table."""
    parts = len(LAWS) + 2

    def told(part: int) -> Tell:
        return lambda fraction, text: tell((part + fraction) / parts, text)

    tests: list[Test] = []
    for i, law in enumerate(LAWS):
        sample = survey(law, generator, n, seed, real, told(i))
        tests += [*goodness_of_fit(sample), *moments(sample), *extremes(sample, real)]
        tests += [*serial(sample), *between_rows(sample)]
    tests += between_streams(generator, n, seed, real, told(len(LAWS)))
    tests += bits(generator, n, seed, told(len(LAWS) + 1))
    return tests


def reachable() -> tuple[float, float]:
    """The largest normal values in 32 and in 64 bits, by the specification's own functions."""
    first, angles = np.zeros(2**16, np.uint32), np.arange(2**16, dtype=np.uint32) << np.uint32(16)
    low = np.zeros_like(first)
    short = single.box_muller(first, angles)
    long = double.box_muller((first, low), (angles, low))
    return float(np.abs(short).max()), float(np.abs(long).max())


def shown(tests: Sequence[Test], limit: float) -> str:
    header = ("", "test", "observed", "expected", "z", "p", "")
    rows = [
        (
            t.subject,
            t.what,
            t.observed,
            t.expected,
            "" if t.z is None else f"{t.z:.2f}",
            number(t.p, 2),
            "<-" if t.p < limit else "",
        )
        for t in tests
    ]
    return table(header, rows, width=110, kinds="llrrrrl")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=float, default=1e8, help="values of each law")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--float64", action="store_true", help="64-bit values instead of 32")
    parser.add_argument("--control", choices=CONTROLS, help="a bad generator, which has to fail")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    if given.n < ROWS * LEAST_COLUMNS:
        parser.error(f"--n must be at least {ROWS * LEAST_COLUMNS}; got {given.n:g}")
    if given.control and given.float64:
        parser.error("controls draw 32-bit values; leave --float64 out")
    torch.set_num_threads(given.threads)
    generator: Generator = CONTROLS[given.control] if given.control else Fanin()
    real = np.float64 if given.float64 else np.float32
    start = time.process_time()
    with progress_bar("randomness") as tell:
        tests = battery(generator, int(given.n), given.seed, real, tell)
    return report(generator, tests, given.n, time.process_time() - start)


def report(generator: Generator, tests: Sequence[Test], n: float, seconds: float) -> int:
    limit = ALPHA / len(tests)
    failed = [t for t in tests if t.p < limit]
    print(f"{generator.name}: {n:.3g} values of each law")
    print(shown(tests, limit))
    short, long = reachable()
    print(f"\nlargest |z| reachable: {short:.3f} in 32 bits, {long:.3f} in 64")
    print(f"{len(tests)} tests; threshold {ALPHA:g} / {len(tests)} = {limit:.2g}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{seconds:.0f} s of CPU time, {peak:.2f} GiB at most\n\n{LITERATURE}\n")
    fault = getattr(generator, "fault", "")
    print(f"{'failed' if failed else 'passed'}: {len(failed)} of {len(tests)} tests beyond the threshold"
          + (f" ({fault}: it has to fail)" if fault else ""))  # fmt: skip
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
