"""Orthogonal matrices: what the law says, the same bits in every way, Haar, and the faster form."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys

import mpmath as mp
import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from fanin import InvalidValueError, fill_, init
from fanin import _rng as rng
from fanin._rng import Elements, Stream, backend, orthogonal, reflectors
from fanin._rng.orthogonal import DOUBT, STEP, haar
from fanin._rng.parts import times
from fanin._rng.reflectors import draw_reflectors
from fanin.distributions import DeltaOrthogonal, Distribution, Orthogonal

REAL, COMPLEX = np.float64, np.complex128
KINDS = [REAL, COMPLEX]
SHAPES = [(1, 1), (2, 2), (7, 1), (7, 3), (64, 64), (65, 64), (130, 70), (193, 193), (300, 17)]


def normals(dtype, key="w", seed=3):
    """(rows, columns) -> standard normals, both parts of a complex one drawn in turn."""

    def draw(i, j):
        planes = j if dtype is REAL else np.stack([2 * j, 2 * j + 1], 1).reshape(-1)
        elements = Elements(Stream(key, seed), i, planes)
        return rng.normal(elements, 1.0, 0.0, real=np.float64).view(dtype)

    return draw


def drawn(m, n, dtype=REAL, seed=3):
    return draw_reflectors(m, n, normals(dtype, seed=seed), dtype)


def narrow(dtype):
    return np.float32 if dtype is REAL else np.complex64


def fill(shape, law=None, dtype=torch.float32, key="w", seed=3):
    return fill_(torch.empty(shape, dtype=dtype), law or Orthogonal(), key=key, seed=seed)


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def same_tensors(a, b):
    return same(a.flatten().view(torch.uint8).numpy(), b.flatten().view(torch.uint8).numpy())


def error(q):
    """max |Q* Q - I| of the orthonormal side, in doubles."""
    q = q.flatten(1).to(torch.complex128 if q.is_complex() else torch.float64)
    q = q if q.shape[0] >= q.shape[1] else q.mH
    return float((q.mH @ q - torch.eye(q.shape[1])).abs().max())


@pytest.fixture
def kernel(monkeypatch):
    """Compiled from the first call on."""
    pytest.importorskip("llvmlite")
    from fanin._rng import reflector_kernel

    monkeypatch.delenv(backend.PORTABLE, raising=False)
    monkeypatch.setattr(orthogonal, "LOADING_PAYS", 0)
    return reflector_kernel


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# The law


def exact(found):
    """H_0 H_1 ... diag(phases) of the reflectors in doubles, to 40 digits."""
    m, n = found.size, found.tau.size
    whole = mp.eye(m)
    for k in range(n):
        v = mp.matrix(m, 1)
        for i, x in enumerate(found.vector(k)):
            v[k + i] = mp.mpmathify(x)
        whole -= mp.mpf(found.tau[k]) * (whole * v) * v.H
    columns = [whole[:, j] * mp.mpmathify(found.phases[j]) for j in range(n)]
    return [[column[i] for i in range(m)] for column in columns]


def multiple(x):
    """The nearest multiple of STEP."""
    return float(mp.nint(x / STEP) * STEP)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 2), (7, 3), (20, 20), (30, 2)])
def test_values_are_the_exact_product_rounded(m, n, dtype):
    """Doubles to their own roundings, about one for each reflector; 32 bits exactly, by chance
    (an element is within 1e-15 of the middle between two multiples once in 2e6)."""
    with mp.workdps(40):
        want = exact(drawn(m, n, dtype))
        doubles = haar(m, n, normals(dtype), dtype).T
        distance = [
            [abs(mp.mpmathify(x) - y) for x, y in zip(*rows)] for rows in zip(doubles, want)
        ]
        assert max(map(max, distance)) <= 2.0**-53 * (8 + n)
        rounded = [[complex(multiple(mp.re(x)), multiple(mp.im(x))) for x in row] for row in want]
    expected = np.array(rounded).astype(COMPLEX)
    expected = expected if dtype is COMPLEX else expected.real
    assert same(haar(m, n, normals(dtype), narrow(dtype)).T, expected.astype(narrow(dtype)))


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(("m", "n"), [(5, 5), (9, 4)])
def test_reflectors_are_stewarts(m, n, dtype):
    """One Householder matrix at a time from the Gaussian vectors, then the signs of R's diagonal."""
    whole, phases = np.eye(m, dtype=complex), []
    for k in range(n):
        x = np.zeros(m, complex)
        x[k:] = normals(dtype)(np.array([k]), np.arange(k, m))[0]
        phase = x[k] / abs(x[k])
        v = x.copy()
        v[k] += phase * np.linalg.norm(x)
        reflector = np.eye(m) - 2 * np.outer(v, v.conj()) / np.vdot(v, v).real
        assert np.allclose(reflector @ x, -phase * np.linalg.norm(x) * np.eye(m)[k])
        whole = whole @ reflector
        phases.append(-phase)
    found = haar(m, n, normals(dtype), dtype)
    assert np.abs(found - whole[:, :n] * np.array(phases)).max() <= 1e-14


