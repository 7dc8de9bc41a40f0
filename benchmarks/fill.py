"""What filling costs: CPU time per element of fanin, torch, numpy and jax, and of `fill_` itself.

All run in turn, round after round, in one process and in place, and medians are compared, so that a
busy machine slows all alike. A ratio is the median over rounds of what that library took over what
fanin took in the same round; above 1 fanin is faster.

Run: python benchmarks/fill.py [--side 4096] [--rounds 7] [--threads 1] [--first] [--small]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torch import Tensor

from fanin import fill_
from fanin.distributions import Distribution, Normal, TruncatedNormal, Uniform

Work = Callable[[Tensor], object]
init = torch.nn.init
BOUND = 3.0**0.5
TRUNCATED_3, TRUNCATED_2 = TruncatedNormal(1.0, 3.0), TruncatedNormal(1.0, 2.0)

CASES: list[tuple[str, torch.dtype, Distribution, Work]] = [
    ("uniform_", torch.float32, Uniform(-1, 1), lambda t: t.uniform_(-1, 1)),
    ("normal_", torch.float32, Normal(1.0), lambda t: t.normal_()),
    ("kaiming_uniform_", torch.float32, Uniform(-BOUND, BOUND), init.kaiming_uniform_),
    ("kaiming_normal_", torch.float32, Normal(0.02), init.kaiming_normal_),
    ("trunc_normal_ +-2", torch.float32, TRUNCATED_2, lambda t: init.trunc_normal_(t, 0, 1, -2, 2)),
    ("trunc_normal_ +-3", torch.float32, TRUNCATED_3, lambda t: init.trunc_normal_(t, 0, 1, -3, 3)),
    ("uniform_", torch.bfloat16, Uniform(-1, 1), lambda t: t.uniform_(-1, 1)),
    ("normal_", torch.bfloat16, Normal(1.0), lambda t: t.normal_()),
    ("trunc_normal_ +-3", torch.bfloat16, TRUNCATED_3, lambda t: init.trunc_normal_(t, 0, 1, -3, 3)),
    ("normal_", torch.float16, Normal(1.0), lambda t: t.normal_()),
    ("uniform_", torch.float64, Uniform(-1, 1), lambda t: t.uniform_(-1, 1)),
    ("normal_", torch.float64, Normal(1.0), lambda t: t.normal_()),
    ("trunc_normal_ +-3", torch.float64, TRUNCATED_3, lambda t: init.trunc_normal_(t, 0, 1, -3, 3)),
]  # fmt: skip


def others(law: Distribution, dtype: torch.dtype) -> dict[str, Work]:
    """The same law elsewhere, where there is one."""
    found: dict[str, Work] = {}
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
        for once in work.values():
            once(tensor)
        took = [{k: clock(w, tensor) for k, w in work.items()} for _ in range(rounds)]
        print(row(f"{label} {str(dtype)[6:]}", took, 1e9 / tensor.numel()), flush=True)


def alone(work: Work, threads: int) -> Work:
    def run(tensor: Tensor) -> None:
        torch.set_num_threads(1)
        work(tensor)
        torch.set_num_threads(threads)

    return run


def row(label: str, took: list[dict[str, float]], scale: float) -> str:
    mid = {k: scale * median(t[k] for t in took) for k in took[0]}
    ratio = {k: median(t[k] / t["fanin"] for t in took) for k in took[0]}
    rest = [
        f"{k} {mid[k]:.1f} ({ratio[k]:.1f}x)" for k in mid if k not in ("fanin", "fill_", "torch")
    ]
    return (
        f"{label:28} {mid['fanin']:6.2f}  {mid['fill_']:6.2f} {1 / ratio['fill_']:7.2f} "
        f"{mid['torch']:6.2f} {ratio['torch']:6.2f}x  {', '.join(rest)}"
    )


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
    print("the first fill through a kernel in a fresh process, seconds: CPU (wall), then that of")
    print("the same law in another dtype")
    for law in ("Uniform(-1, 1)", "Normal(1.0)", "TruncatedNormal(1.0, 3.0)"):
        with tempfile.TemporaryDirectory() as folder:
            for state in ("without cache", "with cache"):
                done = subprocess.run(
                    [sys.executable, "-c", FIRST.format(law=law)],
                    env=os.environ | {"NUMBA_CACHE_DIR": folder},
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                once, real, again = map(float, done.stdout.split())
                print(f"{law:26} {state:14} {once:6.2f} ({real:.2f})  {again:6.2f}")


def small() -> None:
    fill_(torch.empty(2**20), Normal(1.0), key="w")
    print("small tensors, microseconds of CPU time a call, medians of 7 rounds of 1000")
    for shape in ((64,), (768,), (64, 64), (256, 256)):
        tensor = torch.empty(shape)
        times = 1000 if tensor.numel() < 10_000 else 50
        pairs = []
        for _ in range(7):
            ours = cpu(
                lambda t, n=times: [fill_(t, Normal(1.0), key="w") for _ in range(n)], tensor
            )
            torchs = cpu(lambda t, n=times: [t.normal_() for _ in range(n)], tensor)
            pairs.append((1e6 * ours / times, 1e6 * torchs / times))
        mine, theirs = (median(p) for p in zip(*pairs, strict=True))
        print(f"{shape!s:12} fanin {mine:8.1f}  torch normal_ {theirs:8.1f}")
    model = [torch.empty(8, 8) for _ in range(200)]
    law = Normal(0.02)
    took = [
        cpu(lambda _: [fill_(t, law, key=f"h.{i}.weight") for i, t in enumerate(model)], model[0])
        for _ in range(7)
    ]
    print(f"200 tensors of 8 x 8: {1e3 * median(took):.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--first", action="store_true", help="time to the first fill instead")
    parser.add_argument("--small", action="store_true", help="small tensors instead")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(
        f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, torch {torch.__version__}"
    )
    if given.first:
        first()
    elif given.small:
        small()
    else:
        fills(given.side, given.rounds, given.threads)


if __name__ == "__main__":
    main()
