"""What it costs to give a sharded Llama of 1.1e9 parameters its starting values.

First one process: `plan.materialize_` and `no_init` against the constructors, against meta and
`to_empty` followed by torch's draws, by transformers' `initialize_weights` or JAX where installed, and by
`fill_`, which only touches the memory. Then FSDP2 over 1, 2 and 4 ranks on gloo: CPU time, peak memory
and numbers drawn of the busiest rank. Each way runs in processes of its own; kernels that
numbers are drawn with are compiled within, imports are not counted.

Run: python benchmarks/scale.py [--layers 22] [--worlds 1 2 4]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from construct import (
    HEADS,
    HIDDEN,
    KEYS,
    STD,
    VOCABULARY,
    WIDTH,
    Llama,
    Stopwatch,
    check_room,
    meta_fill,
    meta_normal,
    ordinary,
    ordinary_twice,
    resident,
)
from torch import nn
from torch.distributed.fsdp import fully_shard

import fanin
from fanin import _fill


def materialized(layers: int, clock: Stopwatch) -> nn.Module:
    with clock("meta"), torch.device("meta"):
        model = Llama(layers)
    with clock("plan"):
        plan = fanin.plan(model, scheme="gpt2")
    with clock("materialize_"):
        return plan.materialize_(model, seed=0)


def without_draws(layers: int, clock: Stopwatch) -> nn.Module:
    with fanin.no_init():
        with clock("constructors"):
            model = Llama(layers)
        with clock("initialize_"):
            fanin.initialize_(model, scheme="gpt2")
    return model


def transformers_own(layers: int, clock: Stopwatch) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS * KEYS // WIDTH,
        tie_word_embeddings=False,
    )
    with clock("meta"), torch.device("meta"):
        model = LlamaForCausalLM(config)
    with clock("to_empty"):
        model.to_empty(device="cpu")
    with clock("initialize_weights"), torch.no_grad():
        model.initialize_weights()
    return model


def jax_normal(layers: int, clock: Stopwatch) -> list:
    import jax

    with torch.device("meta"):
        shapes = [tuple(p.shape) for p in Llama(layers).parameters()]
    with clock("jax.random.normal"):
        keys = jax.random.split(jax.random.key(0), len(shapes))
        made = [
            STD * jax.random.normal(k, s) if len(s) > 1 else jax.numpy.ones(s)
            for k, s in zip(keys, shapes, strict=True)
        ]
        jax.block_until_ready(made)
    return made


WAYS: dict[str, Callable] = {
    "meta, to_empty, fill_(0)": meta_fill,
    "plan.materialize_": materialized,
    "no_init, initialize_": without_draws,
    "constructors": ordinary,
    "constructors, then _init_weights": ordinary_twice,
    "meta, to_empty, normal_": meta_normal,
}
if importlib.util.find_spec("transformers"):
    WAYS["transformers' initialize_weights"] = transformers_own
if importlib.util.find_spec("jax"):
    WAYS["JAX"] = jax_normal


def measure(way: str, layers: int) -> dict:
    """In a process that does nothing else."""
    torch.set_num_threads(1)
    with torch.device("meta"):
        nn.Embedding(1, 1)  # torch imports much when meta is first used
    fanin.initialize_(nn.Linear(1, 1))  # and fanin when it first plans
    clock, before = Stopwatch(), resident("VmRSS")
    with clock("all"):
        made = WAYS[way](layers, clock)
    peak = resident("VmHWM") - before
    size = sum(p.nbytes for p in (made.parameters() if isinstance(made, nn.Module) else made))
    parts = {name: took.cpu for name, took in clock.parts.items()}
    return {"cpu": parts.pop("all"), "peak": peak / size, "parts": parts}


def sharded(rank: int, world: int, layers: int, folder: str) -> None:
    """One rank: fill its shards and verify them; what it took goes to a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    with torch.device("meta"):
        model = Llama(layers)
    plan = fanin.plan(model, scheme="gpt2")
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    drawn, write = [], _fill._write

    def counted(tensor, law, shard, sample):
        drawn.append(shard.local.numel())
        write(tensor, law, shard, sample)

    _fill._write = counted
    clock, before = Stopwatch(), resident("VmRSS")
    with clock("fill"):
        plan.materialize_(model, seed=0)
    peak, count = resident("VmHWM") - before, sum(drawn)
    with clock("ranks"):
        plan.verify(model, None)
    with clock("verify"):
        plan.verify(model, 0)
    local = sum(p.to_local().nbytes for p in model.parameters())
    found = {name: took.cpu for name, took in clock.parts.items()}
    found |= {"peak": peak / local, "drawn": count}
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def over(world: int, layers: int) -> dict:
    """The busiest of ``world`` ranks."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            sys.executable,
            __file__,
            "--layers",
            str(layers),
            "--worlds",
            str(world),
            "--folder",
            folder,
        ]
        ranks = [subprocess.Popen([*words, "--rank", str(rank)]) for rank in range(world)]
        if any(rank.wait() for rank in ranks):
            raise SystemExit(f"a rank of {world} failed")
        files = [Path(folder, f"{rank}.json") for rank in range(world)]
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return {name: max(f[name] for f in found) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--way", choices=WAYS, help="one way, in this process, as JSON")
    parser.add_argument("--rank", type=int, help="one rank, in this process")
    parser.add_argument("--folder", help="where that rank writes")
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measure(given.way, given.layers)))
        return
    if given.rank is not None:
        sharded(given.rank, given.worlds[0], given.layers, given.folder)
        return
    check_room(given.layers, "float32")
    with torch.device("meta"):
        count = sum(p.numel() for p in Llama(given.layers).parameters())
    print(f"{count:,} parameters, float32, {4 * count / 2**30:.2f} GiB; one thread")
    print(f"{'one process':34}{'CPU s':>7}{'x fill_':>9}{'x ours':>8}{'peak':>7}  parts, CPU s")
    found = {}
    for way in WAYS:
        words = [sys.executable, __file__, "--layers", str(given.layers), "--way", way]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
        found[way] = json.loads(done.stdout.splitlines()[-1])
    floor, ours = found["meta, to_empty, fill_(0)"]["cpu"], found["plan.materialize_"]["cpu"]
    for way, took in found.items():
        parts = ", ".join(f"{name} {cpu:.2f}" for name, cpu in took["parts"].items())
        print(
            f"{way:34}{took['cpu']:7.2f}{took['cpu'] / floor:9.2f}{took['cpu'] / ours:8.2f}"
            f"{took['peak']:7.3f}  {parts}"
        )
    print(f"\n{'FSDP2, busiest rank':22}{'fill CPU s':>11}{'drawn':>15}{'share':>8}{'peak':>7}{'ranks CPU s':>13}{'verify CPU s':>14}")  # fmt: skip
    for world in given.worlds:
        took = over(world, given.layers)
        print(
            f"{world:3} rank(s){'':11}{took['fill']:11.2f}{took['drawn']:15,}{took['drawn'] / count:8.3f}"
            f"{took['peak']:7.3f}{took['ranks']:13.2f}{took['verify']:14.2f}"
        )


if __name__ == "__main__":
    main()
