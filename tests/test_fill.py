"""The writer: every distribution, dtype, layout; what it refuses; that it leaves the rest alone."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from fanin import InvalidValueError, ModelError, _fill
from fanin._drawers import DRAWERS, inward
from fanin._fill import CHUNK, fill_, prepared, write
from fanin._rng import Stream, backend
from fanin.distributions import (
    DISTRIBUTIONS,
    BoundedNormal,
    Constant,
    DeltaOrthogonal,
    Dirac,
    Identity,
    Kept,
    LooksLinear,
    Normal,
    Orthogonal,
    Sparse,
    TruncatedNormal,
    Uniform,
)
from golden.make import PATH, cases, outcome
from portable import specified

INF = math.inf
ELEMENTWISE = [
    Constant(0.1),
    Normal(0.02, 0.5),
    Uniform(-0.1, 0.3),
    TruncatedNormal(1.0, 2.0),
    TruncatedNormal(1.0, 3.0),
    TruncatedNormal(1.0, 4.0),
    BoundedNormal(0.0, 1.0, 1.0, INF),
]
MATRICES = [Orthogonal(2.0), Identity(-2.0), Sparse(0.3, 0.5)]
KERNELS = [DeltaOrthogonal(), Dirac(2), LooksLinear(centre=True)]
LAWS = [*ELEMENTWISE, *MATRICES, *KERNELS]
SHAPES = {
    Orthogonal: (9, 7),
    Identity: (9, 7),
    Sparse: (9, 7),
    DeltaOrthogonal: (6, 4, 3, 2),
    LooksLinear: (6, 4, 3, 2),
    Dirac: (6, 4, 3, 2),
}
NARROW = [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]


def shape_for(law):
    return SHAPES.get(type(law), (6, 4, 3, 5))


def drawn(law, shape=None, dtype=torch.float32, key="w", seed=3):
    return fill_(
        torch.empty(shape_for(law) if shape is None else shape, dtype=dtype),
        law,
        key=key,
        seed=seed,
    )


def same(a, b):
    return a.shape == b.shape and torch.equal(*(x.reshape(-1).view(torch.uint8) for x in (a, b)))


def test_every_distribution_can_be_drawn():
    assert set(DRAWERS) == set(DISTRIBUTIONS.values()) == {type(law) for law in LAWS} | {Kept}


def test_what_is_kept_is_not_drawn():
    with pytest.raises(InvalidValueError, match="Kept"):
        fill_(torch.ones(3), Kept(), key="w")


# Golden vectors

GOLDEN = json.loads(PATH.read_text("utf-8"))["cases"]


def test_golden_cases_are_those_of_the_maker():
    assert [
        {k: case[k] for k in ("law", "shape", "dtype", "key", "seed")} for case in GOLDEN
    ] == cases()


@pytest.mark.parametrize(
    "case", GOLDEN, ids=lambda c: f"{c['law']['kind']}-{c['shape']}-{c['dtype']}"
)
def test_golden(case):
    assert outcome(case) == {k: case[k] for k in ("first", "blake2b")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "machine",
    [
        {
            "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX2 FMA3"
        },
        {"OPENBLAS_CORETYPE": "NEHALEM", "ATEN_CPU_CAPABILITY": "default"},
        {"OPENBLAS_CORETYPE": "HASWELL", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "2"},
    ],
    ids=str,
)
def test_golden_on_other_machines(machine):
    check = "from golden.make import *; assert [outcome(c) for c in cases()] == [{k: c[k] for k in ('first', 'blake2b')} for c in json.loads(PATH.read_text('utf-8'))['cases']]"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", check],
        check=True,
        cwd=Path(__file__).parent,
        env=os.environ | machine,
    )


# A value depends on its coordinates alone


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_strides_do_not_matter(law):
    shape = shape_for(law)
    whole = drawn(law)
    reversed_strides = torch.empty(shape[::-1]).permute(*reversed(range(len(shape))))
    spaced = torch.full([2 * n for n in shape], math.nan)[tuple(slice(1, None, 2) for _ in shape)]
    views = [reversed_strides, spaced]
    if len(shape) == 4:
        views.append(torch.empty(shape).contiguous(memory_format=torch.channels_last))
    for view in views:
        assert not view.is_contiguous()
        assert same(fill_(view, law, key="w", seed=3), whole)


def test_a_slice_leaves_its_surroundings_alone():
    tensor = torch.full((8, 6), 7.0)
    fill_(tensor.narrow(0, 2, 3), Normal(1.0), key="q")
    assert (tensor[:2] == 7).all()
    assert (tensor[5:] == 7).all()
    assert same(tensor[2:5], drawn(Normal(1.0), (3, 6), key="q", seed=0))


@pytest.mark.parametrize("law", ELEMENTWISE, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_growth_keeps_the_old_block(law, dtype):
    small, large = drawn(law, (5, 67), dtype), drawn(law, (9, 130), dtype)
    assert same(large[:5, :67], small)
    assert same(drawn(law, (9, 8, 3, 3), dtype)[:4, :5], drawn(law, (4, 5, 3, 3), dtype))
    long = drawn(law, (200,), dtype)
    for n in (0, 1, 15, 16, 17, 63, 64, 65):
        assert same(long[:n], drawn(law, (n,), dtype))
    assert same(drawn(law, (), dtype), long[0])
    assert same(drawn(law, (1, 200), dtype)[0], long)
    assert same(drawn(law, (7, 2, 3), dtype).reshape(7, 6), drawn(law, (7, 6), dtype))


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("chunk", [1, 50, 64, 10**9])
def test_chunks_do_not_matter(law, chunk, monkeypatch):
    whole, rows_only = (
        drawn(law),
        drawn(law).permute(*reversed(range(len(shape_for(law))))).contiguous(),
    )
    monkeypatch.setattr("fanin._fill.CHUNK", chunk)
    assert same(drawn(law), whole)
    view = torch.empty_like(rows_only).permute(*reversed(range(rows_only.dim())))
    assert same(fill_(view, law, key="w", seed=3), whole)


def test_large_tensors_are_written_in_pieces():
    flat = drawn(Normal(1.0), (3 * CHUNK + 5,))
    assert same(flat[2 * CHUNK :][:100], drawn(Normal(1.0), (2 * CHUNK + 100,))[2 * CHUNK :])
    assert float(flat.std()) == pytest.approx(1.0, abs=4 / math.sqrt(2 * flat.numel()))


def test_key_and_seed_name_the_stream():
    base = drawn(Normal(1.0), (64,))
    assert same(drawn(Normal(1.0), (64,)), base)
    assert not (drawn(Normal(1.0), (64,), key="v") == base).any()
    assert not (drawn(Normal(1.0), (64,), seed=4) == base).any()


def test_scale_follows_std_exactly():
    assert same(drawn(Normal(2.0), (100,)), 2 * drawn(Normal(1.0), (100,)))


def test_the_generators_of_torch_and_numpy_are_not_touched():
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes()
    for law in LAWS:
        drawn(law)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tobytes() == before[1]


# Dtypes


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(
    "law", [law for law in LAWS if not isinstance(law, BoundedNormal)], ids=str
)
def test_narrow_dtypes_are_fp32_rounded_once(law, dtype):
    assert same(drawn(law, dtype=dtype), drawn(law).to(dtype))


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1.0, 2e4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_at_every_scale(scale, dtype):
    """Subnormals, ties and overflow to infinity, against torch's conversion of 1e5 values."""
    assert same(drawn(Normal(scale), (100_000,), dtype), drawn(Normal(scale), (100_000,)).to(dtype))


