"""The kernels against the specification, bit for bit: every law, dtype, size, place and processor."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from fanin import InvalidValueError, fill_
from fanin import _rng as rng
from fanin._rng import Elements, Stream, backend, single
from fanin._rng.backend import Draw, Memory
from fanin.distributions import (
    BoundedNormal,
    Normal,
    Orthogonal,
    Sparse,
    TruncatedNormal,
    Uniform,
)
from golden.make import PATH, outcome
from portable import specified

kernels = pytest.importorskip("fanin._rng.kernels")
machine = pytest.importorskip("fanin._rng.machine")

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

F32, F64 = np.float32, np.float64
# Each kernel there is, with numbers to draw.
DRAWS = {
    ("uniform_32", F32): rng.laws.uniform(-0.1, 0.3, F32),
    ("uniform_64", F64): rng.laws.uniform(-0.1, 0.3, F64),
    ("normal_32", F32): rng.laws.normal(0.02, 0.5, F32),
    ("normal_64", F64): rng.laws.normal(0.02, 0.5, F64),
    ("truncated_2", F32): rng.laws.truncated_normal(1.0, 1.7, 0.1, F32),
    ("truncated_3", F32): rng.laws.truncated_normal(1.0, 3.0, 0.1, F32),
    ("window_32", F32): rng.laws.bounded_normal(0.0, 1.0, (-1.0, 9.0), (-1.0, 9.0), F32),
    ("window_64", F64): rng.laws.bounded_normal(0.0, 1.0, (6.5, INF), (6.5, INF), F64),
}
NARROW = {"float32": F32, "bfloat16": F32, "float16": F32, "float64": F64}
KERNELS = [(draw, dtype) for (_, real), draw in DRAWS.items() for dtype, r in NARROW.items() if r is real]  # fmt: skip


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
    with specified():
        return fill(torch.empty(shape, dtype=dtype), law)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits(a), bits(b))


@pytest.fixture
def written(monkeypatch):
    """Counts the fills that a kernel wrote straight into memory, the long way."""
    count = []
    into = Draw.into

    def counted(self, *args, **kwargs):
        done = into(self, *args, **kwargs)
        count.append(done)
        return done

    monkeypatch.setattr(Draw, "into", counted)
    monkeypatch.setattr("fanin._fill.recall", lambda *_: None)
    return count


def test_every_kernel_is_tested():
    assert {draw.law for draw in DRAWS.values()} == set(kernels.LAWS)
    assert [law for law, _ in DRAWS] == [draw.law for draw in DRAWS.values()]


# Bit equality


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_kernels_draw_what_the_specification_says(law, dtype, written):
    for shape in [*[(n,) for n in SIZES], *SHAPES, ()]:
        expected = portable(law, shape, dtype)
        del written[:]
        assert same(fill(torch.empty(shape, dtype=dtype), law), expected), shape
        assert written == [True] * (shape != (0,)), shape


VIEWS = {
    "transposed": ((65, 70), lambda t: t.T),
    "transposed and wide": ((2100, 40), lambda t: t.T),
    "rows of a wider one": ((9, 200), lambda t: t[:, 3:133]),
    "stepped": ((40, 300), lambda t: t[1::2, 5::3]),
    "every other row": ((40, 130), lambda t: t[::2]),
    "channels last": ((6, 3, 3, 20), lambda t: t.permute(0, 3, 1, 2)),
    "channels last in 3-D": ((2, 3, 4, 5, 6), lambda t: t.permute(0, 4, 1, 2, 3)),
    "the other axis first": ((30, 5, 7), lambda t: t.transpose(0, 1)),
    "taps cut off": ((6, 20, 9), lambda t: t[:, :, 2:7]),
    "every other tap": ((6, 20, 9), lambda t: t[:, :, ::2]),
    "1-D stepped": ((400,), lambda t: t[3::2]),
    "1-D offset": ((400,), lambda t: t[3:]),
    "column": ((300, 4), lambda t: t[:, 2]),
    "one element": ((30, 4), lambda t: t[3:4, 2:3]),
}
COPIED = {
    "three levels": ((4, 6, 7, 8), lambda t: t[:, ::2, ::2, ::3]),
    "axes in reverse": ((7, 6, 5, 40), lambda t: t.permute(3, 2, 1, 0)[:, ::2, ::2]),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_layouts(law, dtype, written):
    """Where the tensor lies, if its columns have at most two strides; what lies around it stays."""
    for name, (shape, view) in (VIEWS | COPIED).items():
        memory = torch.full(shape, OUTSIDE, dtype=dtype)
        part = view(memory)
        expected = portable(law, part.shape, dtype)
        del written[:]
        fill(part, law)
        assert same(part, expected), name
        # What cannot be written in place is drawn into a block, by a kernel too.
        assert all(written), name
        assert len(written) == 1, name
        part.fill_(OUTSIDE)
        assert (memory == OUTSIDE).all(), name


@pytest.mark.parametrize(("draw", "dtype"), KERNELS, ids=lambda x: getattr(x, "law", x))
def test_offsets_at_every_lane(draw, dtype):
    """Runs that begin and end anywhere in a tile, and rows anywhere."""
    write = loaded(draw.law, dtype)
    spec = expected(draw, dtype, range(4), range(1300))
    for start in [*range(67), 1023, 1024, 1025]:
        for width in (1, 16, 64, 65, 200):
            found = drawn(write, draw, dtype, range(2, 4), range(start, start + width))
            assert np.array_equal(found, spec[2:4, start : start + width]), (start, width)


def loaded(law, dtype, processor=None):
    return kernels.kernel(law, dtype, processor)


loaded = cache(loaded)


def expected(draw, dtype, rows, columns):
    with np.errstate(over="ignore"):
        values = draw.portable(Elements(Stream("w", 3), np.array(rows), np.array(columns)))
    return backend.ROUNDED.get(dtype, lambda x: x.view(f"u{x.itemsize}"))(values)


def drawn(write, draw, dtype, rows, columns):
    """The bits that a kernel writes, and nothing beside them."""
    kind = {"float32": np.uint32, "float64": np.uint64}.get(dtype, np.uint16)
    memory = np.full((len(rows) + 2, len(columns) + 2), 77, kind)
    size = memory.itemsize
    where = Memory(memory[1:, 1:].ctypes.data, memory.strides[0], dtype, size, size)
    box = (0, rows[0], len(rows)), (0, columns[0], len(columns))
    write(where.place(*box) + draw.what(Stream("w", 3).words))
    inside = memory[1:-1, 1:-1].copy()
    memory[1:-1, 1:-1] = 77
    assert (memory == 77).all()
    return inside


@pytest.mark.parametrize("real", [np.float32, np.float64], ids=["fp32", "fp64"])
def test_any_rows_and_columns(real):
    """Stretches and single indices, in any order."""
    pick = np.random.default_rng(0)
    draw = rng.laws.normal(1.0, 0.0, real)
    stream = Stream("w", 3)
    spec = draw.portable(Elements(stream, np.arange(9), np.arange(3000)))
    for columns in (pick.integers(0, 3000, 50), np.arange(0, 3000, 7), np.arange(3000)[::-1]):
        rows = pick.integers(0, 9, 5)
        found = draw(Elements(stream, rows, columns))
        assert np.array_equal(found, spec[np.ix_(rows, columns)])


@pytest.mark.parametrize("run", [0, 7])
def test_any_rows_and_columns_into_any_strides(run):
    """As a shard with index vectors is filled: positions count in memory, indices in the draw."""
    draw, stream = rng.laws.normal(1.0, 0.0, np.float32), Stream("w", 3)
    rows, columns = np.array([5, 6, 2, 900]), np.array([*range(60, 75), 3, *range(200, 240)])
    spec = draw.portable(Elements(stream, rows, columns))
    memory = np.full(60_000, OUTSIDE, np.float32)
    size, step, stride, run_step = 4, 3, 10_000, 100
    where = Memory(memory.ctypes.data, stride * size, "float32", size, step * size, run, run_step * size)  # fmt: skip
    assert draw.into(where, stream, rows, columns, threads=1)
    for i in range(4):
        for j in range(columns.size):
            at = i * stride + (j // run * run_step + j % run * step if run else j * step)
            assert memory[at] == spec[i, j]
            memory[at] = OUTSIDE
    assert (memory == OUTSIDE).all()


def test_far_rows_and_columns():
    draw = rng.laws.uniform(0.0, 1.0, np.float64)
    far = Elements(Stream("w", 3), np.array([0, 2**31, 2**32 - 1]), np.arange(2**34 - 200, 2**34))
    assert np.array_equal(draw(far), draw.portable(far))
    with pytest.raises(InvalidValueError, match="column indices must lie in"):
        draw(Elements(Stream("w"), np.array([0]), np.arange(2**34 - 5, 2**34 + 1)))
    with pytest.raises(InvalidValueError, match="row indices must lie in"):
        memory = Memory(0, 0, "float64", 8, 8)
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


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_rounding_of_every_kind_of_number(name):
    """2^20 bit patterns, subnormal to infinite, of both signs, against torch's conversion."""
    pattern = np.arange(0, 2**32, 2**12, dtype=np.uint32) + np.uint32(0x7FF)
    patterns = np.concatenate([pattern, np.uint32(0x1000) * np.arange(2**20, dtype=np.uint32)])
    x = patterns.view(np.float32)
    x = x[~np.isnan(x)]
    expected = torch.from_numpy(x).to(getattr(torch, name)).view(torch.int16).numpy()
    assert np.array_equal(getattr(single, name)(x), expected.view(np.uint16))


