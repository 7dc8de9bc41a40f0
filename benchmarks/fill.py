"""What filling costs: CPU time per element of fanin, torch, numpy and jax, and of `fill_` itself.

All run in turn, round after round, in one process and in place, and medians are compared, so that a
busy machine slows all alike. A ratio is the median over rounds of what that library took over what
fanin took in the same round; above 1 fanin is faster.

Run: python benchmarks/fill.py [--side 4096] [--rounds 7] [--threads 1]
     and with --first, --small, --layouts, --cpp or --asm for one other question each.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

import fanin
from fanin import fill_
from fanin._rng import Stream, coefficients, kernels, laws, machine
from fanin.distributions import Distribution, Normal, TruncatedNormal, Uniform

Work = Callable[[Tensor], object]
Took = list[dict[str, float]]
init = torch.nn.init
BOUND = 3.0**0.5
TRUNCATED_3, TRUNCATED_2 = TruncatedNormal(1.0, 3.0), TruncatedNormal(1.0, 2.0)


def cut_at(cut: float) -> Work:
    return lambda t: init.trunc_normal_(t, 0, 1, -cut, cut)


CASES: list[tuple[str, torch.dtype, Distribution, Work]] = [
    ("uniform_", torch.float32, Uniform(-1, 1), lambda t: t.uniform_(-1, 1)),
    ("normal_", torch.float32, Normal(1.0), lambda t: t.normal_()),
    ("kaiming_uniform_", torch.float32, Uniform(-BOUND, BOUND), init.kaiming_uniform_),
    ("kaiming_normal_", torch.float32, Normal(0.02), init.kaiming_normal_),
    ("trunc_normal_ +-2", torch.float32, TRUNCATED_2, cut_at(2)),
    ("trunc_normal_ +-3", torch.float32, TRUNCATED_3, cut_at(3)),
    ("uniform_", torch.bfloat16, Uniform(-1, 1), lambda t: t.uniform_(-1, 1)),
    ("normal_", torch.bfloat16, Normal(1.0), lambda t: t.normal_()),
    ("trunc_normal_ +-3", torch.bfloat16, TRUNCATED_3, cut_at(3)),
    ("normal_", torch.float16, Normal(1.0), lambda t: t.normal_()),
    ("uniform_", torch.float64, Uniform(-1, 1), lambda t: t.uniform_(-1, 1)),
    ("normal_", torch.float64, Normal(1.0), lambda t: t.normal_()),
    ("trunc_normal_ +-3", torch.float64, TRUNCATED_3, cut_at(3)),
]  # fmt: skip


def others(law: Distribution, dtype: torch.dtype) -> dict[str, Work]:
    """The same law elsewhere, where there is one; and torch's default cut, which costs it more than 3."""
    found: dict[str, Work] = {}
    if law == TRUNCATED_3:
        found["torch at its default +-2"] = cut_at(2)
    if dtype == torch.float32 and isinstance(law, (Normal, Uniform)):
        generator = np.random.Generator(np.random.SFC64(0))
        draw = generator.standard_normal if isinstance(law, Normal) else generator.random
        found["numpy SFC64"] = lambda t, draw=draw: draw(dtype=np.float32, out=t.numpy())
        if jax_draw := _jax(law):
            found["jax"] = jax_draw
    return found


def _jax(law: Distribution) -> Work | None:
    try:
        import jax
    except ImportError:
        return None
    sample = jax.random.normal if isinstance(law, Normal) else jax.random.uniform
    compiled = jax.jit(sample, static_argnums=1)
    return lambda t: compiled(jax.random.key(0), tuple(t.shape)).block_until_ready()


def cpu(work: Work, tensor: Tensor) -> float:
    start = time.process_time()
    work(tensor)
    return time.process_time() - start


def wall(work: Work, tensor: Tensor) -> float:
    start = time.perf_counter()
    work(tensor)
    return time.perf_counter() - start


def rounds_of(work: dict[str, Work], tensor: Tensor, rounds: int, clock: Callable = cpu) -> Took:
    """Everything once to begin with, then all in turn."""
    for once in work.values():
        once(tensor)
    return [{k: clock(w, tensor) for k, w in work.items()} for _ in range(rounds)]


