"""What a model is called with: positional and keyword arguments in one value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Inputs:
    """Arguments for one call of a model: ``model(*inputs.args, **inputs.kwargs)``.

    Args:
        *args: positional arguments.
        **kwargs: keyword arguments.

    >>> Inputs(1, mask=None)
    Inputs(1, mask=None)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs

    def __repr__(self) -> str:
        words = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.kwargs.items()]
        return f"Inputs({', '.join(words)})"


def as_inputs(example_inputs: Any) -> Inputs:
    """A tuple is positional, a mapping is keyword, `Inputs` is itself, anything else one argument.

    >>> as_inputs({"x": 1})
    Inputs(x=1)
    """
    if isinstance(example_inputs, Inputs):
        return example_inputs
    if isinstance(example_inputs, tuple) and not hasattr(example_inputs, "_fields"):
        return Inputs(*example_inputs)
    if isinstance(example_inputs, Mapping):
        return Inputs(**example_inputs)
    return Inputs(example_inputs)
