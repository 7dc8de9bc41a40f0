"""The kernels against the specification, bit for bit: every law, dtype, size, place and processor."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from fanin import InvalidValueError, fill_
from fanin import _rng as rng
from fanin._rng import Elements, Stream, backend
from fanin._rng.backend import Draw, Memory, runs
from fanin.distributions import (
    BoundedNormal,
    Normal,
    Orthogonal,
    Sparse,
    TruncatedNormal,
    Uniform,
)
from golden.make import PATH, outcome

pytest.importorskip("numba")

INF = math.inf
LAWS = [
    Normal(0.02, 0.5),
    Normal(1.0),
    Uniform(-0.1, 0.3),
    TruncatedNormal(0.5, 1.3, 0.7),
    TruncatedNormal(1.0, 2.0),
    TruncatedNormal(0.02, 3.0),
    TruncatedNormal(1.0, 4.5),
    BoundedNormal(0.0, 0.5, -0.3, 0.7),
    BoundedNormal(0.0, 1.0, 6.0, INF),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES = [0, 1, 15, 16, 17, 63, 64, 65, 1000, 4097]
SHAPES = [(7, 130), (3, 1000), (5, 2, 3, 3), (300, 3), (1, 1), (4, 1, 5), (20, 2100)]
OUTSIDE = 7.0  # what memory holds that is not to be written


@pytest.fixture(autouse=True)
def _kernels_at_once(monkeypatch):
    monkeypatch.setattr(backend, "LOADING_PAYS", 0)
    monkeypatch.delenv(backend.PORTABLE, raising=False)


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def fill(tensor, law):
    return fill_(tensor, law, key="w", seed=3)


def portable(law, shape, dtype):
    """What the specification says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(backend.PORTABLE, "1")
        return fill(torch.empty(shape, dtype=dtype), law)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits(a), bits(b))


@pytest.fixture
def written(monkeypatch):
    """Counts the fills that a kernel wrote straight into memory."""
    count = []
    into = Draw.into

    def counted(self, *args, **kwargs):
        done = into(self, *args, **kwargs)
        count.append(done)
        return done

    monkeypatch.setattr(Draw, "into", counted)
    return count


# Bit equality


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_kernels_draw_what_the_specification_says(law, dtype, written):
    for shape in [*[(n,) for n in SIZES], *SHAPES, ()]:
        assert same(fill(torch.empty(shape, dtype=dtype), law), portable(law, shape, dtype)), shape
    assert sum(written) == len(SIZES) - 1 + len(SHAPES) + 1  # all but the empty one


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_layouts(law, dtype):
    """Transposed, channels_last, stepped and narrowed views; what lies around them stays."""
    for shape, view in {
        "transposed": ((65, 70), lambda t: t.T),
        "rows of a wider one": ((9, 200), lambda t: t[:, 3:133]),
        "stepped": ((40, 300), lambda t: t[1::2, 5::3]),
        "every other row": ((40, 130), lambda t: t[::2]),
        "channels last": ((6, 3, 3, 20), lambda t: t.permute(0, 3, 1, 2)),
        "1-D stepped": ((400,), lambda t: t[3::2]),
        "1-D offset": ((400,), lambda t: t[3:]),
        "column": ((300, 4), lambda t: t[:, 2]),
    }.values():
        memory = torch.full(shape, OUTSIDE, dtype=dtype)
        part = view(memory)
        fill(part, law)
        assert same(part, portable(law, part.shape, dtype))
        part.fill_(OUTSIDE)
        assert (memory == OUTSIDE).all()


@pytest.mark.parametrize("real", [np.float32, np.float64], ids=["fp32", "fp64"])
def test_any_rows_and_columns(real):
    """Offsets at every lane, stretches and single indices, in any order."""
    pick = np.random.default_rng(0)
    draw = rng.laws.normal(1.0, 0.0, real)
    stream = Stream("w", 3)
    spec = draw.portable(Elements(stream, np.arange(9), np.arange(3000)))
    for start in [*range(67), 1023, 1024, 1025]:
        for length in (1, 16, 64, 65, 1100):
            columns = np.arange(start, start + length)
            found = draw(Elements(stream, np.arange(2, 4), columns))
            assert np.array_equal(found, spec[2:4, columns])
    for columns in (pick.integers(0, 3000, 50), np.arange(0, 3000, 7), np.arange(3000)[::-1]):
        rows = pick.integers(0, 9, 5)
        found = draw(Elements(stream, rows, columns))
        assert np.array_equal(found, spec[np.ix_(rows, columns)])


