"""CPU time of `fanin.nn.TransformerEncoder` against torch.nn.TransformerEncoder with the same weights.

Both run in turn, round after round, in one process, on one thread; a ratio is the median over rounds of
what torch took over what fanin took in the same round: above 1 fanin is faster. torch's encoder is in
its best form: in eval mode under inference_mode its fast path runs (in post-norm with nested tensors
where there is padding). With --compile both through torch.compile too, which takes minutes to compile.

Run: python benchmarks/attention.py [--length 256 1024] [--layers 6] [--rounds 7] [--only train] [--compile]
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from fanin.nn import from_torch

D, HEADS, BATCH = 512, 8, 8


@dataclass(frozen=True)
class Case:
    """What is run: a name, and how the encoders are built and called."""

    name: str
    train: bool
    norm: str = "pre"
    dropout: float = 0.0
    padded: bool = False


CASES = (
    Case("eval, pre-norm", train=False),
    Case("eval, post-norm", train=False, norm="post"),
    Case("eval, pre-norm, padding", train=False, padded=True),
    Case("eval, post-norm, padding", train=False, norm="post", padded=True),
    Case("train, pre-norm", train=True),
    Case("train, pre-norm, dropout 0.1", train=True, dropout=0.1),
    Case("train, pre-norm, padding", train=True, padded=True),
    Case("train, pre-norm, padding, dropout 0.1", train=True, dropout=0.1, padded=True),
)


def encoders(case: Case, layers: int) -> tuple[nn.Module, nn.Module]:
    """torch's and ours, with equal weights."""
    pre = case.norm == "pre"
    layer = nn.TransformerEncoderLayer(
        D, HEADS, 4 * D, case.dropout, "gelu", batch_first=True, norm_first=pre
    )
    norm = nn.LayerNorm(D) if pre else None
    theirs = nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=not pre)
    theirs.train(case.train)
    return theirs, from_torch(theirs)


def padding(length: int) -> Tensor:
    """Sequences from an eighth of the length to all of it: 44 % of the tokens are padding."""
    lengths = torch.linspace(0.125, 1.0, BATCH).mul(length).round()
    return torch.arange(length) >= lengths[:, None]


def step(call: Callable[[], Tensor], module: nn.Module, train: bool) -> float:
    start = time.process_time()
    if train:
        call().square().mean().backward()
        for parameter in module.parameters():
            parameter.grad = None
    else:
        with torch.inference_mode():
            call()
    return time.process_time() - start


def forms(
    case: Case, layers: int, length: int, compiled: bool
) -> dict[str, tuple[Callable, nn.Module]]:
    """Name -> what to call."""
    theirs, ours = encoders(case, layers)
    x = torch.randn(BATCH, length, D)
    padded = padding(length) if case.padded else None
    found = {
        "torch": (lambda: theirs(x, src_key_padding_mask=padded), theirs),
        "fanin": (lambda: ours(x, key_padding_mask=padded), ours),
    }
    if compiled:
        quick, own = torch.compile(theirs), torch.compile(ours)
        found["torch, compiled"] = (lambda: quick(x, src_key_padding_mask=padded), theirs)
        found["fanin, compiled"] = (lambda: own(x, key_padding_mask=padded), ours)
    return found


def measure(
    case: Case, layers: int, length: int, rounds: int, compiled: bool
) -> dict[str, list[float]]:
    """Name -> seconds of each round, after one that does not count."""
    runs = forms(case, layers, length, compiled)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, (call, module) in runs.items():
            times[name].append(step(call, module, case.train))
    return {name: seconds[1:] for name, seconds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message=".*nested tensors is in prototype.*")
    print(
        f"d {D}, heads {HEADS}, batch {BATCH}, layers {args.layers}, one thread, torch {torch.__version__}"
    )
    print(f"{'case':38s} {'T':>5s} {'form':>16s} {'seconds':>8s} {'x torch':>8s}  rounds")
    for length in args.length:
        for case in CASES:
            if args.only not in case.name:
                continue
            times = measure(case, args.layers, length, args.rounds, args.compile)
            for name, seconds in times.items():
                ratios = [a / b for a, b in zip(times["torch"], seconds, strict=True)]
                spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
                print(
                    f"{case.name:38s} {length:5d} {name:>16s} {median(seconds):8.3f} {median(ratios):8.2f}  {spread}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