@pytest.mark.parametrize(
    "law",
    [
        Normal(1.0),
        Uniform(-1, 1),
        TruncatedNormal(1.0, 2.0),
        TruncatedNormal(1.0, 3.0),
        Orthogonal(),
    ],
    ids=str,
)
def test_fp32_is_near_fp64(law):
    """The bound in full is in test_rng.py; here no value of 40 000 is farther than 1e-6."""
    error = drawn(law, (200, 200), torch.float64) - drawn(law, (200, 200))
    assert error.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [*NARROW, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("low", "high"), [(-0.3, 0.7), (0.1001, 0.35), (-2.01, -0.99), (1.0, INF), (-INF, 0.3)]
)
def test_bounded_normal_is_never_outside(low, high, dtype):
    value = drawn(BoundedNormal(0.0, 0.5, low, high), (20_000,), dtype).double()
    assert low <= value.min()
    assert value.max() <= high


@given(st.floats(-1e4, 1e4), st.sampled_from([*NARROW, torch.float32]))
@settings(deadline=None)
def test_inward_bounds_are_the_nearest(x, dtype):
    """No number of the dtype lies between x and the bound: half way rounds to neither side."""
    top = torch.finfo(dtype).max
    x = min(max(x, -top), top)
    least, greatest = inward(x, x, dtype)
    assert greatest <= x <= least
    for bound in (least, greatest):
        assert float(torch.tensor(bound, dtype=torch.float64).to(dtype)) == bound
    assert float(torch.tensor(x, dtype=torch.float64).to(dtype)) in (least, greatest)