def test_far_rows_and_columns():
    draw = rng.laws.uniform(0.0, 1.0, np.float64)
    far = Elements(Stream("w", 3), np.array([0, 2**31, 2**32 - 1]), np.arange(2**34 - 200, 2**34))
    assert np.array_equal(draw(far), draw.portable(far))
    with pytest.raises(InvalidValueError, match="column indices must lie in"):
        draw(Elements(Stream("w"), np.array([0]), np.arange(2**34 - 5, 2**34 + 1)))
    with pytest.raises(InvalidValueError, match="row indices must lie in"):
        memory = Memory(0, 0, "float64", 8)
        draw.into(memory, Stream("w"), range(2**32, 2**32 + 1), range(1), threads=1)


@pytest.mark.parametrize(
    "law",
    [
        Normal(3e38),
        Normal(1e-40, 1e-42),
        Normal(0.0, -0.0),
        Uniform(-3.4e38, 3.4e38),
        Uniform(0.1, 0.1),
        Uniform(-0.0, 0.0),
        Uniform(1.0, 1.0 + 2.0**-20),
        TruncatedNormal(1.0, 1e300),
        TruncatedNormal(0.0, 2.0, 0.1),
        TruncatedNormal(1e-46, 2.0, -0.0),
        BoundedNormal(0, 1, -1e308, 1e308),
        BoundedNormal(0, 1, 45.0, 46.0),
        BoundedNormal(0.0, 0.0, 1.0, 2.0),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_extreme_parameters(law, dtype):
    assert same(fill(torch.empty(3000, dtype=dtype), law), portable(law, (3000,), dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1e-44, 1e-8, 1e-6, 1e-3, 1.0, 2e4])
def test_rounding_to_16_bits(scale, dtype):
    """Subnormals, ties and overflow to infinity, against torch's conversion of 1e5 values."""
    expected = fill(torch.empty(100_000), Normal(scale)).to(dtype)
    assert same(fill(torch.empty(100_000, dtype=dtype), Normal(scale)), expected)


def test_other_dtypes_draw_through_the_kernels_too(written):
    for dtype in (torch.complex64, torch.complex128, torch.float8_e4m3fn):
        law = Normal(0.5, 0.1)
        assert same(fill(torch.empty(7, 130, dtype=dtype), law), portable(law, (7, 130), dtype))
    for law in (Orthogonal(), Sparse(0.3, 0.5)):
        assert same(fill(torch.empty(70, 65), law), portable(law, (70, 65), torch.float32))
    assert sum(written) >= 5


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_do_not_matter(dtype):
    for shape in [(300, 700), (2, 100_001), (200_003,), (66_000, 3)]:
        law = Normal(0.02, 0.5)
        assert same(fill(torch.empty(shape, dtype=dtype), law), portable(law, shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_growth_keeps_the_old_block(law, dtype):
    small = fill(torch.empty(5, 67, dtype=dtype), law)
    assert same(fill(torch.empty(9, 1130, dtype=dtype), law)[:5, :67], small)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_million_and_seven(law, dtype, threads):
    torch.set_num_threads(threads)
    for shape in [(10**6 + 7,), (10**3 + 1, 10**3 + 9)]:
        found = fill(torch.empty(shape, dtype=dtype), law)
        torch.set_num_threads(1)
        assert same(found, portable(law, shape, dtype))


GOLDEN = json.loads(PATH.read_text("utf-8"))["cases"]


@pytest.mark.parametrize(
    "case", GOLDEN, ids=lambda c: f"{c['law']['kind']}-{c['shape']}-{c['dtype']}"
)
def test_golden(case):
    assert outcome(case) == {k: case[k] for k in ("first", "blake2b")}


# Other processors, other circumstances: fresh processes

COMMON = """
import torch, warnings
warnings.simplefilter("error")
from fanin import fill_
from fanin._rng import backend
from fanin.distributions import *
torch.set_num_threads(1)
backend.LOADING_PAYS = 0
"""
DRAW_ALL = """
import hashlib
LAWS = [Normal(0.02, 0.5), Uniform(-0.1, 0.3), TruncatedNormal(1.0, 2.0), TruncatedNormal(1.0, 3.0), TruncatedNormal(1.0, 4.5)]
for law in LAWS:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        tensor = fill_(torch.empty(37, 1301, dtype=dtype), law, key="w", seed=3)
        print(hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest())
"""


def run(code, **environment):
    """Standard output of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", COMMON + code],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "machine",
    [
        {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
        {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+bmi,+bmi2"},
        {"NUMBA_CPU_NAME": "skylake-avx512", "NUMBA_CPU_FEATURES": "+avx512f,+avx512dq,+avx512vl,+avx512bw,+fma,+avx2"},
        {"NUMBA_CPU_NAME": "skylake-avx512", "NUMBA_CPU_FEATURES": "+avx512f,+avx512dq,+avx512vl,+avx512bw,+fma,+avx2,-prefer-256-bit"},
    ],
    ids=["plain", "avx2", "avx512", "avx512 wide"],
)  # fmt: skip
def test_processors_agree(machine, tmp_path):
    if "avx512" in machine["NUMBA_CPU_NAME"] and not _has("avx512dq"):
        pytest.skip("this machine has no AVX-512")
    found = run(DRAW_ALL, NUMBA_CACHE_DIR=str(tmp_path), **machine)
    assert found == run(DRAW_ALL, **{backend.PORTABLE: "1"})
    assert len(set(found.split())) == 20


def _has(feature):
    import llvmlite.binding

    return llvmlite.binding.get_host_cpu_features().get(feature, False)


USES = """
import sys
tensor = fill_(torch.empty(5000), Normal(1.0), key="w", seed=3)
print(float(tensor.double().sum()), any(n == "fanin._rng.kernels" for n in sys.modules))
"""


def test_portable_where_numba_is_missing():
    found = run("import sys; sys.modules['numba'] = None\n" + USES).split()
    expected = run(USES, **{backend.PORTABLE: "1"}).split()
    assert found == expected == [expected[0], "False"]


def test_a_directory_that_cannot_be_written():
    """numba looks for a place for its files when a kernel is made; there may be none."""
    nowhere = """
from numba.core import caching
caching.CacheImpl._locator_classes = []
"""
    found = run(nowhere + USES).split()
    assert found[1] == "True"
    assert found[0] == run(USES, **{backend.PORTABLE: "1"}).split()[0]


def test_numba_waits_until_it_pays(monkeypatch):
    code = """
import sys
backend.LOADING_PAYS = 2**20
for _ in range(100):
    fill_(torch.empty(64), Normal(1.0), key="w")
print("numba" in sys.modules)
fill_(torch.empty(2**20), Normal(1.0), key="w")
print("numba" in sys.modules)
"""
    assert run(code).split() == ["False", "True"]


def test_kernels_come_from_the_cache(tmp_path):
    code = (
        USES + "from fanin._rng.kernels import kernel\nprint(kernel('normal_32', 'float32').stats)"
    )
    first, second = (run(code, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert "cache_misses=Counter({(UniTuple" in first
    assert "cache_hits=Counter({(UniTuple" in second


# Memory, dispatch


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", ["contiguous", "transposed"])
def test_extra_memory_does_not_grow(dtype, view):
    """Below 1 MiB whatever the size: numpy's buffers as tracemalloc counts them, and torch's none."""
    tensor = torch.empty(2000, 1000, dtype=dtype)
    tensor = tensor.T if view == "transposed" else tensor
    fill(tensor[:10], Normal(1.0))
    tracemalloc.start()
    fill(tensor, Normal(1.0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_runs():
    assert runs(np.array([3])) == [(0, 3, 1)]
    assert runs(np.array([4, 5, 6])) == [(0, 4, 3)]
    assert runs(range(0, 6, 2)) == [(0, 0, 1), (1, 2, 1), (2, 4, 1)]
    assert runs(np.array([2, 1, 0])) == [(0, 2, 1), (1, 1, 1), (2, 0, 1)]
    assert runs(np.array([7, 9, 8, 10])) == [(0, 7, 1), (1, 9, 1), (2, 8, 1), (3, 10, 1)]
    pick = np.random.default_rng(0).integers(0, 12, 200)
    spread = [i for _, first, n in runs(pick) for i in range(first, first + n)]
    assert spread == pick.tolist()


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ([(0, 0, 1)], [(0, 0, 500_001)]),
        ([(0, 5, 700)], [(0, 37, 999)]),
        ([(0, 5, 2), (2, 9, 3)], [(0, 37, 99_999), (99_999, 200_000, 10)]),
        ([(0, 0, 100_000)], [(0, 0, 3)]),
    ],
)
def test_parts_cover_the_grid_once(rows, columns, threads):
    covered = np.zeros((sum(n for *_, n in rows), sum(n for *_, n in columns)), int)
    row_of = np.concatenate([np.arange(first, first + n) for _, first, n in rows])
    column_of = np.concatenate([np.arange(first, first + n) for _, first, n in columns])
    for (i, row, height), (j, column, width) in backend._parts(rows, columns, threads):
        covered[i : i + height, j : j + width] += 1
        assert (row_of[i : i + height] == np.arange(row, row + height)).all()
        assert (column_of[j : j + width] == np.arange(column, column + width)).all()
        assert column % backend.RUN == 0 or column in [first for _, first, _ in columns]
    assert (covered == 1).all()