@pytest.mark.parametrize("dtype", KINDS)
def test_reflectors_do_not_depend_on_how_many_are_made_at_a_time(dtype, monkeypatch):
    whole = drawn(330, 300, dtype)
    monkeypatch.setattr(reflectors, "BLOCK", 40)
    monkeypatch.setattr(reflectors, "PANEL", 80)
    again = drawn(330, 300, dtype)
    assert same(again.tau, whole.tau) and same(again.phases, whole.phases)
    assert len(again.panels) > len(whole.panels)
    for k in range(300):
        ours = again.vector(k)
        monkeypatch.setattr(reflectors, "PANEL", 192)
        assert same(ours, whole.vector(k))
        monkeypatch.setattr(reflectors, "PANEL", 80)


@pytest.mark.parametrize("dtype", KINDS)
def test_a_column_does_not_depend_on_the_others(dtype):
    found = drawn(90, 70, dtype)
    whole = found.columns(np.arange(70))
    for which in ([0], [69], [3, 4, 40], [1, 69]):
        assert same(found.columns(np.array(which)), whole[which])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", SHAPES)
def test_doubles_are_orthonormal(shape, dtype):
    assert error(fill(shape, dtype=dtype)) <= 1e-14


@pytest.mark.parametrize("shape", [(300, 300), (900, 200), (200, 900), (40, 5, 3, 3)])
def test_32_bits_are_the_doubles_rounded(shape):
    """To multiples of STEP, and where one is above 1/16 to its own 24 bits; gains multiply after."""
    doubles = fill(shape, dtype=torch.float64)
    multiples = torch.round(doubles / STEP) * STEP
    assert same_tensors(fill(shape), multiples.float())
    assert same_tensors(fill(shape, Orthogonal(-0.3)), (multiples * -0.3).float())
    for dtype in (torch.bfloat16, torch.float16):
        assert same_tensors(fill(shape, dtype=dtype), fill(shape).to(dtype))


def test_32_bits_are_orthonormal():
    """A column's error is sum 2 q e, its std 2 STEP sqrt(v / 12) with sum q^2 = 1.

    v is the mean of the squared roundings of 32 bits too, weighted by q^2: 1 below 1/16, 4 up to
    1/8, 16 beyond. Of N(0, 1/400) the weights are 0.33, 0.57 and 0.10, so that v is 4.2; those of two
    columns, unweighted, are smaller. The largest of 400 is below 5 std.
    """
    found = error(fill((400, 400)))
    assert STEP / 4 < found < 5 * 2 * STEP * math.sqrt(4.2 / 12)


# The same bits in every way


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(("m", "n"), [*SHAPES, (400, 390)])
def test_kernel_gives_the_specification(m, n, dtype, kernel):
    found, every = drawn(m, n, dtype), np.arange(n)
    whole = found.columns(every)
    for thread_count in (1, 2):
        assert same(kernel.columns(found, every, thread_count), whole)
    for which in {(0,), (n - 1,), tuple(range(0, n, 3)), (0, n - 1) if n > 1 else (0,)}:
        assert same(kernel.columns(found, np.array(which), 1), whole[list(which)])


