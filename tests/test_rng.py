"""The engine against its law: words, layout, transforms to the last bits."""

from __future__ import annotations

import hashlib
import math

import mpmath as mp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from fanin import InvalidValueError
from fanin import _rng as rng
from fanin._rng import Elements, Stream, double, single
from fanin._rng import coefficients as table
from fanin._rng.philox import addresses, philox, words
from fanin._rng.probability import interval, tail_ratio

F32, F64 = np.float32, np.float64
REALS = [F32, F64]
SIZES = [1, 15, 16, 17, 63, 64, 65, 200]


def scalar_philox(counter, key):
    """Salmon et al. 2011, in Python's integers, one block."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def scalar_word(seed, key, row, column, *, low=False):
    """The law of docs/engine.md, element by element."""
    digest = hashlib.blake2b(
        key.encode(), key=seed.to_bytes(8, "little"), digest_size=16, person=b"fanin-1"
    ).digest()
    k0, k1, s2, s3 = (int.from_bytes(digest[i : i + 4], "little") for i in (0, 4, 8, 12))
    s3 = s3 & 0x7FFFFFFF | (0x80000000 if low else 0)
    tile, lane, place = column >> 6, (column >> 4) & 3, column & 15
    return scalar_philox((16 * tile + place, row, s2, s3), (k0, k1))[lane]


def block(rows, columns, stream=None):
    return Elements(stream or Stream("w", 3), np.asarray(rows), np.asarray(columns))


def some_words(count, seed=0):
    """Random words, with every place where a transform changes its branch."""
    random = np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint64)
    near = np.arange(-2000, 2000)
    edges = [near + at for at in (2**32 * 2 // 3, 2**31, 2**30, 3 * 2**30, 2**31 * 2 // 3)]
    ends = [np.arange(4000), 2**32 - 1 - np.arange(4000)]
    return np.concatenate([random.astype(np.int64), *edges, *ends]).astype(np.uint32)


def ulps(value, exact):
    return np.abs(value.astype(F64) - exact) / np.spacing(np.abs(exact).astype(value.dtype)).astype(
        F64
    )


# Words and layout


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123, kat_vectors, philox4x32 10
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    found = philox(tuple(np.array([c], np.uint64) for c in counter), key)
    assert " ".join(f"{int(w[0]):08x}" for w in found) == expected
    assert " ".join(f"{w:08x}" for w in scalar_philox(counter, key)) == expected


@settings(deadline=None)
@given(
    st.integers(0, 2**64 - 1),
    st.text(max_size=20),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4),
    st.lists(st.integers(0, 2**34 - 1), min_size=1, max_size=6),
)
def test_word_follows_the_law(seed, key, rows, columns):
    found = words(block(rows, columns, Stream(key, seed)))
    assert found.tolist() == [[scalar_word(seed, key, r, c) for c in columns] for r in rows]


def test_low_words_come_from_the_other_half():
    high = np.array([[scalar_word(3, "w", r, c) for c in range(70)] for r in range(2)], np.uint64)
    low = np.array(
        [[scalar_word(3, "w", r, c, low=True) for c in range(70)] for r in range(2)], np.uint64
    )
    unit = ((high << np.uint64(32)) | low).view(np.int64).astype(F64) * 2.0**-63
    assert np.array_equal(rng.uniform(block(range(2), range(70)), -1.0, 1.0, real=F64), unit)


def test_addresses_name_each_block_once():
    for columns in (
        np.arange(200),
        np.arange(5),
        np.array([700, 3, 3, 64, 12345]),
        np.arange(0, 6400, 64),
    ):
        blocks, slots = addresses(columns)
        assert len(set(blocks.tolist())) == blocks.size
        lane, place = np.divmod(slots, blocks.size)
        assert np.array_equal(lane, (columns >> 4) & 3)
        assert np.array_equal(blocks[place], 16 * (columns >> 6) + (columns & 15))


def test_streams_do_not_meet():
    seen = {Stream(key, seed).words for key in ("a", "b", "a/mask", "") for seed in (0, 1, 2**63)}
    assert len(seen) == 12
    assert all(s3 < 2**31 for *_, s3 in seen)
    assert Stream("a").child("mask").words == Stream("a/mask").words


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "7", None, True, math.nan])
def test_bad_seed(seed):
    with pytest.raises(InvalidValueError, match=r"seed must be an integer in \[0, 2\*\*64\); got"):
        Stream("w", seed)


def test_numpy_seed_is_the_same_number():
    assert Stream("w", np.int64(5)) == Stream("w", 5)


def test_bad_key():
    with pytest.raises(InvalidValueError, match="key must be text"):
        Stream(3)


@pytest.mark.parametrize(
    ("rows", "columns", "what"),
    [([2**32], [0], "row"), ([0], [2**34], "column"), ([0], [-1], "column")],
)
def test_limits(rows, columns, what):
    with pytest.raises(InvalidValueError, match=f"{what} indices must lie in"):
        rng.uniform(block(rows, columns), 0.0, 1.0, real=F32)


DRAWS = {
    "normal": lambda e, real: rng.normal(e, 1.0, 0.0, real=real),
    "uniform": lambda e, real: rng.uniform(e, -1.0, 1.0, real=real),
    "truncated 2": lambda e, real: rng.truncated_normal(e, 1.0, 2.0, 0.0, real=real),
    "truncated 3": lambda e, real: rng.truncated_normal(e, 1.0, 3.0, 0.0, real=real),
    "truncated 5": lambda e, real: rng.truncated_normal(e, 1.0, 5.0, 0.0, real=real),
    "bounded": lambda e, real: rng.bounded_normal(e, 0.5, 2.0, -1.0, 6.0, real=real),
    "one-sided": lambda e, real: rng.bounded_normal(e, 0.0, 1.0, 2.0, math.inf, real=real),
    "far tail": lambda e, real: rng.bounded_normal(e, 0.0, 1.0, -math.inf, -45.0, real=real),
}


@pytest.mark.parametrize("real", REALS, ids=["fp32", "fp64"])
@pytest.mark.parametrize("name", DRAWS)
def test_any_subset_in_any_order_is_the_same(name, real):
    whole = DRAWS[name](block(range(9), range(300)), real)
    assert whole.dtype == real
    assert whole.shape == (9, 300)
    pick = np.random.default_rng(0)
    for count in SIZES:
        rows, columns = pick.integers(0, 9, 4), pick.integers(0, 300, count)
        assert np.array_equal(DRAWS[name](block(rows, columns), real), whole[np.ix_(rows, columns)])
        start = int(pick.integers(0, 100))
        run = DRAWS[name](block(range(2), range(start, start + count)), real)
        assert np.array_equal(run, whole[:2, start : start + count])


# Transforms


def worst_table_error(formula, exact, points):
    mp.mp.dps = 30
    return float(max(abs(formula(x) / exact(x) - 1) for x in points))


def horner(coefficients, x, real=F64):
    value = mp.mpf(0)
    for c in reversed(coefficients):
        value = value * x + mp.mpf(float(real(c)))
    return value


@pytest.mark.parametrize(
    ("real", "log", "sine", "cosine", "bounds"),
    [
        (F32, table.LOG_32, table.SIN_32, table.COS_32, (9.9e-9, 3.5e-8, 8.4e-9)),
        (F64, table.LOG_64, table.SIN_64, table.COS_64, (1.6e-17, 4.9e-17, 2.3e-17)),
    ],
)
def test_polynomials_are_as_good_as_they_say(real, log, sine, cosine, bounds):
    grid = [mp.mpf(i) / 200 for i in range(1, 201)]
    errors = (
        worst_table_error(
            lambda t: t + t * t * horner(log, t, real),
            mp.log1p,
            [s * t / 3 for t in grid for s in (1, -1)],
        ),
        worst_table_error(
            lambda y: y * horner(sine, y * y, real), lambda y: mp.sin(mp.pi * y / 4), grid
        ),
        worst_table_error(
            lambda y: horner(cosine, y * y, real), lambda y: mp.cos(mp.pi * y / 4), grid
        ),
    )
    assert all(error <= bound for error, bound in zip(errors, bounds, strict=True)), errors


def test_radius_32_keeps_relative_accuracy_everywhere():
    word = some_words(400_000)
    h = (word >> 1).astype(F64)
    near_one = h >= 2**30
    log = np.where(near_one, np.log1p((h + 0.5 - 2**31) / 2**31), np.log((h + 0.5) / 2**31))
    assert ulps(single.radius(word), np.sqrt(-2 * log)).max() <= 2
    # The smallest radius there is, which 24-bit arithmetic on u would have lost.
    assert single.radius(np.array([2**32 - 1], np.uint32))[0] == F32(math.sqrt(2.0**-31))


def test_radius_64():
    word, low = some_words(400_000), some_words(400_000, seed=1)
    h, wide = (word >> 1).astype(np.longdouble), np.longdouble
    u = (h * 2**32 + low + wide(0.5)) / wide(2) ** 63
    rest = ((2**31 - 1 - h) * 2**32 + ~low + wide(0.5)) / wide(2) ** 63
    exact = np.sqrt(-2 * np.where(u < 0.5, np.log(u), np.log1p(-rest)))
    found = double.radius((word, low))
    assert float((np.abs(found - exact) / np.spacing(found)).max()) <= 2


def test_directions_are_the_angle_of_the_law():
    word, low = some_words(400_000), some_words(400_000, seed=1)
    for found, continuation, tolerance in (
        (single.direction(word), 0.0, 1.3e-7),
        (double.direction((word, low)), low.astype(F64) * 2.0**-30, 2.3e-16),
    ):
        angle = np.pi / 4 * ((word << np.uint32(2)).view(np.int32) + continuation) / 2**31
        cosine = np.where(word >> 31, -np.cos(angle), np.cos(angle))
        swap = (word >> 30) & 1
        for value, exact in zip(
            found,
            (np.where(swap, cosine, np.sin(angle)), np.where(swap, np.sin(angle), cosine)),
            strict=True,
        ):
            # numpy's own sine adds an ulp of 1 to the tolerance
            assert np.abs(value - exact).max() <= tolerance + 1.2e-16


@pytest.mark.parametrize("cut", [0.01, 0.5, 1.0, 2.0, 2.1, 2.5, 3.0])
def test_truncated_32_against_scipy(cut):
    word = some_words(300_000)
    inside, outside = math.erf(cut / math.sqrt(2)), math.erfc(cut / math.sqrt(2))
    k = word.view(np.int32).astype(F64)
    size = np.where(k >= 0, k, -k - 1)
    y, tail = (
        (size + 0.5) * inside * 2.0**-31,
        (outside + (2**31 - 0.5 - size) * inside * 2.0**-31) / 2,
    )
    exact = np.where(y < 0.5, math.sqrt(2) * scipy.special.erfinv(y), -scipy.special.ndtri(tail))
    found = single.truncated(word, cut, inside, outside)
    assert np.array_equal(np.signbit(found), k < 0)
    assert ulps(np.abs(found), exact).max() <= 11
    assert (np.abs(np.abs(found) / exact - 1)).max() <= 7.5e-7


def exact_quantile(p, start):
    z = mp.mpf(start)
    for _ in range(3):
        z -= (mp.erfc(-z / mp.sqrt(2)) / 2 - p) / (mp.exp(-z * z / 2) / mp.sqrt(2 * mp.pi))
    return z


def test_quantile_64_against_mpmath():
    mp.mp.dps = 40
    pick = np.random.default_rng(0)
    p = np.concatenate([10.0 ** -pick.uniform(0.31, 290, 200), pick.uniform(0, 0.5, 200)])
    lower, upper = double.quantile(p, 1 - p, p - 0.5), double.quantile(1 - p, p, 0.5 - p)
    assert np.array_equal(lower, -upper)
    worst = max(
        abs(float(mp.mpf(float(z)) / exact_quantile(mp.mpf(float(q)), float(z)) - 1))
        for q, z in zip(p, lower, strict=True)
    )
    assert worst <= 1e-15


@pytest.mark.parametrize(
    ("a", "b"), [(30.0, math.inf), (30.0, 30.1), (45.0, 46.0), (1e4, math.inf)]
)
def test_far_tail_against_mpmath(a, b):
    mp.mp.dps = 60

    def survival(x):
        return mp.erfc(mp.mpf(x) / mp.sqrt(2)) / 2

    u = np.concatenate([[2.0**-65, 1e-9, 0.5, 1 - 1e-9], np.random.default_rng(0).uniform(size=8)])
    found = double.far_quantile(u, 1 - u, a, tail_ratio(a, b))
    for v, z in zip(u, found, strict=True):
        target = survival(a) + mp.mpf(float(v)) * (
            (survival(b) if b < math.inf else 0) - survival(a)
        )
        exact = mp.mpf(float(z))
        for _ in range(4):
            exact += (survival(exact) - target) / (mp.exp(-exact * exact / 2) / mp.sqrt(2 * mp.pi))
        assert abs(float(mp.mpf(float(z)) / exact - 1)) <= 3e-16


@settings(deadline=None, max_examples=60)
@given(st.floats(-30, 30), st.floats(1e-6, 20))
def test_interval_probabilities_are_correctly_rounded(low, width):
    mp.mp.dps = 80
    high = low + width
    below, above = mp.ncdf(low), mp.ncdf(-high)
    inside = mp.ncdf(-low) - above if low > 0 else mp.ncdf(high) - below
    for found, exact in zip(interval(low, high), (below, inside, above), strict=True):
        assert abs(mp.mpf(found) / exact - 1) <= 2.0**-53 if exact > 1e-300 else found <= 1e-299


def test_single_is_double_within_the_word():
    """fp32 draws are fp64 draws: apart by rounding, and by what the 32 low bits can move."""
    where = block(range(40), range(4096))
    even = words(where).reshape(40, -1, 2, 2, 16)[:, :, :, 0, :]
    radius = np.broadcast_to(single.radius(even)[:, :, :, None, :], (40, 64, 2, 2, 16)).reshape(
        40, 4096
    )
    u = np.exp(-(radius.astype(F64) ** 2) / 2)
    wide = rng.normal(where, 1.0, 0.0, real=F64)
    # du = 2^-32 at most, so dr = du / (u r); the angle moves by pi/4 2^-29 at most.
    moved = 2.0**-32 / (u * radius) + radius * (math.pi / 4 * 2.0**-29)
    rounding = 6 * np.spacing(np.maximum(np.abs(wide), radius * 2.0**-4).astype(F32)).astype(F64)
    assert (np.abs(rng.normal(where, 1.0, 0.0, real=F32) - wide) <= moved + rounding).all()
    for cut in (2.0, 3.0):
        wide = rng.truncated_normal(where, 1.0, cut, 0.0, real=F64)
        density = np.exp(-wide * wide / 2) / math.sqrt(2 * math.pi)
        error = np.abs(rng.truncated_normal(where, 1.0, cut, 0.0, real=F32) - wide)
        assert (error <= 2.0**-33 / density + 12 * np.spacing(np.abs(wide).astype(F32))).all()
    wide = rng.uniform(where, -1.0, 1.0, real=F64)
    assert np.abs(rng.uniform(where, -1.0, 1.0, real=F32) - wide).max() <= 2.0**-25 + 2.0**-31
    for name in ("truncated 5", "bounded", "one-sided", "far tail"):
        assert np.array_equal(DRAWS[name](where, F32), DRAWS[name](where, F64).astype(F32))


def test_std_and_mean_round_in_turn():
    z = rng.normal(block([0], range(500)), 1.0, 0.0, real=F32)
    found = rng.normal(block([0], range(500)), 0.1, 0.3, real=F32)
    assert np.array_equal(found, z * F32(0.1) + F32(0.3))


@pytest.mark.parametrize("real", REALS, ids=["fp32", "fp64"])
@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-0.1, 0.3), (1.0, 1.0 + 2.0**-20), (-1e-40, 3e38), (0.1, 0.1)]
)
def test_uniform_stays_in_its_half_open_interval(low, high, real):
    value = rng.uniform(block(range(64), range(4096)), low, high, real=real).astype(F64)
    if low == high:
        assert (value == real(low)).all()
    else:
        assert value.min() >= low
        assert value.max() < high


def test_uniform_never_reaches_high_even_when_rounding_would():
    word = np.array([2**31 - 1], np.uint32)
    assert single.signed_uniform(word)[0] == 1.0
    # the first columns of this stream whose word rounds up to 1, found by search
    columns = np.arange(2**19)
    top = words(block([0], columns, Stream("top", 0)))[0].view(np.int32)
    picked = columns[np.argsort(top)[-64:]]
    value = rng.uniform(block([0], picked, Stream("top", 0)), 1.0, 1.0 + 2.0**-10, real=F32)
    assert value.max() == np.nextafter(F32(1.0 + 2.0**-10), F32(0))


@pytest.mark.parametrize("real", REALS, ids=["fp32", "fp64"])
@pytest.mark.parametrize("cut", [1e-3, 1.5, 2.0, 3.0, 4.0])
@pytest.mark.parametrize(("sigma", "mean"), [(1.0, 0.0), (0.02, 0.0), (0.1, 0.7)])
def test_truncated_never_crosses_the_cut(cut, sigma, mean, real):
    value = rng.truncated_normal(block(range(16), range(4096)), sigma, cut, mean, real=real).astype(
        F64
    )
    assert value.min() >= mean - cut * sigma
    assert value.max() <= mean + cut * sigma
    # 65536 draws come within 1e-3 of both ends of the law's probability
    assert (value.max() - mean) / sigma > 0.97 * cut * (0.9 if cut > 3 else 1.0)