def test_a_complex_normal_is_torchs_in_law():
    value = drawn(Normal(0.5, 2.0), (300, 200), torch.complex64)
    scale = 0.5 / math.sqrt(2)
    for part, mean in ((value.real, 2.0), (value.imag, 0.0)):
        assert float(part.mean()) == pytest.approx(mean, abs=4 * scale / math.sqrt(60_000))
        assert float(part.std()) == pytest.approx(scale, rel=4 / math.sqrt(120_000))
    reference = torch.empty(300, 200, dtype=torch.complex64).normal_(2.0, 0.5)
    assert float(value.std()) == pytest.approx(float(reference.std()), rel=0.02)


def test_complex_parts_have_columns_of_their_own():
    value = drawn(Normal(1.0), (5, 40), torch.complex64)
    parts = drawn(Normal(1.0 / math.sqrt(2)), (5, 80)).reshape(5, 40, 2)
    assert same(torch.view_as_real(value), parts)


def test_conjugate_and_negative_views():
    value = drawn(Normal(1.0), (9,), torch.complex64)
    assert torch.equal(
        fill_(
            torch.empty(9, dtype=torch.complex64).conj(), Normal(1.0), key="w", seed=3
        ).resolve_conj(),
        value,
    )
    part = torch.zeros(9, dtype=torch.complex64).conj().imag
    assert part.is_neg()
    assert torch.equal(
        fill_(part, Normal(1.0), key="w", seed=3).resolve_neg(), drawn(Normal(1.0), (9,))
    )


# Matrices


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float64,
        torch.bfloat16,
        torch.float16,
        torch.complex64,
        torch.complex128,
    ],
)
@pytest.mark.parametrize(
    "shape", [(6, 6), (40, 7), (7, 40), (8, 3, 3, 3), (20, 2, 3), (1, 5), (5, 1), (150, 140)]
)
def test_orthogonal(shape, dtype):
    """Rows or columns orthonormal up to the dtype's rounding of each entry: eps sqrt(side)."""
    q = drawn(Orthogonal(2.0), shape, dtype).reshape(shape[0], -1).to(torch.complex128) / 2.0
    q = q if q.shape[0] >= q.shape[1] else q.mH
    error = (q.mH @ q - torch.eye(q.shape[1])).abs().max()
    assert error <= 4 * torch.finfo(dtype).eps + 1e-14