@pytest.mark.parametrize("cpu", ["x86-64", "x86-64-v2", "haswell", "skylake-avx512", None])
@pytest.mark.parametrize("dtype", KINDS)
def test_kernel_for_other_processors(cpu, dtype, kernel):
    from fanin._rng.machine import Machine, this_machine

    here = this_machine()
    needed = {"haswell": "+avx2", "skylake-avx512": "+avx512dq", "x86-64-v2": "+sse4.2"}
    if cpu and needed.get(cpu, "") not in here.features:
        pytest.skip(f"this processor is no {cpu}")
    if "x86_64" not in sys.implementation._multiarch:
        pytest.skip("another architecture")
    machine = Machine(cpu, "") if cpu else None
    found, every = drawn(100, 90, dtype), np.arange(90)
    assert same(kernel.columns(found, every, 1, machine), found.columns(every))


def test_kernel_has_no_fused_operations(kernel):
    """One that rounds once what the specification rounds twice would give other bits."""
    from fanin._rng.machine import assembly

    for width in (1, 2):
        text = assembly(kernel._program(width))
        assert "mul" in text and "fmadd" not in text and "fnmadd" not in text and "fmla" not in text


def test_products_agree_within_a_quarter_of_the_doubt():
    """Where they differ by more than DOUBT, bits could depend on the machine."""
    worst = 0.0
    for (m, n), dtype, seed in itertools.product([*SHAPES, (512, 500)], KINDS, range(3)):
        found = drawn(m, n, dtype, seed)
        product = times(orthogonal._product(found, dtype), found.phases[:, None])
        difference = product - orthogonal._columns(found, np.arange(n), 1)
        worst = max(worst, np.abs(difference.view(np.float64)).max())
    assert 2.0**-53 < worst < DOUBT / 4


def by_numpy(found, dtype):
    """`orthogonal._product` by numpy's matrix products, in panels of its own width."""
    n, m = found.tau.size, found.size
    q = np.eye(n, m, dtype=dtype)
    for start in reversed(range(0, n, 50)):
        own = slice(start, min(start + 50, n))
        v = np.zeros((own.stop - start, m), dtype)
        for k in range(start, own.stop):
            v[k - start, k:] = found.vector(k)
        inverse = np.triu(v.conj() @ v.T, 1) + np.diag(1 / found.tau[own])
        q[start:] -= np.linalg.solve(inverse, v.conj() @ q[start:].T).T @ v
    return q


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(("m", "n"), [(300, 300), (500, 140), (193, 193)])
def test_another_library_gives_the_same_bits(m, n, dtype, monkeypatch):
    monkeypatch.setattr(orthogonal, "DIRECT", 0)
    found = drawn(m, n, dtype)
    assert not same(by_numpy(found, dtype), orthogonal._product(found, dtype))
    ours = haar(m, n, normals(dtype), narrow(dtype))
    monkeypatch.setattr(orthogonal, "_product", by_numpy)
    assert same(haar(m, n, normals(dtype), narrow(dtype)), ours)


@pytest.mark.parametrize("dtype", KINDS)
def test_open_elements_are_settled(dtype, monkeypatch):
    """Products that are wrong by almost DOUBT, which is made wide here, give the same bits."""
    monkeypatch.setattr(orthogonal, "DIRECT", 0)
    m, n = 150, 140
    right = orthogonal._narrow(drawn(m, n, dtype).columns(np.arange(n)), 1.0)
    assert same(haar(m, n, normals(dtype), narrow(dtype)).T, right)

    product, settled = orthogonal._product, []
    columns = orthogonal._columns
    wide = 2.0**-37  # an element is open with probability 2^-8, a column with 0.4

    def wrong(found, kind):
        noise = np.random.default_rng(0).uniform(-0.7, 0.7, (2, n, m)) * wide
        return product(found, kind) + (noise[0] if kind is REAL else noise[0] + 1j * noise[1])

    def counted(found, which, thread_count):
        settled.append(which.size)
        return columns(found, which, thread_count)

    monkeypatch.setattr(orthogonal, "_product", wrong)
    monkeypatch.setattr(orthogonal, "_columns", counted)
    assert not same(haar(m, n, normals(dtype), narrow(dtype)).T, right)
    monkeypatch.setattr(orthogonal, "DOUBT", wide)
    assert same(haar(m, n, normals(dtype), narrow(dtype)).T, right)
    assert n / 4 < settled[-1] < n


