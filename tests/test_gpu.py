"""The GPU kernel: interpreted on the CPU, compiled for a GPU, run on one; and what happens without it."""

from __future__ import annotations

import os
import re
import runpy
import struct
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch

from fanin import _fill, fill_
from fanin import _rng as rng
from fanin._rng import Stream, backend, coefficients, gpu
from fanin.distributions import BoundedNormal, Normal, TruncatedNormal, Uniform
from portable import specified

LAWS = [
    Normal(0.02, 0.5),
    Uniform(-0.1, 0.3),
    TruncatedNormal(0.5, 1.3, 0.7),
    TruncatedNormal(0.02, 3.0),
    TruncatedNormal(1.0, 4.5),
    BoundedNormal(0.0, 0.5, -0.3, 0.7),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OUTSIDE = 7.0  # what memory holds that is not to be written
KERNELS = ("gpu_kernels", "gpu_math")
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU here")


def has_triton():
    try:
        import triton
    except ImportError:
        return False
    return tuple(map(int, triton.__version__.split(".")[:2])) >= gpu.OLDEST


with_triton = pytest.mark.skipif(
    not has_triton(), reason="no triton, or one too old: pip install 'fanin[gpu]'"
)


def portable(law, shape, dtype):
    """What the specification says."""
    with specified(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "reaches", lambda tensor: False)
        return fill_(torch.empty(shape, dtype=dtype), law, key="w", seed=3)


def same(a, b):
    return a.dtype == b.dtype and torch.equal(
        *(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    )


@with_triton
def test_interpreted():
    """tests/gpu_interpreted.py: the kernel's bits are those of the specification and the golden ones."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", here / "gpu_interpreted.py"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=here.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b1\d\d passed", done.stdout), done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
def test_the_benchmark_says_why_it_does_not_run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fill_gpu.py"])
    path = Path(__file__).parent.parent / "benchmarks" / "fill_gpu.py"
    runpy.run_path(str(path), run_name="__main__")
    assert "torch sees no CUDA GPU" in capsys.readouterr().out


# What happens where it is not to be had


@pytest.fixture
def asked(monkeypatch):
    """What `gpu.into` answered."""
    answers = []
    into = gpu.into

    def asking(*args, **kwargs):
        answers.append(into(*args, **kwargs))
        return answers[-1]

    monkeypatch.setattr(gpu, "into", asking)
    return answers


class Launching:
    """A kernel that does with any grid what it is told."""

    def __init__(self, launch):
        self.launch = launch

    def __getitem__(self, grid):
        return self.launch


@pytest.fixture
def kernel(monkeypatch):
    """Put a kernel in place of the real one, for which a CPU tensor is as good as a GPU's."""
    monkeypatch.setattr(_fill, "_known", {})
    monkeypatch.setattr(gpu, "reaches", lambda tensor: True)
    monkeypatch.setattr(gpu, "_trusted", {})
    return lambda launch: monkeypatch.setattr(gpu, "_kernel", lambda: Launching(launch))


def test_a_kernel_that_cannot_be_built(kernel, asked):
    def launch(*args, **kwargs):
        raise RuntimeError("Failed to find C compiler.")

    kernel(launch)
    with pytest.warns(UserWarning, match="no GPU kernel for normal_32.*Failed to find C compiler"):
        tensor = fill_(torch.empty(65), Normal(0.5), key="w", seed=3)
    again = fill_(torch.empty(65), Normal(0.5), key="w", seed=3)  # without a second warning
    assert same(tensor, portable(Normal(0.5), (65,), torch.float32))
    assert same(again, tensor)
    assert asked == [False, False]


def test_a_kernel_that_draws_other_bits(kernel, asked):
    kernel(lambda out, *args, **kwargs: out.fill_(0.0))
    with pytest.warns(UserWarning, match=r"It drew \[0.0, 0.0, 0.0\] for"):
        tensor = fill_(torch.empty(65), Normal(0.5), key="w", seed=3)
    assert same(tensor, portable(Normal(0.5), (65,), torch.float32))
    assert asked == [False]


def test_an_error_of_a_kernel_that_worked_is_raised(kernel):
    right = portable(Normal(0.5), (65,), torch.float32)
    kernel(lambda out, *args, **kwargs: out.copy_(right))
    fill_(torch.empty(65), Normal(0.5), key="w", seed=3)

    def launch(*args, **kwargs):
        raise RuntimeError("an illegal memory access was encountered")

    kernel(launch)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        fill_(torch.empty(65), Normal(0.5), key="w", seed=3)


@pytest.mark.parametrize("version", [None, "3.5.1"])
def test_without_triton(version, monkeypatch, asked):
    module = type(sys)("triton")
    module.__version__ = version
    monkeypatch.setitem(sys.modules, "triton", module if version else None)
    monkeypatch.setattr(_fill, "_known", {})
    monkeypatch.setattr(gpu, "reaches", lambda tensor: True)
    gpu._kernel.cache_clear()
    tensor = fill_(torch.empty(65), Normal(0.5), key="w", seed=3)
    gpu._kernel.cache_clear()
    assert same(tensor, portable(Normal(0.5), (65,), torch.float32))
    assert asked == [False]


def test_portable_when_told(kernel, asked, monkeypatch):
    kernel(None)
    monkeypatch.setenv(backend.PORTABLE, "1")
    fill_(torch.empty(65), Normal(0.5), key="w", seed=3)
    assert asked == [False]


# Compiled, without a GPU: what the machine is told to do


class NoGpu:
    """Triton's driver where there is none: enough to compile for a GPU of compute capability 9.0."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@pytest.fixture(scope="module")
def ptx(tmp_path_factory):
    """(law, tensor) -> the instructions that `gpu.launch` has compiled for it."""
    pytest.importorskip("triton.backends.nvidia", reason="this triton cannot compile for NVIDIA")
    from triton.runtime import driver

    def compiled(law, tensor, box=None, **options):
        _, sample = _fill._sampler(law, tensor, Stream("w"))
        rows = tensor.shape[0] if tensor.dim() > 1 else 1
        box = box or ((0, 0, rows), (0, 0, tensor.numel() // rows))
        grid, arguments, constants = gpu.launch(
            tensor, _fill._memory(tensor), box, sample.draw, Stream("w")
        )
        options = gpu.OPTIONS | options
        return gpu._kernel().warmup(*arguments, grid=grid, **constants, **options).asm["ptx"]

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        # A kernel of its own: it remembers what it compiled, but not for which GPU.
        for name in KERNELS:
            patch.delitem(sys.modules, f"{rng.__name__}.{name}", raising=False)
            patch.delattr(rng, name, raising=False)
        gpu._kernel.cache_clear()
        before = dict(vars(driver))
        driver.set_active(NoGpu())
        yield compiled
        vars(driver).update(before)
    gpu._kernel.cache_clear()


TABLES = {
    "uniform": (),
    "normal_32": ("LOG_32", "SIN_32", "COS_32"),
    "normal_64": ("LOG_64", "SIN_64", "COS_64"),
    "truncated_2": ("QUANTILE_2",),
    "truncated_3": ("QUANTILE_3",),
    "window": ("QUANTILE_CENTRE", "QUANTILE_TAIL", "QUANTILE_FAR_TAIL", "LOG_64"),
}
EXPECTED = {"normal_32": "sqrt.rn.f32", "normal_64": "sqrt.rn.f64", "truncated_2": "div.rn.f32",
            "truncated_3": "div.rn.f32", "window": "sqrt.rn.f64 div.rn.f64"}  # fmt: skip


def numbers(name):
    found = getattr(coefficients, name)
    return found if isinstance(found[0], float) else list(chain(*found))


@with_triton
@pytest.mark.parametrize(
    ("name", "law", "dtype"),
    [
        ("uniform", Uniform(-1.0, 2.0), torch.float32),
        ("uniform", Uniform(-1.0, 2.0), torch.float64),
        ("normal_32", Normal(0.5), torch.bfloat16),
        ("normal_64", Normal(0.5), torch.float64),
        ("truncated_2", TruncatedNormal(1.0, 2.0), torch.float16),
        ("truncated_3", TruncatedNormal(1.0, 3.0), torch.float32),
        ("window", TruncatedNormal(1.0, 4.5), torch.float32),
    ],
    ids=str,
)
def test_every_operation_is_rounded_on_its_own(name, law, dtype, ptx):
    """No fused or flushed or approximate operation; the tables whole, to the last bit."""
    code = ptx(law, torch.empty(4096, 4096, dtype=dtype))
    assert not re.findall(r"\bfma\.|\bmad\.rn\.f|\.ftz|\.approx|\.full", code)
    # Without .rn the assembler may fuse a product and a sum.
    assert not re.findall(r"\b(?:mul|add|sub)\.f(?:32|64|16)", code)
    assert re.search(r"\bmul\.rn\.f", code)
    assert re.search(r"\badd\.rn\.f", code)
    for instruction in EXPECTED.get(name, "").split():
        assert instruction in code
    if dtype == torch.float16:
        assert "cvt.rn.f16" in code
    mark, form = ("0d", ">d") if name.endswith("64") or name == "window" else ("0f", ">f")
    for number in chain(*map(numbers, TABLES[name])):
        # x * -c + d may have become d - x * c, which is the same.
        found = [mark + struct.pack(form, c).hex().upper() in code for c in (number, -number)]
        assert any(found), number


@with_triton
def test_fusion_would_be_seen(ptx):
    """The same kernel without the option that the launch sets."""
    assert "fma.rn.f32" in ptx(Normal(0.5), torch.empty(4096, 4096), enable_fp_fusion=True)


@with_triton
@pytest.mark.parametrize(
    ("tensor", "box"),
    [
        pytest.param(torch.empty(1), None, id="one"),
        pytest.param(torch.empty(5, 1), None, id="one column"),
        pytest.param(torch.empty(5, 3), ((1, 7, 4), (2, 1, 1)), id="one from the second"),
        pytest.param(torch.empty(70, 65).T, None, id="transposed"),
        pytest.param(
            torch.empty(8, 5, 3, 3).to(memory_format=torch.channels_last), None, id="channels last"
        ),
    ],
)
def test_numbers_that_triton_takes_for_constants(tensor, box, ptx):
    """An argument that is 1 is no number for Triton's compiler, as it is for its interpreter."""
    assert re.search(r"st\.global", ptx(Uniform(-1.0, 2.0), tensor, box))


@with_triton
def test_stores_are_vectors(ptx):
    assert re.search(r"st\.global\S*\.v4", ptx(Normal(0.5), torch.empty(4096, 4096)))
    assert re.search(r"st\.global\S*\.v4", ptx(Normal(0.5), torch.empty(10**6)))


# On a GPU


@on_a_gpu
@with_triton
@pytest.mark.gpu
@pytest.mark.parametrize("law", [*LAWS, BoundedNormal(0.0, 1.0, 45.0, 46.0)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gpu_draws_the_same(law, dtype):
    for shape in [
        (0,),
        (1,),
        (17,),
        (65,),
        (10**6 + 7,),
        (1000, 1009),
        (33, 5),
        (64, 20, 3, 3),
        (),
    ]:
        found = fill_(torch.empty(shape, dtype=dtype, device="cuda"), law, key="w", seed=3)
        assert same(found.cpu(), portable(law, shape, dtype)), shape


@on_a_gpu
@with_triton
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("view", [lambda t: t.T, lambda t: t[1::2, 5::3], lambda t: t[:, 3:]])
def test_a_gpu_writes_views(view, dtype):
    memory = torch.full((700, 900), OUTSIDE, dtype=dtype, device="cuda")
    part = view(memory)
    fill_(part, Normal(0.02, 0.5), key="w", seed=3)
    assert same(part.cpu(), portable(Normal(0.02, 0.5), part.shape, dtype))
    part.fill_(OUTSIDE)
    assert (memory == OUTSIDE).all()


@on_a_gpu
@with_triton
@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS[:4], ids=str)
def test_a_hundred_million(law):
    """Bit for bit what the CPU draws, without a byte of memory beside the tensor."""
    found = torch.empty(10_000, 10_000, device="cuda")
    fill_(found, law, key="w", seed=3)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fill_(found, law, key="w", seed=3)
    assert torch.cuda.max_memory_allocated() == before
    assert same(found.cpu(), fill_(torch.empty(10_000, 10_000), law, key="w", seed=3))