def test_orthogonal_accepts_channels_last():
    weight = torch.empty(8, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    assert same(fill_(weight, Orthogonal(), key="w", seed=3), drawn(Orthogonal(), (8, 4, 3, 3)))


@pytest.mark.parametrize("threads", [1, 2])
def test_orthogonal_does_not_depend_on_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = drawn(Orthogonal(), (260, 300), torch.float64)
    finally:
        torch.set_num_threads(before)
    torch.set_num_threads(1)
    assert same(found, drawn(Orthogonal(), (260, 300), torch.float64))


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (4, 6, 2, 4), (5, 5, 3), (4, 3, 1, 2, 3)])
def test_delta_orthogonal_is_orthogonal_at_the_centre(shape):
    weight = drawn(DeltaOrthogonal(3.0), shape, torch.float64)
    centre = weight[(slice(None), slice(None), *(k // 2 for k in shape[2:]))].clone()
    assert weight.count_nonzero() == centre.count_nonzero() == shape[0] * shape[1]
    tall = centre if shape[0] >= shape[1] else centre.T
    assert torch.allclose(
        tall.T @ tall, 9 * torch.eye(tall.shape[1], dtype=torch.float64), atol=1e-13
    )


def test_delta_orthogonal_convolution_keeps_norms():
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    y = torch.nn.functional.conv2d(
        x, drawn(DeltaOrthogonal(), (6, 4, 3, 3), torch.float64), padding=1
    )
    assert torch.allclose(y.norm(dim=1), x.norm(dim=1))


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize("inputs", [False, True])
def test_mirror_images(inputs, outputs, centre):
    """[[A, -A], [-A, A]], A the orthogonal matrix of the same name."""
    law = LooksLinear(1.5, outputs, inputs, centre)
    weight = drawn(law, (8, 6, 3, 3), torch.float64)
    block = weight[: 8 // (1 + outputs), : 6 // (1 + inputs)]
    kind = DeltaOrthogonal if centre else Orthogonal
    assert torch.equal(block, drawn(kind(1.5), block.shape, torch.float64))
    if outputs:
        assert torch.equal(weight[4:], -weight[:4])
    if inputs:
        assert torch.equal(weight[:, 3:], -weight[:, :3])
    assert float(weight.square().mean()) == pytest.approx(law.std_for(weight.shape) ** 2)


@pytest.mark.parametrize("act", ["relu", "gelu", "silu", "leaky_relu"])
def test_stacks_of_mirror_images_are_linear(act):
    """Three layers are c^2 A_3 A_2 A_1, with A_1 ... of the upper left blocks."""
    f = getattr(torch.nn.functional, act)
    first = drawn(LooksLinear(inputs=False), (32, 16), torch.float64, key="1")
    second = drawn(LooksLinear(), (24, 32), torch.float64, key="2")
    third = drawn(LooksLinear(outputs=False), (5, 24), torch.float64, key="3")
    x = torch.randn(10, 16, dtype=torch.float64)
    y = f(f(x @ first.T) @ second.T) @ third.T
    c = float(f(torch.tensor(2.0)) - f(torch.tensor(-2.0))) / 2
    linear = x @ first[:16].T @ second[:12, :16].T @ third[:, :12].T
    torch.testing.assert_close(y, c * c * linear, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(5, 4), (4, 5)])
def test_mirrored_dims_are_even(shape):
    with pytest.raises(InvalidValueError, match="must be even"):
        fill_(torch.empty(shape), LooksLinear(), key="w")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_identity_is_torchs(dtype):
    for shape in ((4, 4), (3, 5), (5, 3)):
        assert torch.equal(
            drawn(Identity(), shape, dtype), torch.nn.init.eye_(torch.empty(shape, dtype=dtype))
        )


@pytest.mark.parametrize(
    "shape", [(4, 4, 3), (4, 2, 3, 3), (2, 6, 2, 4), (8, 2, 3, 3, 3), (6, 1, 4, 5)]
)
@pytest.mark.parametrize("groups", [1, 2])
def test_dirac_is_torchs(shape, groups):
    assert torch.equal(
        drawn(Dirac(groups), shape), torch.nn.init.dirac_(torch.empty(shape), groups)
    )


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_sparse_has_the_exact_number_of_zeros(sparsity, dtype):
    weight = drawn(Sparse(sparsity, 0.5), (37, 300), dtype)
    assert ((weight == 0).sum(dim=0) == math.ceil(sparsity * 37)).all()
    kept = weight != 0
    assert torch.equal(weight[kept], drawn(Normal(0.5), (37, 300), dtype)[kept])


def test_sparse_counts_in_tall_columns():
    """Long enough that a selection does not happen to sort the whole column."""
    for rows in (1000, 20_000):
        weight = drawn(Sparse(0.37, 0.5), (rows, 70))
        assert ((weight == 0).sum(dim=0) == math.ceil(0.37 * rows)).all()


def test_sparse_zeros_are_anywhere():
    """Each row is zero in a share 10/37 of 3000 columns: N(811, 24^2) each; neighbours independent."""
    zero = (drawn(Sparse(0.26, 0.5), (37, 3000)) == 0).double()
    share = 10 / 37
    assert (
        (zero.sum(dim=1) - 3000 * share).abs() < 4.5 * math.sqrt(3000 * share * (1 - share))
    ).all()
    pairs = (zero[:, 1:] * zero[:, :-1]).mean()
    assert float(pairs) == pytest.approx(share**2, abs=5 * share / math.sqrt(37 * 3000))


def test_zeros_are_positive():
    for law in (Identity(-2.0), Sparse(0.5)):
        weight = drawn(law, (9, 7))
        assert not torch.signbit(weight[weight == 0]).any()


# What autograd and torch's modes see


def test_a_leaf_stays_a_leaf_and_its_version_moves_once():
    weight = torch.nn.Parameter(torch.empty(3 * CHUNK))
    before = weight._version
    assert fill_(weight, Normal(1.0), key="w") is weight
    assert weight.is_leaf
    assert weight.requires_grad
    assert weight.grad_fn is None
    assert weight._version == before + 1


def test_autograd_notices_that_a_saved_tensor_was_written():
    weight = torch.ones(3, requires_grad=True)
    other = torch.ones(3)
    y = (weight * other).sum()
    fill_(other, Normal(1.0), key="w")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_inference_tensors():
    with torch.inference_mode():
        made = torch.empty(5)
        inside = drawn(Normal(1.0), (5,))
    assert same(fill_(made, Normal(1.0), key="w", seed=3), drawn(Normal(1.0), (5,)))
    assert torch.equal(inside, made)


def test_grad_mode_is_left_as_it_was():
    for mode in (True, False):
        with torch.set_grad_enabled(mode):
            drawn(Normal(1.0))
            assert torch.is_grad_enabled() is mode


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3, 3)])
def test_empty_tensors(shape):
    for law in LAWS:
        try:
            law.std_for(shape)
        except ValueError:
            continue
        assert drawn(law, shape).shape == shape