def test_about_one_element_in_130_000_is_open(monkeypatch):
    """2 DOUBT / STEP of them; the number of columns among 1000^2 elements is Poisson, mean 7.6."""
    counts = []
    columns = orthogonal._columns

    def counted(found, which, thread_count):
        counts.append(which.size)
        return columns(found, which, thread_count)

    monkeypatch.setattr(orthogonal, "_columns", counted)
    haar(1000, 1000, normals(REAL), np.float32)
    expected = 2 * DOUBT / STEP * 1e6
    assert 1e-4 < scipy.stats.poisson.cdf(sum(counts), expected) < 1 - 1e-4


@pytest.mark.parametrize("dtype", KINDS)
def test_ways_to_compute_agree(dtype, kernel, monkeypatch):
    """By the kernel alone, by products, and by numpy alone."""
    at_once = haar(100, 90, normals(dtype), narrow(dtype))
    monkeypatch.setattr(orthogonal, "DIRECT", 0)
    by_products = haar(100, 90, normals(dtype), narrow(dtype))
    monkeypatch.setenv(backend.PORTABLE, "1")
    assert orthogonal._kernel(100, 100, 100) is None
    portable = haar(100, 90, normals(dtype), narrow(dtype))
    assert same(at_once, by_products) and same(at_once, portable)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((500, 500), torch.float32),
        ((500, 500), torch.float64),
        ((700, 150), torch.complex64),
        ((150, 700), torch.bfloat16),
    ],
)
def test_threads_do_not_matter(shape, dtype, threads):
    found = []
    for thread_count in (1, 2, 3):
        threads(thread_count)
        found.append(fill(shape, dtype=dtype))
    assert all(same_tensors(found[0], other) for other in found[1:])


DIGESTS = """
import hashlib, json, sys, torch
from fanin import fill_
from fanin.distributions import DeltaOrthogonal, Orthogonal

def digest(shape, law, dtype):
    value = fill_(torch.empty(shape, dtype=getattr(torch, dtype)), law, key="w", seed=3)
    return hashlib.sha256(value.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()

big = int(sys.argv[1])
cases = [
    ((big, big), Orthogonal(), "float32"), ((big, big // 4), Orthogonal(1.7), "float32"),
    ((big // 4, big), Orthogonal(), "bfloat16"), ((300, 300), Orthogonal(), "complex64"),
    ((300, 200), Orthogonal(), "float64"), ((120, 110), Orthogonal(), "complex128"),
    ((260, 250, 3, 3), DeltaOrthogonal(), "float32"),
]
exact = [digest(*case) for case in cases]
print(json.dumps([exact, digest((big, big), Orthogonal(reproducible=False), "float32")]))
"""
# OpenBLAS, MKL, torch, numpy and fanin itself, each kept from what this processor could do.
ELSEWHERE = {
    "as it is": {},
    "one thread": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    "MKL compatible": {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default"},
    "AVX2": {
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4",
    },
    "SSE": {
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OPENBLAS_CORETYPE": "Prescott",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4",
    },
    "portable": {"FANIN_PORTABLE": "1", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "2"},
}


def digests(variables, big):
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DIGESTS, str(big)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(run.stdout)


@pytest.mark.parametrize(
    "big", [pytest.param(400, id="400"), pytest.param(2048, marks=pytest.mark.slow)]
)
def test_no_bit_depends_on_the_linear_algebra(big):
    """Other libraries' orders of summation show in the form that is not reproducible, nowhere else."""
    names = ["as it is", "portable"] if big < 1000 else list(ELSEWHERE)
    found = {name: digests(ELSEWHERE[name], big) for name in names}
    exact, fast = zip(*found.values())
    assert all(each == exact[0] for each in exact), found
    assert len(set(fast)) > 1


def test_a_kernel_that_errs_is_not_used(kernel, monkeypatch):
    def wrong(found, which, thread_count):
        return found.columns(which) * (1 + 2.0**-52)

    monkeypatch.setattr(kernel, "columns", wrong)
    with pytest.warns(RuntimeWarning, match="other bits than the specification"):
        assert orthogonal._load.__wrapped__() is None
    monkeypatch.setattr(kernel, "columns", lambda *_: (_ for _ in ()).throw(OSError("no memory")))
    with pytest.warns(RuntimeWarning, match="no memory"):
        assert orthogonal._load.__wrapped__() is None


# The faster form


@pytest.mark.parametrize(
    "shape", [(1, 1), (7, 1), (300, 300), (600, 100), (100, 600), (20, 8, 3, 3)]
)
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [
        (torch.float32, 3e-6),
        (torch.complex64, 3e-6),
        (torch.float64, 1e-14),
        (torch.complex128, 1e-14),
        (torch.bfloat16, 2**-8),
        (torch.float16, 2**-10),
    ],
)
def test_fast_is_the_same_matrix(shape, dtype, bound):
    fast = fill(shape, Orthogonal(1.0, reproducible=False), dtype)
    assert error(fast) <= 2 * bound
    assert (fast - fill(shape, dtype=dtype)).abs().max() <= bound


