"""Does a better start train better? Small networks trained from five starts, several seeds each.

Digits of scikit-learn and characters of Python's own documentation, so nothing is downloaded. Every
start of a network gets the same batches, optimizer, steps and grid of learning rates; of the grid
the rate counts that is best on average over the seeds, for each start by itself. The figure is the
training loss averaged over the last tenth of the steps.

Starts: the network's own, `anyinit` (analytic), `lsuv` (the package), `fanin.lsuv_`,
`fanin.initialize_` with scheme "auto".

auto is better or worse than the best of the three that are not fanin's (own, anyinit, lsuv) if the means m over n seeds differ by more than
noise, 2 standard errors: |m_a - m_o| > 2 sqrt((s_a^2 + s_o^2) / n), s the deviation over seeds.

Run: python benchmarks/train.py [--only relu gpt] [--seeds 3] [--steps 150] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from pydoc_data.topics import topics
from statistics import fmean, stdev
from typing import NamedTuple

import _nets
import torch
from torch import Tensor, nn
from torch.nn import functional

import fanin
from fanin.experiments._digits import load_digits
from fanin.experiments._networks import convnet, mlp
from fanin.experiments._sandbox import sandbox

STEPS, LAST = 150, 0.1  # of the steps, those that the figure averages over
NOISE = 2.0  # standard errors
CHARACTERS = 300_000


# Data: inputs and what to predict, a row an example


class Data(NamedTuple):
    """Inputs, and what is to be said of each."""

    x: Tensor
    y: Tensor


@cache
def digits() -> Data:
    """N x 64 pixels, N classes."""
    loaded = load_digits()
    return Data(loaded.x_train, loaded.y_train)


@cache
def characters() -> Data:
    """N x T characters, N x T next characters: what `help()` says about Python's topics."""
    text = "".join(topics[name] for name in sorted(topics))[:CHARACTERS]
    codes = [ord(c) - 31 if 32 <= ord(c) < 127 else (c == "\n") * 96 for c in text]
    windows = torch.tensor(codes).unfold(0, _nets.TIME + 1, _nets.TIME)
    return Data(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())


def batches(data: Data, size: int, seed: int) -> Iterator[Data]:
    """Without end: epoch after epoch, each in a new order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(data.x), generator=generator)
        for rows in order[: len(order) - len(order) % size].split(size):
            yield Data(data.x[rows], data.y[rows])


# What is trained


def cnn() -> nn.Module:
    """20 layers of 12 channels; in the layout that `lsuv` can work on."""
    return convnet(20, 12, halve_at=4).to(memory_format=torch.contiguous_format)


class Case(NamedTuple):
    """A network, and how it is trained."""

    name: str
    make: Callable[[], nn.Module]
    data: Callable[[], Data]
    optimizer: partial[torch.optim.Optimizer]
    rates: tuple[float, ...]
    batch: int


sgd = partial(torch.optim.SGD, momentum=0.9, fused=True)
adam = partial(torch.optim.Adam, fused=True)
SGD, ADAM = (0.003, 0.01), (0.003, 0.01)
CASES = (
    Case("tanh", lambda: mlp(30, 48, nn.Tanh), digits, sgd, SGD, 32),
    Case("relu", lambda: mlp(30, 48, nn.ReLU), digits, sgd, SGD, 32),
    Case("gelu", lambda: mlp(30, 48, nn.GELU), digits, sgd, SGD, 32),
    Case("silu", lambda: mlp(30, 48, nn.SiLU), digits, adam, (0.001, 0.003), 32),
    Case("cnn", cnn, digits, sgd, SGD, 32),
    Case("resnet", _nets.resnet, digits, sgd, (0.03, 0.1), 32),
    Case("norm-free", _nets.norm_free, digits, sgd, (0.01, 0.03), 32),
    Case("mixer", _nets.mixer, digits, adam, ADAM, 32),
    Case("vit", _nets.vit, digits, adam, ADAM, 32),
    Case("gru", lambda: _nets.Recurrent(nn.GRU), characters, adam, ADAM, 8),
    Case("lstm", lambda: _nets.Recurrent(nn.LSTM), characters, adam, ADAM, 8),
    Case("gpt", _nets.GPT, characters, adam, ADAM, 8),
    Case("llama", _nets.Llama, characters, adam, ADAM, 8),
    Case("post-norm", _nets.PostNorm, characters, adam, (0.001, 0.003), 8),
)


# Starts: (model, one batch of inputs, seed) -> None


def own(model: nn.Module, x: Tensor, seed: int) -> None:
    """As the constructor leaves it."""


def any_init(model: nn.Module, x: Tensor, seed: int) -> None:
    import anyinit

    anyinit.initialize(model, "analytic", x, seed=seed)


def lsuv_package(model: nn.Module, x: Tensor, seed: int) -> None:
    import lsuv

    lsuv.lsuv_with_singlebatch(model, x, verbose=False)


def lsuv_fanin(model: nn.Module, x: Tensor, seed: int) -> None:
    fanin.lsuv_(model, x, seed=seed)


def auto(model: nn.Module, x: Tensor, seed: int) -> None:
    fanin.initialize_(model, x, seed=seed)


STARTS = {
    "own": own,
    "anyinit": any_init,
    "lsuv": lsuv_package,
    "fanin.lsuv_": lsuv_fanin,
    "auto": auto,
}
OURS = ("fanin.lsuv_", "auto")


# Training


def started(case: Case, start: str, seed: int) -> nn.Module:
    """The network, ready to be trained."""
    torch.default_generator.manual_seed(seed)
    model = case.make()
    example = next(batches(case.data(), case.batch, seed))
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        STARTS[start](model, example.x, seed)
    return model.train()


def trained(case: Case, model: nn.Module, rate: float, steps: int, seed: int) -> float:
    """Mean loss of the last steps; infinite if it was ever not finite."""
    optimizer = case.optimizer(model.parameters(), lr=rate)
    losses = []
    for _, (x, y) in zip(range(steps), batches(case.data(), case.batch, seed), strict=False):
        loss = functional.cross_entropy(model(x).flatten(0, -2), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            return math.inf
    return fmean(losses[-max(1, round(LAST * steps)) :])


@dataclass(frozen=True)
class Outcome:
    """One start of one network: losses per seed at the best learning rate."""

    start: str
    rate: float
    losses: tuple[float, ...]
    error: str = ""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.losses) if self.losses else math.inf

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds."""
        finite = len(self.losses) > 1 and math.isfinite(self.mean)
        return stdev(self.losses) if finite else 0.0


