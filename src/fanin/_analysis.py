"""A model and its inputs -> its graph's structure, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ._capture import capture
from ._structure import Structure


@dataclass(frozen=True)
class Analysis:
    """What the graph shows.

    Args:
        structure: of the captured graph; None where there is none.
        note: one sentence for the head of a plan or report.
    """

    structure: Structure | None
    note: str


def analyse(model: nn.Module, example_inputs: Any) -> Analysis:
    """Capture the model's graph; a model that cannot be captured is said to be so, with the reason."""
    if example_inputs is None:
        return Analysis(
            None,
            "planned from module types and their order: no inputs were given, the graph was not analysed",
        )
    try:
        graph = capture(model, example_inputs)
    except Exception as error:  # noqa: BLE001 - whatever the user's model raises, a plan can still be made
        last = str(error).strip().splitlines()
        return Analysis(
            None,
            "planned from module types and their order: the graph could not be captured "
            f"({type(error).__name__}: {last[0] if last else ''})",
        )
    unused = f"; {len(graph.unused)} parameters unused" if graph.unused else ""
    return Analysis(
        Structure(graph), f"planned from the model's graph of {len(graph.nodes)} ops{unused}"
    )