def fills(side: int, rounds: int, threads: int) -> None:
    clock, name = (cpu, "CPU") if threads == 1 else (wall, "wall")
    print(
        f"{side} x {side}, {threads} thread(s), {name} ns per element, medians of {rounds} rounds"
    )
    print(f"{'':28}  fanin   fill_ x fill_  torch   ratio  others")
    for label, dtype, law, reference in CASES:
        tensor = torch.empty(side, side, dtype=dtype)
        work: dict[str, Work] = {
            "fanin": lambda t, law=law: fill_(t, law, key="w"),
            "fill_": lambda t: t.fill_(1.0),
            "torch": reference,
        }
        if threads > 1:
            work["one thread"] = alone(work["fanin"], threads)
        work |= others(law, dtype)
        took = rounds_of(work, tensor, rounds, clock)
        print(row(f"{label} {str(dtype)[6:]}", took, 1e9 / tensor.numel()), flush=True)


def alone(work: Work, threads: int) -> Work:
    def run(tensor: Tensor) -> None:
        torch.set_num_threads(1)
        work(tensor)
        torch.set_num_threads(threads)

    return run


def row(label: str, took: Took, scale: float) -> str:
    mid = {k: scale * median(t[k] for t in took) for k in took[0]}
    ratio = {k: median(t[k] / t["fanin"] for t in took) for k in took[0]}
    rest = [
        f"{k} {mid[k]:.1f} ({ratio[k]:.1f}x)" for k in mid if k not in ("fanin", "fill_", "torch")
    ]
    return (
        f"{label:28} {mid['fanin']:6.2f}  {mid['fill_']:6.2f} {1 / ratio['fill_']:7.2f} "
        f"{mid['torch']:6.2f} {ratio['torch']:6.2f}x  {', '.join(rest)}"
    ).rstrip()


LAYOUTS: dict[str, Callable[[int], Tensor]] = {
    "contiguous": lambda n: torch.empty(n, n),
    "rows of a wider one": lambda n: torch.empty(n, n + 64)[:, :n],
    "transposed": lambda n: torch.empty(n, n).T,
    "every other column": lambda n: torch.empty(n, 2 * n)[:, ::2],
    "channels last, 3 x 3": lambda n: torch.empty(n, n // 9, 3, 3).contiguous(
        memory_format=torch.channels_last
    ),
}


def layouts(side: int, rounds: int) -> None:
    print(f"a normal in float32, about {side} x {side}, CPU ns per element, medians of {rounds}")
    print(f"{'':28}  fanin   fill_ x fill_  torch   ratio")
    for label, make in LAYOUTS.items():
        tensor = make(side)
        work: dict[str, Work] = {
            "fanin": lambda t: fill_(t, Normal(1.0), key="w"),
            "fill_": lambda t: t.fill_(1.0),
            "torch": lambda t: t.normal_(),
        }
        print(row(label, rounds_of(work, tensor, rounds), 1e9 / tensor.numel()), flush=True)


FIRST = """
import time, torch
from fanin import fill_
from fanin._rng import backend
from fanin.distributions import *
torch.set_num_threads(1)
backend.LOADING_PAYS = 0
start = time.process_time(), time.perf_counter()
fill_(torch.empty(64), {law}, key="w")
first = time.process_time() - start[0], time.perf_counter() - start[1]
start = time.process_time()
fill_(torch.empty(64, dtype=torch.bfloat16), {law}, key="w")
print(*first, time.process_time() - start)
"""