def test_the_default_device_does_not_matter():
    tensor = torch.empty(4, 4)
    with torch.device("meta"):
        for law in (Normal(1.0), Orthogonal(), BoundedNormal(0, 1, -0.3, 0.7)):
            fill_(tensor, law, key="w", seed=3)
            assert same(tensor, drawn_on_cpu(law))


def drawn_on_cpu(law):
    with torch.device("cpu"):
        return drawn(law, (4, 4))


# Refusals: a clear message, and nothing written


@pytest.mark.parametrize(
    ("tensor", "law", "error", "message"),
    [
        (torch.ones(3, dtype=torch.int64), Normal(1.0), InvalidValueError, "floating point; got dtype torch.int64"),
        (torch.ones(3, dtype=torch.bool), Constant(0.0), InvalidValueError, "got dtype torch.bool"),
        (torch.ones(3, 1).expand(3, 4), Normal(1.0), ModelError, r"expanded tensor .* strides \(1, 0\)"),
        (torch.ones(3).to_sparse(), Normal(1.0), ModelError, "dense tensors; got layout torch.sparse_coo"),
        (torch.ones(3), Orthogonal(), InvalidValueError, r"2 or more dimensions; got shape \(3,\)"),
        (torch.ones(3, 3), Dirac(), InvalidValueError, "3 to 5 dimensions"),
        (torch.ones(3, 3, 3), Dirac(2), InvalidValueError, "divisible by groups"),
        (torch.ones(3, 3, 3), Sparse(0.5), InvalidValueError, "2 dimensions"),
        (torch.ones(3), "normal", InvalidValueError, "must be one of Constant, Normal, .*; got 'normal'"),
        (torch.ones(3), Normal, InvalidValueError, "must be one of Constant, Normal"),
        ([1.0], Normal(1.0), InvalidValueError, "torch.Tensor; got list"),
        (torch.ones(3, dtype=torch.complex64), Uniform(0, 1), InvalidValueError, "law of real numbers"),
        (torch.ones(3, dtype=torch.float16), Normal(1e6), InvalidValueError, "exceeds 6.55e.04"),
        (torch.ones(3, dtype=torch.float16), Constant(1e6), InvalidValueError, "exceeds 6.55e.04"),
        (torch.ones(3), Uniform(-1e39, 0), InvalidValueError, "exceeds 3.403e.38"),
        (torch.ones(3, dtype=torch.bfloat16), BoundedNormal(0, 1, 0.1001, 0.1002), InvalidValueError, "no torch.bfloat16 number lies within"),
    ],
    ids=str,
)  # fmt: skip
def test_refused_and_nothing_written(tensor, law, error, message):
    for call in (fill_, prepared):
        with pytest.raises(error, match=message):
            call(tensor, law, key="w", seed=0)
    if isinstance(tensor, torch.Tensor):
        assert (tensor.to_dense() if tensor.is_sparse else tensor).to(torch.complex64).eq(1).all()


