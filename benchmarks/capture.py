"""What analysis costs: capture, propagation, and the whole of `fanin.check`, at full size.

CPU time of this process with one thread, warm: the median of the runs after the first ones. The ratio
to torch.export and to a forward pass is of medians from one process. Plain torch.nn models
(_models.py), and the same architectures from transformers where it is installed.

Run: python benchmarks/capture.py [--runs 7] [--only gpt2] [--no-export]
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from _models import GPT2, Llama, ResNet50
from torch import nn

import fanin
from fanin._capture import capture
from fanin._check import propagated
from fanin._graph import Graph

TOKENS = (2, 128)
IMAGES = (2, 3, 224, 224)
EXPORTS = 2  # runs of torch.export, which is slow


class Case(NamedTuple):
    """A model, its input, and the seconds that are aimed at.

    Args:
        build: makes it, in eval mode.
        shape: of the input: token ids, or images.
        capture: at most this long.
        meta: on the meta device.
        needs: a package.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    capture: float
    meta: bool = False
    needs: str = "torch"


def hf_resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig())


def hf_gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(use_cache=False))


def hf_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(use_cache=False))


CASES = {
    "resnet50": Case(ResNet50, IMAGES, 0.050),
    "gpt2": Case(GPT2, TOKENS, 0.050),
    "llama-7b": Case(Llama, TOKENS, 0.300, meta=True),
    "transformers resnet50": Case(hf_resnet, IMAGES, 0.050, needs="transformers"),
    "transformers gpt2": Case(hf_gpt2, TOKENS, 0.050, needs="transformers"),
    "transformers llama-7b": Case(hf_llama, TOKENS, 0.300, meta=True, needs="transformers"),
}


class Took(NamedTuple):
    """Seconds; None where not measured."""

    capture: float
    cold: float
    export: float | None
    propagation: float
    nodes: int
    check: float
    forward: float | None


def seconds(function: Callable[[], Any], runs: int, first: int = 2) -> float:
    """CPU time of this process: the median of ``runs`` calls after ``first`` others."""
    for _ in range(first):
        function()
    return statistics.median(_each(function, runs))


def _each(function: Callable[[], Any], runs: int) -> Iterator[float]:
    for _ in range(runs):
        gc.collect()
        start = time.process_time()
        function()
        yield time.process_time() - start


def built(case: Case) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    with torch.device("meta" if case.meta else "cpu"):
        model = case.build().eval()
    inputs = (
        torch.randn(case.shape) if len(case.shape) == 4 else torch.randint(0, 32000, case.shape)
    )
    return model, inputs


def measured(case: Case, runs: int, export: bool) -> Took:
    model, x = built(case)
    start = time.process_time()
    graph = capture(model, x)
    cold = time.process_time() - start
    return Took(
        seconds(lambda: capture(model, x), runs),
        cold,
        seconds(lambda: exported(model, x), EXPORTS, 1) if export else None,
        seconds(lambda: propagated(model, graph), runs) - weights_alone(model, graph, runs),
        len(graph.nodes),
        seconds(lambda: fanin.check(model, x), runs),
        None if case.meta else seconds(lambda: run(model, x), runs),
    )


def weights_alone(model: nn.Module, graph: Graph, runs: int) -> float:
    """Reading the parameters' numbers, which is no propagation."""
    empty = Graph(graph.values, ())
    return seconds(lambda: propagated(model, empty), runs)


def exported(model: nn.Module, x: torch.Tensor) -> None:
    """With fake tensors, as torch.export makes them of whatever it is given."""
    with warnings.catch_warnings(), torch.device("meta" if on_meta(model) else "cpu"):
        warnings.simplefilter("ignore")
        torch.export.export(model, (x.to("meta") if on_meta(model) else x,))


def on_meta(model: nn.Module) -> bool:
    return next(model.parameters()).is_meta


@torch.no_grad()
def run(model: nn.Module, x: torch.Tensor) -> None:
    model(x)


def shown(name: str, case: Case, took: Took) -> str:
    per_node = 1e3 * took.propagation / took.nodes
    ratio = "" if took.export is None else f"{took.export / took.capture:7.1f}"
    forward = "" if took.forward is None else f"{1e3 * took.forward:9.0f}"
    return (
        f"{name:22}{took.nodes:6}{1e3 * took.capture:8.1f}{1e3 * case.capture:6.0f}"
        f"{1e3 * took.cold:8.0f}{ratio:>8}{1e3 * took.propagation:9.0f}{per_node:8.3f}"
        f"{1e3 * took.check:9.0f}{forward:>9}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--no-export", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, torch {torch.__version__}"
    )
    print(
        f"{'CPU ms, one thread':22}{'nodes':>6}{'capture':>8}{'goal':>6}{'first':>8}{'export/':>8}"
        f"{'propagate':>9}{'a node':>8}{'check':>9}{'forward':>9}"
    )
    for name, case in CASES.items():
        if given.only not in name:
            continue
        if importlib.util.find_spec(case.needs) is None:
            print(f"{name:22}skipped: {case.needs} is not installed")
            continue
        print(shown(name, case, measured(case, given.runs, not given.no_export)), flush=True)


if __name__ == "__main__":
    main()