def test_fast_delta_orthogonal():
    law = DeltaOrthogonal(2.0, reproducible=False)
    found, expected = fill((30, 20, 3, 2), law), fill((30, 20, 3, 2), DeltaOrthogonal(2.0))
    assert torch.allclose(found, expected, rtol=0, atol=6e-6)
    assert found.count_nonzero() == expected.count_nonzero() == 600


def test_fast_is_single_precision_whatever_torch_may_do(monkeypatch):
    """Under autocast, and where products of 32 bits are allowed in fewer, it is not less precise."""
    law = Orthogonal(reproducible=False)
    plain = fill((300, 300), law)
    used = []
    apply = orthogonal._apply

    def watched(v, tau, q):
        used.append(torch.backends.mkldnn.enabled)
        apply(v, tau, q)

    monkeypatch.setattr(orthogonal, "_apply", watched)
    before = torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert same_tensors(fill((300, 300), law), plain)
            assert same_tensors(fill((300, 300)), fill((300, 300), key="w"))
        assert torch.backends.mkldnn.enabled == before[1]
    finally:
        torch.set_float32_matmul_precision(before[0])
    assert used[:2] == [False, False]
    monkeypatch.setattr(orthogonal, "_apply", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fill((300, 300), law)
    assert torch.backends.mkldnn.enabled == before[1]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1024, 1024), (2048, 2048), (4096, 1024), (1024, 4096)])
def test_errors_at_size(shape):
    assert error(fill(shape)) <= 2e-8
    assert error(fill(shape, Orthogonal(reproducible=False))) <= 3e-6
    assert error(fill(shape, dtype=torch.float64)) <= 1e-14


# Haar


@pytest.mark.parametrize("law", [Orthogonal(), Orthogonal(reproducible=False)], ids=str)
@pytest.mark.parametrize("n", [2, 5])
def test_eigenvalues_are_those_of_scipys_haar_matrices(law, n):
    """Angles and determinants of 500 matrices against scipy.stats.ortho_group's, which is by QR."""
    ours = np.stack([fill((n, n), law, key=f"eigen.{i}").double().numpy() for i in range(500)])
    theirs = scipy.stats.ortho_group.rvs(n, size=500, random_state=0)
    assert abs((np.linalg.det(ours) > 0).sum() - 250) < 4 * math.sqrt(125)
    for feature in (np.max, np.min):
        pair = [feature(np.abs(np.angle(np.linalg.eigvals(q))), axis=1) for q in (ours, theirs)]
        assert two_sample(*pair) > 1e-4
    assert two_sample(*(np.trace(q, axis1=1, axis2=2) for q in (ours, theirs))) > 1e-4


def two_sample(ours, theirs):
    """Rounded first: a reflection of the plane has trace 0, which roundings would tell apart."""
    return scipy.stats.ks_2samp(ours.round(5) + 0.0, theirs.round(5) + 0.0).pvalue