@pytest.mark.parametrize(("key", "seed"), [(3, 0), ("w", -1), ("w", 2**64), ("w", 0.5)])
def test_bad_key_or_seed_writes_nothing(key, seed):
    tensor = torch.ones(3)
    with pytest.raises(InvalidValueError):
        fill_(tensor, Normal(1.0), key=key, seed=seed)
    assert (tensor == 1).all()


def test_tensors_without_numbers():
    with FakeTensorMode():
        fake = torch.empty(3)
    for tensor in (torch.empty(3, device="meta"), fake):
        with pytest.raises(ModelError, match="holds no numbers"):
            fill_(tensor, Normal(1.0), key="w")
        write(tensor, Normal(1.0), Stream("w"))
    with pytest.raises(InvalidValueError, match="2 or more dimensions"):
        write(torch.empty(3, device="meta"), Orthogonal(), Stream("w"))
    with pytest.raises(ModelError, match="lazy parameter"):
        fill_(torch.nn.LazyLinear(3).weight, Normal(1.0), key="w")


def test_write_fills_integers_where_values_are_fixed():
    for law, shape in ((Constant(2.0**40), (3,)), (Identity(3.0), (3, 3)), (Dirac(), (3, 3, 3))):
        whole = torch.empty(shape, dtype=torch.int64)
        write(whole, law, Stream("w"))
        assert torch.equal(whole, drawn(law, shape, torch.float64).long())
    with pytest.raises(InvalidValueError, match="needs a floating point tensor"):
        write(torch.empty(3, dtype=torch.int64), Normal(1.0), Stream("w"))


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        (BoundedNormal(0.0, 0.0, 1.0, 2.0), 1.0),
        (BoundedNormal(0.0, 1.0, 0.1, 0.1), 0.1),
        (BoundedNormal(0.0, 1e-320, -2.0, -1.0), -1.0),
        (TruncatedNormal(0.0, 2.0, 0.1), 0.1),
        (Uniform(0.1, 0.1), 0.1),
        (Normal(0.0, 0.1), 0.1),
        (Sparse(1.0), 0.0),
    ],
    ids=str,
)
def test_laws_without_spread(law, expected):
    assert torch.equal(drawn(law, (3, 4)), torch.full((3, 4), expected))


def test_dtypes_of_the_extremes():
    for law in (
        Normal(1e-45),
        Normal(3e38),
        Uniform(-3.4e38, 3.4e38),
        TruncatedNormal(1.0, 1e300),
        BoundedNormal(0, 1, -1e308, 1e308),
    ):
        assert not drawn(law, (1000,)).isnan().any()


@pytest.mark.slow
def test_speed_of_the_reference():
    import time

    tensor = torch.empty(2**21)
    start = time.process_time()
    fill_(tensor, Normal(1.0), key="w")
    assert (time.process_time() - start) / tensor.numel() < 400e-9  # 55-85 ns on an idle core


# The short way


@pytest.fixture
def short_way(monkeypatch):
    """Kernels at once; what is called takes the short way, or fails."""
    pytest.importorskip("llvmlite")
    monkeypatch.setattr(backend, "LOADING_PAYS", 0)
    monkeypatch.delenv(backend.PORTABLE, raising=False)
    monkeypatch.setattr(_fill, "_known", {})

    def call(work, *arguments, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_fill, "_fillable", None)
            return work(*arguments, **options)

    return call


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("law", ELEMENTWISE, ids=str)
def test_the_short_way_gives_the_same_bits(law, dtype, short_way):
    """What has filled one tensor fills others of the dtype without a check, parameters too."""
    drawn(law, (3,), dtype)
    for shape in [(), (1,), (64,), (5, 67), (6, 4, 3, 5), (300, 200)]:
        with specified():
            expected = drawn(law, shape, dtype)
        for kind in (lambda t: t, torch.nn.Parameter):
            tensor = kind(torch.empty(shape, dtype=dtype))
            assert short_way(fill_, tensor, law, key="w", seed=3) is tensor
            assert same(tensor.detach(), expected)
        again = torch.empty(shape, dtype=dtype)
        write_all = short_way(prepared, again, law, key="w", seed=3)
        write_all()
        assert same(again, expected)


def test_laws_that_differ_by_the_sign_of_a_zero_are_two(short_way):
    plus, minus = Normal(0.0, 0.0), Normal(0.0, -0.0)
    assert plus == minus
    with specified():
        expected = [drawn(law, (64,)) for law in (plus, minus)]
    assert not same(*expected)
    for _ in range(2):
        assert all(
            same(drawn(law, (64,)), e) for law, e in zip((plus, minus), expected, strict=True)
        )
    zeros = [drawn(Constant(z), (3,)) for z in (0.0, -0.0, 0.0)]
    assert [math.copysign(1, z[0]) for z in zeros] == [1, -1, 1]


