"""What it costs to build a Llama of 1.1e9 parameters and give it starting values.

TinyLlama's shape in plain torch.nn, built each way in a process of its own, so that its peak memory
is its own: CPU time (that of the program, and that of the system, which hands out pages), wall time,
and the largest resident memory over what was resident before. Imports do not count, nor what torch imports when the meta device is first used
(printed by itself); numba and the kernels, loaded from the disk on the way, do count for fanin. The
machine must have half as much memory again as the parameters take.

Run: python benchmarks/construct.py [--layers 22] [--dtypes float32 bfloat16] [--threads 1 2]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import fanin
from fanin.distributions import Normal, TruncatedNormal

VOCABULARY, WIDTH, HIDDEN, HEADS, HEAD = 32000, 2048, 5632, 32, 64
KEYS = 256  # width of keys and of values: 4 heads, each for 8 of the queries'
STD = 0.02
ROOM = 1.5  # times the parameters' bytes


class Attention(nn.Module):
    """Grouped queries, causal. B batch, T time, D width, V vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.k_proj = nn.Linear(WIDTH, KEYS, bias=False)
        self.v_proj = nn.Linear(WIDTH, KEYS, bias=False)
        self.o_proj = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """B x T x D -> B x T x D."""
        q, k, v = (
            f(x).unflatten(-1, (-1, HEAD)).transpose(1, 2)
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.up_proj = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down_proj = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """... x D -> ... x D."""
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Two residual branches."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(WIDTH)
        self.self_attn = Attention()
        self.post_attention_layernorm = nn.RMSNorm(WIDTH)
        self.mlp = MLP()

    def forward(self, x: Tensor) -> Tensor:
        """B x T x D -> B x T x D."""
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Embedding, blocks, norm, head."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.Sequential(*(Block() for _ in range(layers)))
        self.norm = nn.RMSNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """B x T -> B x T x V."""
        return self.lm_head(self.norm(self.layers(self.embed_tokens(tokens))))


# Ways to build it


class Took(NamedTuple):
    """What a part took: seconds, and the bytes by which resident memory grew."""

    user: float
    system: float
    wall: float
    memory: int

    @property
    def cpu(self) -> float:
        """Seconds of both."""
        return self.user + self.system


def now() -> Took:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Took(used.ru_utime, used.ru_stime, time.perf_counter(), resident("VmRSS"))


class Stopwatch:
    """What each part took."""

    def __init__(self) -> None:
        self.parts: dict[str, Took] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time what happens within."""
        a = now()
        yield
        b = now()
        self.parts[part] = Took(
            b.user - a.user, b.system - a.system, b.wall - a.wall, b.memory - a.memory
        )


def ordinary(layers: int, clock: Stopwatch) -> Llama:
    with clock("constructors"):
        return Llama(layers)


@torch.no_grad()
def ordinary_twice(layers: int, clock: Stopwatch) -> Llama:
    """As most model code does: the constructors draw, then `_init_weights` draws again."""
    model = ordinary(layers, clock)
    with clock("_init_weights"):
        _init_weights(model)
    return model


def _init_weights(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, 0.0, STD)


@torch.no_grad()
def meta_normal(layers: int, clock: Stopwatch) -> Llama:
    model = _empty(layers, clock)
    with clock("normal_"):
        _init_weights(model)
        for module in model.modules():
            if isinstance(module, nn.RMSNorm):
                nn.init.ones_(module.weight)
    return model


@torch.no_grad()
def meta_fill(layers: int, clock: Stopwatch) -> Llama:
    model = _empty(layers, clock)
    with clock("fill_"):
        for parameter in model.parameters():
            parameter.fill_(0.0)
    return model


def _on_meta(layers: int, clock: Stopwatch) -> Llama:
    with clock("meta"), torch.device("meta"):
        return Llama(layers)


def _empty(layers: int, clock: Stopwatch) -> Llama:
    model = _on_meta(layers, clock)
    with clock("to_empty"):
        return model.to_empty(device="cpu")


def by_fanin(scheme: str) -> Callable[[int, Stopwatch], Llama]:
    def build(layers: int, clock: Stopwatch) -> Llama:
        model = _on_meta(layers, clock)
        with clock("plan"):
            plan = fanin.plan(model, scheme=scheme)
        with clock("kernels"):
            law = Normal(STD) if scheme == "gpt2" else TruncatedNormal(STD)
            fanin.fill_(torch.empty(1024, 1024), law, key="warm")
        with clock("to_empty"):
            model.to_empty(device="cpu")
        with clock("plan.fill_"):
            plan.fill_(model, seed=0)
        return model

    return build


class Way(NamedTuple):
    """How to build, and whether it can use more than one thread."""

    build: Callable[[int, Stopwatch], Llama]
    threaded: bool


WAYS = {
    "constructors, then _init_weights": Way(ordinary_twice, False),
    "constructors": Way(ordinary, False),
    "meta, to_empty, normal_": Way(meta_normal, False),
    "meta, to_empty, fill_(0)": Way(meta_fill, True),
    "fanin gpt2 (normal)": Way(by_fanin("gpt2"), True),
    "fanin cs336 (truncated)": Way(by_fanin("cs336"), True),
}


# Measuring


def measure(way: str, layers: int, dtype: str, threads: int) -> dict:
    """In a process that does nothing else."""
    torch.set_num_threads(threads)
    torch.set_default_dtype(getattr(torch, dtype))
    clock = Stopwatch()
    with clock("first use of meta"), torch.device("meta"):
        nn.Embedding(1, 1)
    first, before = clock.parts.pop("first use of meta"), resident("VmRSS")
    with clock("all"):
        model = WAYS[way].build(layers, clock)
    peak = resident("VmHWM") - before
    parameters = list(model.parameters())
    return {
        "peak": peak,
        "parts": clock.parts,
        "first": first,
        "parameters": sum(p.numel() for p in parameters),
        "bytes": sum(p.nbytes for p in parameters),
        "std": float(model.lm_head.weight[:64].detach().float().std()),
        "bits": sum(int(bits(p).sum(dtype=torch.int64)) for p in parameters) % 2**64,
    }


def bits(parameter: Tensor) -> Tensor:
    whole = torch.int32 if parameter.itemsize == 4 else torch.int16
    return parameter.detach().view(whole)


def resident(what: str) -> int:
    """Bytes of memory in use: now (VmRSS) or at most (VmHWM)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(s for s in status.read_text().splitlines() if s.startswith(what))
    return 1024 * int(line.split()[1])


def apart(way: str, layers: int, dtype: str, threads: int) -> dict:
    """`measure`, in a process of its own."""
    words = [sys.executable, __file__, "--layers", str(layers), "--dtypes", dtype]
    words += ["--threads", str(threads), "--way", way]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way}, {dtype}, {threads} thread(s):\n{done.stderr}")
    found = json.loads(done.stdout)
    found["parts"] = {part: Took(*took) for part, took in found["parts"].items()}
    found["all"] = found["parts"].pop("all")
    return found


