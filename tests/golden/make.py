"""Write the golden vectors of the engine: `python tests/golden/make.py`, once for each engine name.

A difference between this file's output and the committed one means that every weight ever drawn
has changed: such a change needs a new engine name and a new file, never a new version of this one.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from fanin._fill import fill_
from fanin._rng import ENGINE
from fanin.distributions import distribution_from_dict

PATH = Path(__file__).with_name(f"{ENGINE}.json")
SHOWN = 6

MATRIX, VECTOR, KERNEL, SCALAR = [5, 70], [130], [4, 3, 3, 2], []
LAWS = [
    ({"kind": "Constant", "value": 0.1}, [VECTOR]),
    ({"kind": "Normal", "std": 0.02, "mean": 0.0}, [MATRIX, VECTOR, KERNEL, SCALAR]),
    ({"kind": "Normal", "std": 1.0, "mean": -3.0}, [MATRIX]),
    ({"kind": "Uniform", "low": -0.1, "high": 0.3}, [MATRIX, VECTOR]),
    ({"kind": "TruncatedNormal", "sigma": 0.02, "cut": 2.0, "mean": 0.0}, [MATRIX]),
    ({"kind": "TruncatedNormal", "sigma": 1.0, "cut": 3.0, "mean": 0.5}, [MATRIX]),
    ({"kind": "TruncatedNormal", "sigma": 1.0, "cut": 4.5, "mean": 0.0}, [MATRIX]),
    ({"kind": "BoundedNormal", "mean": 0.0, "std": 1.0, "low": -0.5, "high": 2.0}, [MATRIX]),
    ({"kind": "BoundedNormal", "mean": 0.0, "std": 1.0, "low": 1.0, "high": "inf"}, [MATRIX]),
    ({"kind": "BoundedNormal", "mean": 0.0, "std": 0.1, "low": "-inf", "high": -4.0}, [MATRIX]),
    ({"kind": "Orthogonal", "gain": 1.0}, [[6, 6], [9, 4], [3, 2, 2, 2], [200, 140]]),
    ({"kind": "DeltaOrthogonal", "gain": 2.0}, [[4, 3, 2, 3]]),
    ({"kind": "Identity", "gain": 0.5}, [[3, 5]]),
    ({"kind": "Dirac", "groups": 2, "gain": 1.0}, [[4, 3, 2, 3]]),
    ({"kind": "Sparse", "sparsity": 0.3, "std": 0.01}, [[7, 9]]),
    ({"kind": "LooksLinear", "gain": 1.5}, [[6, 4], [4, 6, 2, 2]]),
    ({"kind": "LooksLinear", "outputs": False}, [[3, 8]]),
    ({"kind": "LooksLinear", "inputs": False, "centre": True}, [[6, 5, 3, 2]]),
]
DTYPES = ["float32", "float64", "bfloat16", "float16", "complex64", "complex128", "float8_e4m3fn"]
REAL_ONLY = {"Uniform", "TruncatedNormal", "BoundedNormal"}


def cases() -> list[dict]:
    """Every law, shape and dtype once; seeds and keys of many sizes and alphabets."""
    keys = [("", 0), ("layer.weight", 7), ("h.0.attn:q", 2**64 - 1), ("Gewicht/ß/重み", 2**32)]
    found = []
    for law, shapes in LAWS:
        for shape in shapes:
            for dtype in DTYPES:
                if not (dtype.startswith("complex") and law["kind"] in REAL_ONLY):
                    key, seed = keys[len(found) % len(keys)]
                    found.append(
                        {"law": law, "shape": shape, "dtype": dtype, "key": key, "seed": seed}
                    )
    return found


def outcome(case: dict) -> dict:
    """The first elements' bits, little-endian, and a hash of all of them."""
    law = distribution_from_dict(case["law"])
    tensor = torch.empty(case["shape"], dtype=getattr(torch, case["dtype"]))
    fill_(tensor, law, key=case["key"], seed=case["seed"])
    data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return {
        "first": data[: SHOWN * tensor.element_size()].hex(),
        "blake2b": hashlib.blake2b(data, digest_size=16).hexdigest(),
    }


def main() -> None:
    """Write the file, one case a line."""
    lines = [json.dumps(case | outcome(case), ensure_ascii=False) for case in cases()]
    body = ",\n".join(lines)
    PATH.write_text(f'{{"engine": "{ENGINE}", "cases": [\n{body}\n]}}\n', "utf-8")


if __name__ == "__main__":
    main()