def outcome(case: Case, start: str, seeds: int, steps: int) -> Outcome:
    """At the best of the learning rates; or why the start could not be made."""
    try:
        models = [started(case, start, seed) for seed in range(seeds)]
    except Exception as error:  # noqa: BLE001 - another's program: what it cannot do is a result
        return Outcome(start, 0.0, (), f"{type(error).__name__}: {error}".partition("\n")[0])
    found = []
    for rate in case.rates:
        losses = (trained(case, deepcopy(m), rate, steps, i) for i, m in enumerate(models))
        found.append(Outcome(start, rate, tuple(losses)))
    return min(found, key=lambda o: o.mean)


def verdict(outcomes: list[Outcome]) -> tuple[str, Outcome]:
    """How auto compares with the best of those that are not fanin's, and which that is."""
    mine = next(o for o in outcomes if o.start == "auto")
    best = min((o for o in outcomes if o.start not in OURS), key=lambda o: o.mean)
    noise = NOISE * math.sqrt((mine.spread**2 + best.spread**2) / max(1, len(mine.losses)))
    if abs(mine.mean - best.mean) <= noise or mine.mean == best.mean:
        return "equal", best
    return ("better" if mine.mean < best.mean else "worse"), best


# Printing


def row(o: Outcome, best: Outcome, word: str) -> str:
    if o.error:
        return f"  {o.start:12} fails: {o.error}"
    mark = f"  {word}" if o.start == "auto" else "  best of the others" if o is best else ""
    return f"  {o.start:12} {o.mean:8.4f} +- {o.spread:.4f}  at {o.rate:g}{mark}"


def summary(verdicts: dict[str, str]) -> str:
    count = {w: sum(v == w for v in verdicts.values()) for w in ("better", "equal", "worse")}
    total = len(verdicts)
    met = not count["worse"] and 2 * count["better"] >= total
    return (
        f"auto against the best of the others: better on {count['better']} of {total}, "
        f"equal within seed noise on {count['equal']}, worse on {count['worse']}. "
        f"Never worse and better on at least half: {'yes' if met else 'no'}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[c.name for c in CASES], metavar="NETWORK")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--json", type=Path, help="every figure into this file")
    args = parser.parse_args()
    verdicts, record = {}, {}
    with sandbox(0, flush_denormal=True):
        for case in CASES:
            if args.only and case.name not in args.only:
                continue
            clock = time.process_time()
            outcomes = [outcome(case, start, args.seeds, args.steps) for start in STARTS]
            verdicts[case.name], best = verdict(outcomes)
            count = sum(p.numel() for p in case.make().parameters())
            kind = case.optimizer.func.__name__
            seconds = time.process_time() - clock
            print(f"{case.name}: {count} parameters, {kind}, {seconds:.0f} s")
            for o in outcomes:
                print(row(o, best, verdicts[case.name]), flush=True)
            starts = {o.start: asdict(o) for o in outcomes}
            record[case.name] = {"verdict": verdicts[case.name], "starts": starts}
            if args.json:
                told = {"steps": args.steps, "seeds": args.seeds, "networks": record}
                args.json.write_text(json.dumps(told, indent=1))
    print(summary(verdicts))


if __name__ == "__main__":
    main()