def test_other_dtypes_draw_through_the_kernels_too(written):
    for dtype in (torch.complex64, torch.complex128, torch.float8_e4m3fn):
        law = Normal(0.5, 0.1)
        assert same(fill(torch.empty(7, 130, dtype=dtype), law), portable(law, (7, 130), dtype))
    for law in (Orthogonal(), Sparse(0.3, 0.5)):
        assert same(fill(torch.empty(70, 65), law), portable(law, (70, 65), torch.float32))
    assert sum(written) >= 5


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_do_not_matter(dtype, threads):
    law = Normal(0.02, 0.5)
    for shape in [(300, 700), (2, 100_001), (200_003,), (66_000, 3)]:
        torch.set_num_threads(threads)
        found = [fill(torch.empty(shape, dtype=dtype), law)]
        if len(shape) == 2:
            found.append(fill(torch.empty(shape[::-1], dtype=dtype).T, law))
        torch.set_num_threads(1)
        expected = portable(law, shape, dtype)
        assert all(same(f, expected) for f in found)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_growth_keeps_the_old_block(law, dtype):
    small = fill(torch.empty(5, 67, dtype=dtype), law)
    for rows, columns in ((9, 67), (5, 1130), (9, 1130)):
        grown = fill(torch.empty(rows, columns, dtype=dtype), law)
        assert same(grown[:5, :67], small)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_million_and_seven(law, dtype, threads):
    for shape in [(10**6 + 7,), (10**3 + 1, 10**3 + 9)]:
        torch.set_num_threads(threads)
        found = fill(torch.empty(shape, dtype=dtype), law)
        torch.set_num_threads(1)
        assert same(found, portable(law, shape, dtype))