def compare(layers: int, dtype: str, threads: list[int]) -> None:
    for way in (w for w in WAYS if w.startswith("fanin")):
        apart(way, 0, dtype, threads[0])  # has the kernels compiled and kept on disk
    runs = [(w, t) for w in WAYS for t in (threads if WAYS[w].threaded else threads[:1])]
    found = {run: apart(run[0], layers, dtype, run[1]) for run in runs}
    some = next(iter(found.values()))
    print(f"\n{some['parameters']:,} parameters, {dtype}, {some['bytes'] / 2**30:.2f} GiB")
    print(
        f"{'':33}threads  user s  sys s  CPU s  wall s  x fill_  x fanin   peak  CPU s of the parts"
    )
    limit = found["meta, to_empty, fill_(0)", threads[0]]["all"].cpu
    ours = found["fanin gpt2 (normal)", threads[0]]["all"].cpu
    for (way, n), run in found.items():
        took, parts = run["all"], run["parts"].items()
        print(f"{way:33}{n:7}{took.user:8.2f}{took.system:7.2f}{took.cpu:7.2f}{took.wall:8.2f}"
              f"{took.cpu / limit:9.2f}{took.cpu / ours:9.2f}{run['peak'] / run['bytes']:7.3f}  "
              f"{', '.join(f'{part} {t.cpu:.2f}' for part, t in parts)}", flush=True)  # fmt: skip
    first = Took(*some["first"])
    print(f"not counted: {first.cpu:.2f} s, {first.memory / 2**20:.0f} MiB when meta is first used")
    for way in (w for w in WAYS if w.startswith("fanin")):
        run = found[way, threads[0]]
        same = len({found[way, n]["bits"] for n in threads}) == 1
        print(f"{way}: std of the head {run['std']:.5f}, kernels "
              f"{run['parts']['kernels'].memory / 2**20:.0f} MiB, {'same' if same else 'DIFFERENT'} "
              f"bits with {' and '.join(map(str, threads))} thread(s)")  # fmt: skip


def check_room(layers: int, dtype: str) -> None:
    with torch.device("meta"):
        needed = ROOM * sum(p.numel() for p in Llama(layers).parameters())
    needed *= getattr(torch, dtype).itemsize
    memory = Path("/proc/meminfo")
    if not memory.exists():
        return
    line = next(s for s in memory.read_text().splitlines() if s.startswith("MemAvailable"))
    free = 1024 * int(line.split()[1])
    if free < needed:
        raise SystemExit(
            f"{needed / 2**30:.1f} GiB of memory are needed, {free / 2**30:.1f} are free; "
            "take fewer --layers."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--way", choices=WAYS, help="one way, in this process, as JSON")
    given = parser.parse_args()
    if given.way:
        found = measure(given.way, given.layers, given.dtypes[0], given.threads[0])
        print(json.dumps(found))
        return
    print(
        f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, torch {torch.__version__}"
    )
    for dtype in given.dtypes:
        check_room(given.layers, dtype)
        compare(given.layers, dtype, given.threads)


if __name__ == "__main__":
    main()
