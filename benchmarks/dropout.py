"""What dropout costs: `fanin.nn.Dropout` against `torch.nn.Dropout`, alone and within a training step.

All run in turn, round after round, in one process, and medians are compared, so that a busy machine slows all
alike. A ratio is the median over rounds of what torch took over what fanin took in the same round; above 1
fanin is faster. On one thread CPU time counts, on more wall time.

Run: python benchmarks/dropout.py [--rounds 9] [--threads 1] [--p 0.1]
     and with --step for a training step of a transformer's feed-forward blocks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from fanin.nn import Dropout

SIZES = [10**4, 10**5, 10**6, 10**7]
REPEATED = 10**6  # elements that are worked on in one measurement, if the tensor has fewer
D, LAYERS, BATCH = 512, 2, 1024


def timed(work: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeats):
        work()
    return (clock() - start) / repeats


def forward(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    return lambda: layer(x)


def backward(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    x = x.detach().requires_grad_()
    y, grad = layer(x), torch.randn_like(x)
    return lambda: torch.autograd.grad(y, x, grad, retain_graph=True)


def compare(ours: Callable, theirs: Callable, *, repeats: int, rounds: int, clock: Callable) -> str:
    ours()
    theirs()
    took = [(timed(ours, repeats, clock), timed(theirs, repeats, clock)) for _ in range(rounds)]
    a, b = (median(t[i] for t in took) for i in (0, 1))
    return f"{a:.3g} {b:.3g} {median(t[1] / t[0] for t in took):.2f}"


def alone(p: float, rounds: int, clock: Callable) -> None:
    print(f"{'':22} {'elements':>9}   fanin   torch   ratio   (ns per element)")
    layers = {"Dropout": Dropout(p), "Dropout, seed": Dropout(p, seed=1)}
    for dtype in (torch.float32, torch.bfloat16):
        for label, layer in layers.items():
            for size in SIZES if dtype == torch.float32 else SIZES[2:3]:
                x = torch.randn(size).to(dtype)
                for way in (forward, backward):
                    a, b, ratio = compare(
                        way(layer, x), way(nn.Dropout(p), x),
                        repeats=max(1, REPEATED // size), rounds=rounds, clock=clock,
                    ).split()  # fmt: skip
                    ns = [float(t) * 1e9 / size for t in (a, b)]
                    what = f"{label} {way.__name__}{' bf16' if dtype == torch.bfloat16 else ''}"
                    print(
                        f"{what:22} {size:9}  {ns[0]:6.2f}  {ns[1]:6.2f}  {ratio:>5}x", flush=True
                    )
            if dtype == torch.bfloat16:
                break


class Block(nn.Module):
    """A feed-forward block as transformers have it: dropout within and behind."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.work = nn.Sequential(
            nn.LayerNorm(D), nn.Linear(D, 4 * D), nn.GELU(), make(), nn.Linear(4 * D, D), make()
        )

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x + self.work(x)


def step(make: Callable[[], nn.Module]) -> Callable[[], object]:
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(make) for _ in range(LAYERS)))
    x = torch.randn(BATCH, D)

    def run() -> None:
        model.zero_grad()
        model(x).square().mean().backward()

    return run


def steps(p: float, rounds: int, clock: Callable) -> None:
    print(f"training step: {LAYERS} blocks, d = {D}, {BATCH} tokens, p = {p}; seconds")
    for label, ours, theirs in (
        ("fanin against torch", lambda: Dropout(p), lambda: nn.Dropout(p)),
        ("none against torch", nn.Identity, lambda: nn.Dropout(p)),
    ):
        a, b, ratio = compare(
            step(ours), step(theirs), repeats=1, rounds=rounds, clock=clock
        ).split()
        print(f"{label:22} {a:>7} {b:>7}  {ratio:>5}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--p", type=float, default=0.1)
    parser.add_argument("--step", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    for size in SIZES[2:]:  # the kernels are made
        for dtype in (torch.float32, torch.bfloat16):
            Dropout()(torch.ones(size, dtype=dtype))
    (steps if options.step else alone)(options.p, options.rounds, clock)


if __name__ == "__main__":
    main()
