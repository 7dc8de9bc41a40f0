"""The GPU kernel against the specification, bit for bit, in Triton's interpreter on the CPU.

tests/test_gpu.py runs this file in a process of its own, since the interpreter changes Triton for all
that follows. By hand: TRITON_INTERPRET=1 pytest tests/gpu_interpreted.py
"""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
import torch

from fanin import InvalidValueError, _fill, fill_
from fanin import _rng as rng
from fanin._rng import Elements, Stream, backend, gpu
from fanin.distributions import (
    BoundedNormal,
    Normal,
    TruncatedNormal,
    Uniform,
    distribution_from_dict,
)
from golden import make

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton's interpreter is off: TRITON_INTERPRET=1", allow_module_level=True)
# numpy, which stands for the GPU here, warns of what becomes infinite.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

INF = math.inf
LAWS = [
    Normal(0.02, 0.5),
    Uniform(-0.1, 0.3),
    TruncatedNormal(0.5, 1.3, 0.7),
    TruncatedNormal(0.02, 3.0),
    TruncatedNormal(1.0, 4.5),
    BoundedNormal(0.0, 0.5, -0.3, 0.7),
    BoundedNormal(0.0, 1.0, 6.0, INF),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES = [1, 15, 16, 17, 63, 64, 65, 1000]
OUTSIDE = 7.0  # what memory holds that is not to be written
SHAPES = {name: getattr(gpu, name) for name in ("FEW_ROWS", "USUAL", "NARROW")}


LARGE = {"FEW_ROWS": (1, 32), "USUAL": (16, 32), "NARROW": (64, 2)}


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    """On CPU tensors; by larger programs than on a GPU, since each takes a tenth of a second."""
    monkeypatch.setattr(gpu, "reaches", lambda tensor: True)
    monkeypatch.setattr(_fill, "_known", {})
    for shape, value in LARGE.items():
        monkeypatch.setattr(gpu, shape, value)


def drawn(tensor, law, *, key="w", seed=3):
    """The tensor, filled by the GPU kernel."""
    shard, sample = _fill._sampler(law, tensor, Stream(key, seed))
    memory, stream = _fill._memory(tensor), sample.target.stream
    assert gpu.into(tensor, memory, sample.draw, stream, rows=shard.rows, columns=shard.columns)
    return tensor


def portable(law, shape, dtype):
    """What the specification says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(backend.PORTABLE, "1")
        patch.setattr(gpu, "reaches", lambda tensor: False)
        return fill_(torch.empty(shape, dtype=dtype), law, key="w", seed=3)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits(a), bits(b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_the_kernel_draws_what_the_specification_says(law, dtype):
    assert same(drawn(torch.empty(7, 150, dtype=dtype), law), portable(law, (7, 150), dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits(dtype):
    law = TruncatedNormal(0.5, 3.0)
    assert same(drawn(torch.empty(7, 150, dtype=dtype), law), portable(law, (7, 150), dtype))


@pytest.mark.parametrize("shape", [*((n,) for n in SIZES), (33, 5), (5, 2, 3, 3), (1, 1), ()])
def test_sizes(shape):
    law, dtype = Normal(1.0), torch.bfloat16
    assert same(drawn(torch.empty(shape, dtype=dtype), law), portable(law, shape, dtype))


def test_nothing():
    assert fill_(torch.empty(0), Normal(1.0), key="w").shape == (0,)
    assert fill_(torch.empty(3, 0), Normal(1.0), key="w").shape == (3, 0)


@pytest.mark.parametrize("shape", [(2100,), (9, 260), (40, 70)], ids=str)
def test_programs_as_on_a_gpu(shape, monkeypatch):
    for name, value in SHAPES.items():
        monkeypatch.setattr(gpu, name, value)
    law = Normal(0.02, 0.5)
    assert same(drawn(torch.empty(shape), law), portable(law, shape, torch.float32))


@pytest.mark.parametrize(
    ("shape", "view"),
    [
        pytest.param((65, 70), lambda t: t.T, id="transposed"),
        pytest.param((9, 200), lambda t: t[:, 3:133], id="rows of a wider one"),
        pytest.param((40, 300), lambda t: t[1::2, 5::3], id="stepped"),
        pytest.param((40, 130), lambda t: t[::2], id="every other row"),
        pytest.param((6, 3, 3, 20), lambda t: t.permute(0, 3, 1, 2), id="channels last"),
        pytest.param(
            (6, 3, 3, 20), lambda t: t.permute(0, 3, 1, 2)[1::2, 2:15], id="channels last, sliced"
        ),
        pytest.param((400,), lambda t: t[3::2], id="1-D stepped"),
        pytest.param((400,), lambda t: t[3:], id="1-D offset"),
        pytest.param((300, 4), lambda t: t[:, 2], id="column"),
    ],
)
def test_layouts(shape, view):
    """What lies around the view stays."""
    dtype = torch.bfloat16
    memory = torch.full(shape, OUTSIDE, dtype=dtype)
    part = view(memory)
    assert same(drawn(part, Normal(0.02, 0.5)), portable(Normal(0.02, 0.5), part.shape, dtype))
    part.fill_(OUTSIDE)
    assert (memory == OUTSIDE).all()


def table(draw, rows, columns, dtype=torch.float32):
    """A part of a stream's table, by the kernel."""
    out = torch.full((len(rows), len(columns)), OUTSIDE, dtype=dtype)
    memory = _fill._memory(out)
    assert gpu.into(out, memory, draw, Stream("w", 3), rows=rows, columns=columns)
    return out.numpy()


def test_any_rows_and_columns():
    """Offsets at every lane, stretches and single indices, in any order."""
    draw = rng.laws.normal(1.0, 0.0, np.float32)
    spec = draw.portable(Elements(Stream("w", 3), np.arange(12), np.arange(2000)))
    for start in [0, 1, 17, 47, 63, 64, 257]:
        columns = range(start, start + 130)
        assert np.array_equal(table(draw, range(2, 4), columns), spec[2:4, columns])
    rows, columns = np.array([4, 5, 2]), np.r_[7, 300:340, 20:90]
    assert np.array_equal(table(draw, rows, columns), spec[np.ix_(rows, columns)])


def test_far_rows_and_columns():
    draw = rng.laws.uniform(0.0, 1.0, np.float32)
    rows, columns = np.array([0, 2**31, 2**32 - 1]), np.arange(2**34 - 70, 2**34)
    spec = draw.portable(Elements(Stream("w", 3), rows, columns))
    assert np.array_equal(table(draw, rows, columns), spec)
    with pytest.raises(InvalidValueError, match="column indices must lie in"):
        table(draw, range(1), range(2**34 - 5, 2**34 + 1))
    with pytest.raises(InvalidValueError, match="row indices must lie in"):
        table(draw, range(2**32, 2**32 + 1), range(1))


@pytest.mark.parametrize(
    "law",
    [
        Normal(3e38),
        Normal(1e-40, 1e-42),
        Normal(0.0, -0.0),
        Uniform(-3.4e38, 3.4e38),
        Uniform(0.1, 0.1),
        TruncatedNormal(1.0, 1e300),
        TruncatedNormal(0.0, 2.0, 0.1),
        TruncatedNormal(1e-46, 2.0, -0.0),
        TruncatedNormal(1.0, 1e-34),
        BoundedNormal(0, 1, -1e308, 1e308),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_extreme_parameters(law, dtype):
    assert same(drawn(torch.empty(1500, dtype=dtype), law), portable(law, (1500,), dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1e-44, 1e-8, 1e-6, 1e-3, 2e4])
def test_rounding_to_16_bits(scale, dtype, monkeypatch):
    """Subnormals, ties and overflow to infinity, against torch's conversion of 1e5 values."""
    monkeypatch.setattr(gpu, "FEW_ROWS", (1, 2048))
    found = drawn(torch.empty(100_000, dtype=dtype), Normal(scale))
    assert same(found, portable(Normal(scale), (100_000,), torch.float32).to(dtype))


@pytest.mark.parametrize("shape", [(10**6 + 7,), (10**3 + 1, 10**3 + 9)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_million_and_seven(shape, dtype, monkeypatch):
    monkeypatch.setattr(gpu, "FEW_ROWS", (1, 16384))
    monkeypatch.setattr(gpu, "USUAL", (512, 16))
    assert same(drawn(torch.empty(shape, dtype=dtype), Normal(0.02, 0.5)), portable(Normal(0.02, 0.5), shape, dtype))  # fmt: skip


def has_kernel(case):
    """All but matrices, and the tails beyond 30 sigmas."""
    law, dtype = distribution_from_dict(case["law"]), getattr(torch, case["dtype"])
    if type(law) not in map(type, LAWS) or dtype not in DTYPES:
        return False
    _, sample = _fill._sampler(law, torch.empty(case["shape"], dtype=dtype), Stream(""))
    return sample.draw.law is not None


GOLDEN = [case for case in json.loads(make.PATH.read_text("utf-8"))["cases"] if has_kernel(case)]


def test_golden_cases_of_all_laws():
    assert {(c["law"]["kind"], c["dtype"]) for c in GOLDEN} == {
        (type(law).__name__, str(dtype)[6:]) for law in LAWS for dtype in DTYPES
    }


@pytest.mark.parametrize(
    "case", GOLDEN, ids=lambda c: f"{c['law']['kind']}-{c['shape']}-{c['dtype']}"
)
def test_golden(case, monkeypatch):
    monkeypatch.setattr(make, "fill_", drawn)
    assert make.outcome(case) == {k: case[k] for k in ("first", "blake2b")}


def test_fill_writes_through_it(monkeypatch):
    answers = []
    into = gpu.into

    def asking(*args, **kwargs):
        answers.append(into(*args, **kwargs))
        return answers[-1]

    monkeypatch.setattr(gpu, "into", asking)
    parameter = torch.nn.Parameter(torch.empty(5, 67))
    fill_(parameter, Normal(0.5), key="w", seed=3)
    assert same(parameter.detach(), portable(Normal(0.5), (5, 67), torch.float32))
    assert answers == [True]
    for dtype in (torch.complex64, torch.float8_e4m3fn):
        tensor = fill_(torch.empty(5, 67, dtype=dtype), Normal(0.5), key="w", seed=3)
        assert same(tensor, portable(Normal(0.5), (5, 67), dtype))
    assert answers == [True]