UNUSUAL = {
    "a view with gaps": lambda: torch.empty(8, 16)[:, ::2],
    "transposed": lambda: torch.empty(8, 9).T,
    "empty": lambda: torch.empty(0, 3),
    "large": lambda: torch.empty(300, 300),
    "negative": lambda: torch._neg_view(torch.empty(5)),
    "meta": lambda: torch.empty(5, device="meta"),
    "sparse": lambda: torch.zeros(5, 5).to_sparse(),
    "sparse rows": lambda: torch.zeros(5, 5).to_sparse_csc(),
    "another dtype": lambda: torch.empty(5, dtype=torch.float8_e5m2),
    "integers": lambda: torch.empty(5, dtype=torch.int32),
    "a subclass": lambda: torch.empty(5).as_subclass(type("Mine", (torch.Tensor,), {})),
    "no tensor": lambda: [1.0, 2.0],
    "ragged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
}


@pytest.mark.filterwarnings("ignore:.*(nested|Sparse).*:UserWarning")
@pytest.mark.parametrize("law", [Normal(1.0), Constant(0.5)], ids=str)
@pytest.mark.parametrize("make", UNUSUAL.values(), ids=UNUSUAL)
def test_what_is_not_plain_goes_the_long_way(make, law, short_way, monkeypatch):
    monkeypatch.setattr(
        torch, "get_num_threads", lambda: 2
    )  # one thread alone takes large ones too
    drawn(law, (3,))
    tensor, threads = make(), torch.get_num_threads()
    torch.set_num_threads(2)  # among which a large tensor is shared
    try:
        known = _fill.recall(tensor, law)
        assert known is None or _fill.place_of(tensor, known) is None
    finally:
        torch.set_num_threads(threads)


def test_mapped_tensors_go_the_long_way(short_way):
    drawn(Normal(1.0), (3,))
    asked = []

    def each(x):
        known = _fill.recall(x, Normal(1.0))
        asked.append(known is None or _fill.place_of(x, known) is None)
        return x

    torch.func.vmap(each)(torch.zeros(2, 3))
    torch.func.grad(lambda x: each(x).sum())(torch.zeros(3))
    assert asked == [True, True]


@pytest.mark.parametrize("law", [Normal(1.0), Constant(0.5)], ids=str)
def test_the_short_way_is_seen_by_autograd(law, short_way):
    drawn(law, (3,))
    weight = torch.nn.Parameter(torch.ones(3))
    before = weight._version
    product = (weight * weight).sum()
    short_way(fill_, weight, law, key="w")
    assert weight._version == before + 1
    assert weight.is_leaf
    assert weight.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("law", [Normal(1.0), Constant(0.5)], ids=str)
def test_the_short_way_fills_inference_tensors(law, short_way):
    expected = drawn(law, (3,))
    with torch.inference_mode():
        inside, outside = torch.empty(3), torch.empty(3)
        assert torch.equal(fill_(inside, law, key="w", seed=3), expected)
    assert torch.equal(fill_(outside, law, key="w", seed=3), expected)


@pytest.mark.parametrize(
    ("key", "seed"), [(3, 0), ("w", -1), ("w", 2**64), ("w", 0.5), ("w", True)]
)
@pytest.mark.parametrize("law", [Normal(1.0), Constant(0.5)], ids=str)
def test_the_short_way_refuses_bad_keys_and_seeds(law, key, seed, short_way):
    drawn(law, (3,), key="w", seed=1)
    tensor = torch.ones(3)
    with pytest.raises(InvalidValueError):
        short_way(fill_, tensor, law, key=key, seed=seed)
    assert (tensor == 1).all()


def test_what_is_remembered_does_not_grow_without_end(short_way, monkeypatch):
    monkeypatch.setattr(_fill, "_KNOWN_AT_MOST", 10)
    for i in range(100):
        drawn(Normal(1.0 + i), (3,))
    assert len(_fill._known) <= 10
    assert torch.equal(drawn(Normal(5.0), (3,)), drawn(Normal(5.0), (3,)))