def test_entries_of_a_large_matrix():
    """Of a 600 x 600 one: sqrt(n) q is nearly N(0, 1); its square is Beta(1/2, (n - 1)/2)."""
    q = fill((600, 600)).double().numpy().ravel()[::7]
    assert scipy.stats.kstest(q**2, scipy.stats.beta(0.5, 299.5).cdf).pvalue > 1e-4
    assert abs((q > 0).mean() - 0.5) < 4 * 0.5 / math.sqrt(q.size)


# Shapes


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (3, 0, 2)])
def test_nothing_to_write(shape):
    assert fill(shape).shape == shape


def test_one_element_is_a_sign():
    signs = [fill((1, 1), key=f"sign.{i}").item() for i in range(200)]
    assert set(signs) == {-1.0, 1.0}
    assert abs(sum(signs)) < 4 * math.sqrt(200)


def test_wide_is_tall_transposed():
    assert same_tensors(fill((30, 70)), fill((70, 30)).T.contiguous())


def test_an_empty_kernel_channel_of_a_delta():
    found = fill((6, 5, 3, 3), DeltaOrthogonal(2.0))
    centre = found[:, :, 1, 1].clone()
    assert same_tensors(centre, fill((6, 5), Orthogonal(2.0)))
    found[:, :, 1, 1] = 0.0
    assert not found.count_nonzero()


# Asking for it


def test_default_is_not_written():
    """Plans from before there was a choice read as they did, and are written as they were."""
    for kind in (Orthogonal, DeltaOrthogonal):
        assert kind(2.0).to_dict() == {"kind": kind.__name__, "gain": 2.0}
        assert kind.from_dict({"kind": kind.__name__, "gain": 2.0}) == kind(2.0, reproducible=True)
        assert repr(kind(2.0)) == f"{kind.__name__}(gain=2.0)"
        fast = kind(2.0, reproducible=False)
        assert fast != kind(2.0)
        assert Distribution.from_dict(json.loads(json.dumps(fast.to_dict()))) == fast
        assert eval(repr(fast)) == fast
        assert fast.scaled(3.0) == kind(6.0, reproducible=False)
        assert fast.std_for((4, 4, 1)) == kind(2.0).std_for((4, 4, 1))
        with pytest.raises(InvalidValueError, match="reproducible is True or False; got 'no'"):
            kind(1.0, reproducible="no")


def drop_in(target, seed, **options):
    torch.manual_seed(seed)
    return init.orthogonal_(target, **options)


def test_init_takes_it():
    plain = drop_in(torch.empty(40, 30), 1)
    fast = drop_in(torch.empty(40, 30), 1, reproducible=False)
    assert not torch.equal(fast, plain) and torch.allclose(fast, plain, rtol=0, atol=3e-6)
    assert torch.equal(drop_in(torch.empty(40, 30), 1, reproducible=True), plain)
    gates = drop_in(nn.LSTM(3, 16), 1, name="weight_hh_l0", reproducible=False).weight_hh_l0
    assert all(error(gate) <= 3e-6 for gate in gates.detach().chunk(4))
    delta = init.delta_orthogonal_(torch.empty(6, 4, 3, 3), reproducible=False)
    assert error(delta[:, :, 1, 1]) <= 3e-6


def test_init_passes_on_what_torch_does_not_know():
    seen = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append((function.__name__, kwargs))
            return super().__torch_function__(function, types, args, kwargs or {})

    watched = torch.empty(4, 4).as_subclass(Watched)
    init.orthogonal_(watched)
    init.orthogonal_(watched, reproducible=False)
    calls = [kwargs for name, kwargs in seen if name == "orthogonal_"]
    assert [set(kwargs) for kwargs in calls] == [
        {"tensor", "gain", "generator"},
        {"tensor", "gain", "generator", "reproducible"},
    ]


def test_init_compiles():
    made = torch.compile(
        lambda t: init.orthogonal_(t, reproducible=False), backend="eager", fullgraph=True
    )
    assert error(made(torch.empty(20, 10))) <= 3e-6
