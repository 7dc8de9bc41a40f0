"""The experiments behind the rules: each computes, prints a table and draws a figure.

`NAMES` and `SUMMARIES` cost nothing to import; torch is loaded by `run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from .._errors import one_of
from ._result import Progress as Progress
from ._result import Result as Result
from ._result import Table as Table
from ._result import silent

SUMMARIES: Mapping[str, str] = MappingProxyType(
    {
        "main": "two deep networks on digits that PyTorch's default cannot train, and fanin can",
        "100-layers": "a signal through 100 layers under seven initializers, beside the theory",
        "fan-modes": "fan_in keeps the forward variance, fan_out the backward one",
        "leaky-relu": "LeakyReLU activations and weights under kaiming_uniform, by slope",
        "convergence": "an MLP and a CNN of 30 layers trained from each initializer",
    }
)
NAMES: tuple[str, ...] = tuple(SUMMARIES)
_MODULES = {
    "main": "main",
    "100-layers": "hundred_layers",
    "fan-modes": "fan_modes",
    "leaky-relu": "leaky_relu",
    "convergence": "convergence",
}


def run(name: str, *, out: Path, seed: int = 0, progress: Progress | None = None) -> Result:
    """Run one experiment.

    Args:
        name: one of `NAMES`.
        out: folder for the figures; made if it is missing.
        seed: the same seed gives the same figures on the same machine.
        progress: called with (fraction done, what is being done).

    Returns:
        The tables, the figures' paths and what to note. torch's random state, threads and
        flags are afterwards as they were.

    Raises:
        InvalidValueError: an unknown name; the message lists the known ones and the closest.
        MissingExtraError: the experiment needs the digits and scikit-learn is not installed.
    """
    module = import_module(f".{_MODULES[one_of('experiment', name, NAMES)]}", __name__)
    result: Result = module.run(out=Path(out), seed=seed, progress=progress or silent)
    return result


__all__ = ["NAMES", "SUMMARIES", "Progress", "Result", "Table", "run"]
