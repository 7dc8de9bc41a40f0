"""What filling costs on a GPU: time of fanin, torch and `fill_` itself, and whether the bits agree.

All run in turn, round after round, on one device and in place, timed by the device's own clock, and
medians are compared. A ratio is the median over rounds of what torch took over what fanin took in
the same round; above 1 fanin is faster. `x fill_` is how many times the cost of writing alone.

Run: python benchmarks/fill_gpu.py [--side 16384] [--rounds 21] [--check 100000000]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from fanin import fill_
from fanin._rng import gpu
from fanin.distributions import Distribution, Normal, TruncatedNormal, Uniform

Work = Callable[[Tensor], object]
WARM = 3
TRUNCATED_3, TRUNCATED_4 = TruncatedNormal(1.0, 3.0), TruncatedNormal(1.0, 4.0)
init = torch.nn.init

CASES: list[tuple[str, torch.dtype, Distribution, Work]] = [
    ("uniform_", torch.float32, Uniform(-1, 1), lambda t: t.uniform_(-1, 1)),
    ("normal_", torch.float32, Normal(1.0), lambda t: t.normal_()),
    ("trunc_normal_ +-3", torch.float32, TRUNCATED_3, lambda t: init.trunc_normal_(t, 0, 1, -3, 3)),
    ("trunc_normal_ +-4", torch.float32, TRUNCATED_4, lambda t: init.trunc_normal_(t, 0, 1, -4, 4)),
    ("uniform_", torch.bfloat16, Uniform(-1, 1), lambda t: t.uniform_(-1, 1)),
    ("normal_", torch.bfloat16, Normal(1.0), lambda t: t.normal_()),
    ("trunc_normal_ +-3", torch.bfloat16, TRUNCATED_3, lambda t: init.trunc_normal_(t, 0, 1, -3, 3)),
    ("normal_", torch.float16, Normal(1.0), lambda t: t.normal_()),
    ("uniform_", torch.float64, Uniform(-1, 1), lambda t: t.uniform_(-1, 1)),
    ("normal_", torch.float64, Normal(1.0), lambda t: t.normal_()),
]  # fmt: skip


def seconds(work: Work, tensor: Tensor) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work(tensor)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def times(side: int, rounds: int) -> None:
    print(f"{side} x {side}, device time, medians of {rounds} rounds")
    print(f"{'':28} fanin ms    GB/s  x fill_  torch ms   ratio")
    for label, dtype, law, reference in CASES:
        tensor = torch.empty(side, side, dtype=dtype, device="cuda")
        work: dict[str, Work] = {
            "fanin": lambda t, law=law: fill_(t, law, key="w"),
            "fill_": lambda t: t.fill_(1.0),
            "torch": reference,
        }
        for once in work.values():
            for _ in range(WARM):
                once(tensor)
        took = [{k: seconds(w, tensor) for k, w in work.items()} for _ in range(rounds)]
        mine, theirs = (median(t[k] for t in took) for k in ("fanin", "torch"))
        ratio = {k: median(t[k] / t["fanin"] for t in took) for k in ("fill_", "torch")}
        speed = tensor.numel() * tensor.itemsize / mine / 1e9
        print(
            f"{label + ' ' + str(dtype)[6:]:28} {1e3 * mine:8.3f} {speed:7.0f} {1 / ratio['fill_']:8.2f} "
            f"{1e3 * theirs:9.3f} {ratio['torch']:6.2f}x",
            flush=True,
        )


def check(count: int) -> None:
    print(f"{count} values of each law against the CPU, and memory beside the tensor")
    for label, dtype, law, _ in CASES:
        there = torch.empty(count, dtype=dtype, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        fill_(there, law, key="w", seed=3)
        extra = torch.cuda.max_memory_allocated() - before
        here = fill_(torch.empty(count, dtype=dtype), law, key="w", seed=3)
        integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
        differ = int((there.cpu().view(integer) != here.view(integer)).sum())
        print(f"{label + ' ' + str(dtype)[6:]:28} {differ} differ, {extra} bytes", flush=True)


def obstacle() -> str | None:
    """Why there is nothing to measure here, if so."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    if gpu._kernel() is None:
        return f"there is no triton {'.'.join(map(str, gpu.OLDEST))} or newer: pip install 'fanin[gpu]'"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--check", type=int, default=10**8, help="values to compare; 0 for none")
    given = parser.parse_args()
    if why := obstacle():
        print(f"Nothing to measure: {why}.")
        return
    import triton

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    times(given.side, given.rounds)
    if given.check:
        check(given.check)


if __name__ == "__main__":
    main()
