"""Write the golden vectors of dropout: `python tests/golden/make_dropout.py`, once for each engine name.

As with `make.py`: a difference means that every mask ever drawn has changed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from fanin._rng import ENGINE
from fanin.nn import dropout

PATH = Path(__file__).with_name("dropout.json")
SHOWN = 32
SIZES = [1, 100, 128, 1000]
PS = [0.1, 0.5, 0.0001, 0.999]
KEYS = [("", 0, 0), ("h.0.drop", 7, 1), ("Schicht/ß/重み", 2**64 - 1, 2**32 - 1), ("", 2**32, 77)]
DTYPES = ["float32", "float64", "bfloat16", "float16"]


def cases() -> list[dict]:
    """Every size, probability and dtype; seeds, names and steps of many sizes."""
    found = []
    for size in SIZES:
        for p in PS:
            for dtype in DTYPES:
                name, seed, step = KEYS[(len(found) // len(DTYPES) + len(found)) % len(KEYS)]
                found.append(
                    {"name": name, "seed": seed, "step": step, "p": p, "size": size, "dtype": dtype}
                )
    return found


def dropped(case: dict) -> dict:
    """Which of the first elements are kept, and a hash of all numbers made from 1, 2, 3, ..."""
    x = torch.arange(1, case["size"] + 1).to(getattr(torch, case["dtype"]))
    y = dropout(x, case["p"], seed=case["seed"], name=case["name"], step=case["step"])
    data = y.view(torch.uint8).numpy().tobytes()
    return {
        "kept": "".join(str(int(k)) for k in (y != 0)[:SHOWN].tolist()),
        "blake2b": hashlib.blake2b(data, digest_size=16).hexdigest(),
    }


def main() -> None:
    """Write the file, one case a line."""
    lines = [json.dumps(case | dropped(case), ensure_ascii=False) for case in cases()]
    body = ",\n".join(lines)
    PATH.write_text(f'{{"engine": "{ENGINE}", "cases": [\n{body}\n]}}\n', "utf-8")


if __name__ == "__main__":
    main()