GOLDEN = json.loads(PATH.read_text("utf-8"))["cases"]


@pytest.mark.parametrize(
    "case", GOLDEN, ids=lambda c: f"{c['law']['kind']}-{c['shape']}-{c['dtype']}"
)
def test_golden(case):
    assert outcome(case) == {k: case[k] for k in ("first", "blake2b")}


# Other processors

PLAIN = machine.Machine("x86-64", "")
AVX2 = machine.Machine("haswell", "+avx2,+fma,+bmi,+bmi2,-avx512f")
AVX512 = machine.Machine("skylake-avx512", "+avx512f,+avx512dq,+avx512vl,+avx512bw,+fma,+avx2")
PROCESSORS = {"plain": PLAIN, "avx2": AVX2, "avx512": AVX512}
NEEDS = {"plain": (), "avx2": ("avx2", "fma", "bmi2"), "avx512": ("avx512dq", "avx512vl", "avx512bw")}  # fmt: skip


def processor(name):
    import llvmlite.binding

    has = llvmlite.binding.get_host_cpu_features()
    if not os.uname().machine.startswith("x86") or not all(has.get(f, False) for f in NEEDS[name]):
        pytest.skip(f"this machine cannot run code for {name}")
    return PROCESSORS[name]


def quick(draw, dtype):
    """Windows take longest to compile, and differ from one another by their last steps alone."""
    slow = draw.law == "window_32" and dtype != "float32"
    return pytest.param(draw, dtype, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize(
    ("draw", "dtype"), [quick(*k) for k in KERNELS], ids=lambda x: getattr(x, "law", x)
)
def test_processors_agree(draw, dtype, name):
    """Bits of whole tiles, of parts of them and of many rows: the instructions differ, no value does."""
    write = kernels.kernel(draw.law, dtype, processor(name))
    for rows, columns in ((range(3, 5), range(5, 1301)), (range(40), range(64, 128)), (range(1), range(1))):  # fmt: skip
        found = drawn(write, draw, dtype, rows, columns)
        assert np.array_equal(found, expected(draw, dtype, rows, columns))


ARM = machine.Machine("neoverse-n1", "", "aarch64-unknown-linux-gnu")
FUSED = r"\bv?f[mn]\w*(add|sub)\w*|\bfml[as]\b"  # vfmadd231ps, fmadd, fnmsub, fmla, fmls


@pytest.mark.parametrize("name", ["avx512", "arm"])
@pytest.mark.parametrize("law", kernels.LAWS)
def test_no_operation_is_fused(law, name):
    """Both of these processors have fused multiply-add, which rounds once where the law rounds twice."""
    dtype = "float64" if law.endswith("64") else "float32"
    target = ARM if name == "arm" else PROCESSORS[name]
    if name == "arm" and not _compiles_for(ARM.triple):
        pytest.skip("this LLVM makes no code for ARM")
    text = machine.assembly(kernels.program(law, dtype), target)
    assert re.search(r"\bv?f?mul(ps|pd)?\b", text)
    assert not re.findall(FUSED, text)


def _compiles_for(triple):
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    try:
        llvm.Target.from_triple(triple)
    except RuntimeError:
        return False
    return True


def test_the_search_for_fused_operations_finds_them():
    for found in ("vfmadd231ps %zmm0, %zmm1, %zmm2", "fmla v0.4s, v1.4s, v2.4s", "fmadd s0, s1, s2, s3", "vfnmsub132pd %ymm0"):  # fmt: skip
        assert re.search(FUSED, found)
    assert not re.search(FUSED, "vmulps %zmm0, %zmm1, %zmm2 fmul v0.4s")


@pytest.mark.parametrize(
    ("name", "register"), [("plain", "xmm"), ("avx2", "ymm"), ("avx512", "zmm")]
)
def test_the_arithmetic_fills_the_registers(name, register):
    """Products of whole vectors, of which a normal takes 27 for each pair of lanes."""
    text = machine.assembly(kernels.program("normal_32", "float32"), PROCESSORS[name])
    products = re.findall(r"\bv?mul(ps|ss)\b.*%(\w)mm", text)
    assert products.count(("ps", register[0])) >= 54
    assert ("ss", "x") not in products


# Other circumstances: fresh processes

COMMON = """
import sys, torch, warnings
warnings.simplefilter("error")
from fanin import fill_
from fanin._rng import backend
from fanin.distributions import *
torch.set_num_threads(1)
"""
USES = """
tensor = fill_(torch.empty(5000), Normal(1.0), key="w", seed=3)
print(float(tensor.double().sum()), "fanin._rng.kernels" in sys.modules)
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


def test_portable_where_llvmlite_is_missing():
    found = run("sys.modules['llvmlite'] = None\nbackend.LOADING_PAYS = 0\n" + USES).split()
    expected = run(USES, **{backend.PORTABLE: "1"}).split()
    assert found == expected == [expected[0], "False"]


def test_kernels_wait_until_they_pay():
    code = """
for _ in range(100):
    fill_(torch.empty(64), Normal(1.0), key="w")
print("llvmlite" in sys.modules)
fill_(torch.empty(2**20), Normal(1.0), key="w")
print("llvmlite" in sys.modules)
"""
    assert run(code).split() == ["False", "True"]
    assert run(code, **{backend.PORTABLE: "1"}).split() == ["False", "False"]
