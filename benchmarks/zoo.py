"""fanin on a zoo of architectures: coverage, time, prediction error, and the signal after each way to
start, beside the packages anyinit and lsuv.

Each architecture runs in a process of its own, so that one that fails or hangs costs one row. Those
whose package is not installed are skipped, with the reason.

Run: python benchmarks/zoo.py [--only NAMES] [--seeds 3] [--json PATH] [--no-peers] [--quick] [--train]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _zoo_entries import ZOO, Architecture
from _zoo_libraries import torchvision_not_needed
from _zoo_measure import PEERS, examined, one_line

from fanin import Inputs

QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
PARTS = ("_zoo_nets", "_zoo_sequences", "_zoo_fields", "_zoo_libraries")
LIMIT = 300  # seconds for one architecture

Row = dict[str, Any]


def zoo() -> dict[str, Architecture]:
    """All entries, by name."""
    for part in PARTS:
        importlib.import_module(part)
    return ZOO


# one process --------------------------------------------------------------------------------------


def examine(name: str, options: argparse.Namespace, answer: Connection) -> None:
    """Send one architecture's row, or what went wrong."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    methods = ["own", "auto"]
    if options.peers:
        methods += [p for p in PEERS if importlib.util.find_spec(p) is not None]
    try:
        answer.send(examined(zoo()[name], options.seeds, methods, train=options.train))
    except Exception as error:  # noqa: BLE001 - a row says what its model raised
        answer.send({"error": one_line(error), "trace": traceback.format_exc().splitlines()[-12:]})