def first() -> None:
    print("the first fill through a kernel in a fresh process, nothing kept on disk, seconds: CPU")
    print("(wall), then CPU of the same law in another dtype; medians of 5 processes")
    for law in ("Uniform(-1, 1)", "Normal(1.0)", "TruncatedNormal(1.0, 3.0)", "TruncatedNormal(1.0, 4.0)"):  # fmt: skip
        took = []
        for _ in range(5):
            done = subprocess.run(
                [sys.executable, "-c", FIRST.format(law=law)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            took.append([float(x) for x in done.stdout.split()])
        once, real, again = (median(x) for x in zip(*took, strict=True))
        print(f"{law:26} {once:6.2f} ({real:.2f})  {again:6.2f}", flush=True)


def small(rounds: int) -> None:
    law = Normal(1.0)
    fill_(torch.empty(2**21), law, key="w")
    print(f"small tensors, microseconds of CPU time a call, medians of {rounds} rounds")
    print(f"{'':34} fanin  torch   ratio")
    for shape in ((64,), (768,), (64, 64), (256, 256)):
        tensor = torch.empty(shape)
        times = max(20, 200_000 // (tensor.numel() + 200))
        _beside(f"fill_({shape}, law), t.normal_()", tensor, times, rounds,
                lambda t: fill_(t, law, key="w"), lambda t: t.normal_())  # fmt: skip
    tensor, matrix = torch.empty(64), torch.empty(8, 8)
    _beside("fill_(64, Normal(1.0))", tensor, 500, rounds,
            lambda t: fill_(t, Normal(1.0), key="w"), lambda t: t.normal_())  # fmt: skip
    _beside("init.normal_(64)", tensor, 500, rounds, fanin.init.normal_, init.normal_)
    _beside("init.kaiming_uniform_(8 x 8)", matrix, 500, rounds,
            fanin.init.kaiming_uniform_, init.kaiming_uniform_)  # fmt: skip
    model = nn.Sequential(*(m for _ in range(100) for m in (nn.Linear(64, 64), nn.ReLU())))
    for scheme in ("torch", "kaiming"):
        _planned(scheme, model, rounds)


def _beside(label: str, tensor: Tensor, times: int, rounds: int, ours: Work, theirs: Work) -> None:
    took = rounds_of(
        {
            "fanin": lambda t: [ours(t) for _ in range(times)],
            "torch": lambda t: [theirs(t) for _ in range(times)],
        },
        tensor,
        rounds,
    )
    mine, torchs = (1e6 / times * median(t[k] for t in took) for k in ("fanin", "torch"))
    ratio = median(t["torch"] / t["fanin"] for t in took)
    print(f"{label:34} {mine:6.1f} {torchs:6.1f} {ratio:6.2f}x", flush=True)


def _planned(scheme: str, model: nn.Module, rounds: int) -> None:
    """What a plan costs beyond the drawing of its numbers, which is that of one tensor of the same size."""
    plan = fanin.plan(model, scheme=scheme)
    drawn = [row for row in plan if row.distribution.std]
    law = drawn[0].distribution
    whole = torch.empty(sum(model.get_parameter(r.name).numel() for r in drawn))
    took = rounds_of(
        {
            "plan": lambda _: plan.fill_(model),
            "numbers": lambda t: fill_(t, law, key="w"),
            "torch": lambda _: [m.reset_parameters() for m in model if isinstance(m, nn.Linear)],
        },
        whole,
        rounds,
    )
    total, numbers, torchs = (
        1e3 * median(t[k] for t in took) for k in ("plan", "numbers", "torch")
    )
    beyond = 1e3 * median(t["plan"] - t["numbers"] for t in took)
    print(
        f"plan.fill_ of 200 tensors, {scheme}: {total:.2f} ms, of which numbers {numbers:.2f}, "
        f"overhead {beyond:.2f}; torch's reset_parameters {torchs:.2f}",
        flush=True,
    )


# The same kernels in C++

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ["-std=c++17", "-O3", "-march=native", "-mprefer-vector-width=512", "-ffp-contract=off",
         "-fno-math-errno", "-Wno-psabi", "-shared", "-fPIC"]  # fmt: skip
IN_CPP: dict[str, tuple[Distribution, laws.Draw]] = {
    "uniform": (Uniform(-1, 1), laws.uniform(-1.0, 1.0, np.float32)),
    "normal": (Normal(1.0), laws.normal(1.0, 0.0, np.float32)),
    "truncated": (TRUNCATED_3, laws.truncated_normal(1.0, 3.0, 0.0, np.float32)),
}


def tables() -> str:
    """The coefficients as C++, exact."""
    upper, lower = coefficients.QUANTILE_3
    arrays = {
        "LOG_32": coefficients.LOG_32,
        "SIN_32": coefficients.SIN_32,
        "COS_32": coefficients.COS_32,
        "UPPER_3": upper,
        "LOWER_3": lower,
    }
    lines = [f"constexpr float LN2 = {_exact(coefficients.LN2)};"]
    for name, table in arrays.items():
        lines.append(f"constexpr float {name}[] = {{{', '.join(map(_exact, table))}}};")
    return "\n".join(lines)


def _exact(number: float) -> str:
    return f"{float(np.float32(number)).hex()}f"


def in_cpp(library: ctypes.CDLL, name: str, draw: laws.Draw) -> Work:
    key = (ctypes.c_uint32 * 4)(*Stream("w").words)
    numbers = (ctypes.c_double * len(draw.numbers))(*draw.numbers)
    call = getattr(library, f"fill_{name}")

    def work(tensor: Tensor) -> None:
        rows, columns = map(ctypes.c_int64, tensor.shape)
        call(ctypes.c_void_p(tensor.data_ptr()), rows, columns, key, numbers)

    return work


def cpp(side: int, rounds: int) -> None:
    if shutil.which("g++") is None:
        print("no g++ here, so nothing to compare with")
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tables.h").write_text(tables())
        output = Path(folder, "fill.so")
        subprocess.run(["g++", *FLAGS, "-I", folder, SOURCE, "-o", output], check=True)
        library = ctypes.CDLL(str(output))
    version = subprocess.run(
        ["g++", "--version"], capture_output=True, text=True, check=True
    ).stdout
    print(f"{version.splitlines()[0]}, {' '.join(FLAGS)}")
    print(f"float32, {side} x {side}, CPU ns per element, medians of {rounds} rounds")
    print(f"{'':12} fanin   C++   ratio  the same bits")
    for name, (law, draw) in IN_CPP.items():
        tensor, other = torch.empty(side, side), torch.empty(side, side)
        theirs = in_cpp(library, name, draw)
        work = {"fanin": lambda t, law=law: fill_(t, law, key="w"), "C++": theirs}
        took = rounds_of(work, tensor, rounds)
        theirs(tensor)
        fill_(other, law, key="w")
        same = torch.equal(tensor.view(torch.int32), other.view(torch.int32))
        mine, its = (1e9 / tensor.numel() * median(t[k] for t in took) for k in ("fanin", "C++"))
        ratio = median(t["C++"] / t["fanin"] for t in took)
        print(f"{name:12} {mine:5.2f} {its:6.2f} {ratio:6.2f}x  {same}", flush=True)


# Instructions

MACHINES = {
    "this one": None,
    "AVX2": machine.Machine("haswell", "+avx2,+bmi,+bmi2,-avx512f"),
    "x86-64": machine.Machine("x86-64", ""),
}
PARTS = {
    "mul32": r"v?pmul\w+",
    "mul": r"v?mulp[sd]",
    "add, sub": r"v?(add|sub)p[sd]",
    "div": r"v?divp[sd]",
    "sqrt": r"v?sqrtp[sd]",
    "fused": r"vf?n?m(add|sub)\d\w+",
}


def instructions(text: str) -> list[str]:
    """The loop over tiles: the blocks between the first and the last product of vectors."""
    lines = [line.strip() for line in text.splitlines()]
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.endswith(":"):
            blocks.append([])
        elif line and line[0] not in ".#":
            blocks[-1].append(line)
    loop = [b for b in blocks if sum("mul" in i for i in b) > 8]
    return [i for block in loop for i in block]


def asm() -> None:
    print("instructions for a tile of 64 elements; on vectors, and of these which")
    print(
        f"{'':34} {'all':>5} {'vector':>6} " + " ".join(f"{p:>8}" for p in PARTS) + "  an element"
    )
    for law in ("uniform_32", "normal_32", "truncated_2", "truncated_3", "normal_64", "window_64"):
        dtype = "float64" if law.endswith("64") else "float32"
        for label, target in MACHINES.items():
            found = instructions(machine.assembly(kernels.program(law, dtype), target))
            vector = [i for i in found if re.search(r"%[xyz]mm", i)]
            moves = Counter(i.split()[0] for i in vector if re.match(r"v?mov", i))
            work = len(vector) - moves.total()
            counts = [sum(bool(re.match(p + r"\b", i)) for i in found) for p in PARTS.values()]
            print(
                f"{law:12} {dtype} {label:>12} {len(found):6} {work:6} "
                + " ".join(f"{n:8}" for n in counts)
                + f"  {work / 64:6.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--first", action="store_true", help="time to the first fill instead")
    instead.add_argument("--small", action="store_true", help="small tensors instead")
    instead.add_argument("--layouts", action="store_true", help="strided tensors instead")
    instead.add_argument("--cpp", action="store_true", help="the same kernels in C++ instead")
    instead.add_argument("--asm", action="store_true", help="counts of instructions instead")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(
        f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, "
        f"{machine.this_machine().cpu}, torch {torch.__version__}"
    )
    if given.first:
        first()
    elif given.small:
        small(given.rounds)
    elif given.layouts:
        layouts(given.side, given.rounds)
    elif given.cpp:
        cpp(given.side, given.rounds)
    elif given.asm:
        asm()
    else:
        fills(given.side, given.rounds, given.threads)


if __name__ == "__main__":
    main()
