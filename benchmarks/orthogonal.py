"""What orthogonal matrices cost: CPU time of torch, of the reproducible and of the fast form.

All run in turn, round after round, in one process, and medians are compared, so that a busy machine
slows all alike. A ratio is the median over rounds of what torch took over what that form took in the
same round; above 1 fanin is faster. Kernels are loaded beforehand. The error is max |Q* Q - I|,
computed in 64 bits. "settled" are the columns that matrix products left open by a rounding and that
were computed one by one.

Run: python benchmarks/orthogonal.py [--large] [--doubles] [--rounds 5] [--threads 1] [--memory]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from fanin import fill_
from fanin._rng import backend, orthogonal
from fanin.distributions import DeltaOrthogonal, Orthogonal

Shape = tuple[int, ...]
SHAPES: list[Shape] = [
    (64, 64), (512, 512), (1024, 1024), (2048, 2048), (4096, 1024), (1024, 4096), (512, 512, 3, 3),
]  # fmt: skip
LARGE: list[Shape] = [(4096, 4096)]


def work(shape: Shape, dtype: torch.dtype) -> dict[str, tuple[Tensor, Callable[[Tensor], object]]]:
    law = DeltaOrthogonal if len(shape) > 2 else Orthogonal
    forms: dict[str, Callable[[Tensor], object]] = {
        "torch": torch.nn.init.orthogonal_,
        "reproducible": lambda t: fill_(t, law(), key="w"),
        "fast": lambda t: fill_(t, law(reproducible=False), key="w"),
    }
    return {name: (torch.empty(shape, dtype=dtype), form) for name, form in forms.items()}


def cpu(form: Callable[[Tensor], object], tensor: Tensor) -> float:
    start = time.process_time()
    form(tensor)
    return time.process_time() - start


def wall(form: Callable[[Tensor], object], tensor: Tensor) -> float:
    start = time.perf_counter()
    form(tensor)
    return time.perf_counter() - start


def error(q: Tensor) -> float:
    if q.dim() > 2:
        q = q[:, :, q.shape[2] // 2, q.shape[3] // 2]
    q = q.double() if q.shape[0] >= q.shape[1] else q.double().T
    gram = q.T @ q
    gram.diagonal().sub_(1.0)
    return float(gram.abs().max())


class Settled:
    """Counts the columns computed one by one."""

    def __init__(self) -> None:
        self.columns, self.found = orthogonal._columns, 0
        orthogonal._columns = self

    def __call__(self, reflectors, which, threads):
        """As `orthogonal._columns`."""
        self.found = which.size
        return self.columns(reflectors, which, threads)


def compare(shape: Shape, dtype: torch.dtype, rounds: int, threads: int, settled: Settled) -> None:
    clock, settled.found = cpu if threads == 1 else wall, 0
    forms = work(shape, dtype)
    for tensor, form in forms.values():
        form(tensor)
    took = [{k: clock(form, t) for k, (t, form) in forms.items()} for _ in range(rounds)]
    mid = {k: 1e3 * median(t[k] for t in took) for k in forms}
    ratio = {k: median(t["torch"] / t[k] for t in took) for k in forms}
    wrong = {k: error(t) for k, (t, _) in forms.items()}
    if len(shape) > 2:
        wrong["torch"] = float(
            "nan"
        )  # torch has no delta-orthogonal one: this is of the flat matrix
    cells = "".join(
        f" {mid[k]:9.1f} {ratio[k]:5.2f}x {wrong[k]:7.0e}" for k in forms if k != "torch"
    )
    name = "x".join(map(str, shape))
    print(
        f"{name:12}{mid['torch']:9.1f} {wrong['torch']:7.0e}{cells} {settled.found:7}", flush=True
    )


def times(shapes: list[Shape], dtype: torch.dtype, rounds: int, threads: int) -> None:
    kind = "CPU" if threads == 1 else "wall"
    print(f"{dtype}, {threads} thread(s), {kind} ms, medians of {rounds} rounds")
    print(
        f"{'':12}{'torch':>9} {'error':>7} {'reproducible':>16} {'error':>7} {'fast':>16} {'error':>7} settled"
    )
    settled = Settled()
    for shape in shapes:
        compare(shape, dtype, rounds, threads, settled)


def memory(shape: Shape) -> None:
    """Peak memory beyond the tensor's own, each form in a process of its own."""
    size = 4 * torch.Size(shape).numel()
    for name in work((1, 1), torch.float32):
        run = subprocess.run(
            [sys.executable, __file__, "--peak", name, *map(str, shape)],
            capture_output=True,
            text=True,
            check=True,
        )
        print(
            f"{shape} {name:12} {int(run.stdout) / size:5.1f} times the tensor's memory on top of it"
        )


def peak(name: str, shape: Shape) -> None:
    small, form = work((400, 400), torch.float32)[name]
    form(small)
    tensor, form = torch.zeros(shape), work((1, 1), torch.float32)[name][1]
    tensor.add_(1.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    form(tensor)
    print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="4096 x 4096 too")
    parser.add_argument("--doubles", action="store_true", help="float64 instead of float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help="peak memory instead")
    parser.add_argument("--peak", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    backend.LOADING_PAYS = orthogonal.LOADING_PAYS = 0
    if given.peak:
        peak(given.peak[0], tuple(map(int, given.peak[1:])))
        return
    print(
        f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, torch {torch.__version__}"
    )
    if given.memory:
        memory((2048, 2048))
        memory((4096, 1024))
        return
    shapes = SHAPES + LARGE * given.large
    times(shapes, torch.float64 if given.doubles else torch.float32, given.rounds, given.threads)


if __name__ == "__main__":
    main()