def in_a_process(name: str, options: argparse.Namespace) -> Row:
    """The row of ``name``, or why there is none."""
    where = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    receiver, sender = where.Pipe(duplex=False)
    process = where.Process(target=examine, args=(name, options, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(options.limit):
            return {"error": f"no result within {options.limit} s"}
        return receiver.recv()
    except EOFError:
        process.join()
        return {"error": f"the process ended with exit status {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def warm(package: str) -> None:
    """What every process would otherwise import for itself."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    examined(
        Architecture("", lambda: torch.nn.Linear(2, 2), lambda: Inputs(torch.randn(2, 2))),
        1,
        ("auto",),
    )
    if package:
        with torchvision_not_needed() if package == "timm" else nullcontext():
            importlib.import_module(package)


# the table ----------------------------------------------------------------------------------------

HEAD = (
    f"{'architecture':22s} nodes unkn samp  cap ms prop ms   act |log2| (noise)         "
    f"grad |log2| (noise)        after"
)


def line(name: str, row: Row) -> str:
    if "error" in row:
        return f"{name:22s} failed: {row['error']}"
    unknown, sampled = sum(row["unknown"].values()), sum(row["sampled"].values())
    after = "; ".join(f"{k} {_spread(x)}" for k, x in row["after"].items())
    return (
        f"{name:22s} {row['nodes']:5d} {unknown:4d} {sampled:4d} {row['capture_ms']:7.1f} "
        f"{row['propagate_ms']:7.1f}   {_error(row['act'])}   {_error(row['grad'])}   {after}"
    )


def _error(found: Row) -> str:
    noise = (
        ""
        if found["noise_p95"] is None
        else f" ({found['noise_median']:.3f}, {found['noise_p95']:.3f})"
    )
    return f"{found['median']:.3f}, {found['p95']:.3f}{noise}"


def _spread(after: Row) -> str:
    if "error" in after:
        return f"failed: {after['error'][:80]}"
    return (
        f"{after['act_min']:.2g}..{after['act_max']:.2g} {100 * after['outside']:.0f}% out, "
        f"grad x{after['grad_depth_ratio']:.3g}, all x{after['grad_ratio']:.3g}"
    )


# the bars -----------------------------------------------------------------------------------------


def summary(rows: dict[str, Row]) -> Iterable[str]:
    """Each bar, what was reached, and whether that is enough."""
    ran = {n: r for n, r in rows.items() if "error" not in r}

    def share(count: int, of: int | None = None) -> float:
        return count / max(len(rows) if of is None else of, 1)

    def verdict(text: str, value: float, bar: float, *, most: bool = False, unit: str = "") -> str:
        good = value <= bar if most else value >= bar
        sign = "<=" if most else ">="
        return f"{'met   ' if good else 'MISSED'} {text}: {value:.3g}{unit} ({sign} {bar:g}{unit})"

    def models(found: Callable[[Row], bool]) -> float:
        return 100 * share(sum(found(r) for r in ran.values()))

    yield f"{len(ran)} of {len(rows)} architectures captured"
    yield verdict(
        "captured, covered without an unknown op, every parameter known",
        models(lambda r: not r["unknown"] and not r["unnamed"]), 100, unit=" %",
    )  # fmt: skip
    if not ran:
        return
    yield verdict(
        "activation error, median over leaves, median over models",
        median(r["act"]["median"] for r in ran.values()), 0.02, most=True,
    )  # fmt: skip
    yield verdict(
        "models with activation error p95 <= 0.2",
        models(lambda r: r["act"]["p95"] <= 0.2),
        75,
        unit=" %",
    )
    yield verdict(
        "models with activation error p95 <= 0.5",
        models(lambda r: r["act"]["p95"] <= 0.5),
        92,
        unit=" %",
    )
    yield verdict(
        "models with parameter-gradient error p95 <= 0.5",
        models(lambda r: r["grad"]["p95"] <= 0.5),
        75,
        unit=" %",
    )
    if "swiglu_gpt" in ran:
        worst = ran["swiglu_gpt"]["act"]["worst"][0]
        yield verdict(
            f"the 6-block SwiGLU GPT's worst leaf, {worst[0]}: off by",
            100 * (2 ** abs(math.log2(worst[2] / worst[3])) - 1),
            15,
            most=True,
            unit=" %",
        )
    per_node = [r["propagate_ms"] / max(r["nodes"], 1) for r in ran.values()]
    yield verdict("propagation, ms per node, median over models", median(per_node), 0.3, most=True)
    for method in next(iter(ran.values()))["after"]:
        done = [x for r in ran.values() if "error" not in (x := r["after"][method])]
        inside = [x["outside"] == 0 for x in done]
        even = [x["grad_depth_ratio"] <= 10 for x in done]
        fine = sum(a and b for a, b in zip(inside, even, strict=True))
        text = (
            f"after {method}: ran on {len(done)}, activation rms in [0.25, 4] at every leaf on {sum(inside)}, "
            f"gradient rms within x10 across depth on {sum(even)}, both"
        )
        if method == "auto":
            yield verdict(text, 100 * share(fine), 90, unit=" %")
        else:
            yield f"       {text}: {100 * share(fine):.3g} %"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="names, separated by commas")
    parser.add_argument("--seeds", type=int, default=3, help="draws of weights and inputs")
    parser.add_argument(
        "--json", type=Path, help="write all rows there, with the leaves that are worst"
    )
    parser.add_argument(
        "--peers", action=argparse.BooleanOptionalAction, default=True, help="anyinit and lsuv"
    )
    parser.add_argument("--quick", action="store_true", help="one seed, no peers")
    parser.add_argument("--train", action="store_true", help="in train mode instead of eval")
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds for one architecture")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.peers = 1, False
    os.environ |= QUIET
    entries = zoo()
    names = [n for n in options.only.split(",") if n] or list(entries)
    unknown = [n for n in names if n not in entries]
    if unknown:
        parser.error(f"no {', '.join(unknown)} in the zoo; it has {', '.join(entries)}")
    rows: dict[str, Row] = {}
    print(HEAD)
    for name in names:
        package = entries[name].package
        if package and importlib.util.find_spec(package) is None:
            print(f"{name:22s} skipped: {package} is not installed")
            continue
        warm(package)
        rows[name] = in_a_process(name, options)
        print(line(name, rows[name]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
    print(*summary(rows), sep="\n")


if __name__ == "__main__":
    main()
