"""The rules: what an op does to moments, forward and backward, each a function under the op's name.

A rule's parameters are the names of ATen's schema (``self`` and ``input`` are both called ``x``); it
names those that it needs. Tensors come as `Abstract`, lists of tensors as lists, numbers as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .domain import Abstract

Result = Abstract | Sequence[Abstract]
Forward = Callable[..., Result]
Backward = Callable[..., Mapping[str, Any]]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Rule:
    """A function and the names of what it takes.

    Args:
        function: the rule.
        takes: names of its parameters; None where it takes everything.
    """

    function: Callable[..., Any]
    takes: frozenset[str] | None

    def __call__(self, **given: Any) -> Any:
        if self.takes is None:
            return self.function(**given)
        return self.function(**{name: given[name] for name in self.takes if name in given})


FORWARD: dict[str, Rule] = {}
BACKWARD: dict[str, Rule] = {}


def forward(*ops: str) -> Callable[[F], F]:
    """Register what ops do to moments: (arguments) -> moments of the output or outputs.

    Beside the op's own arguments a rule may name ``op`` (the op's name), ``shapes`` (the outputs'
    shapes) and ``dtypes``.

    >>> @forward("my_double")
    ... def my_double(x):
    ...     "2 x: means double, second moments grow fourfold."
    ...     return scaled(x, 2.0)
    """
    return _register(FORWARD, ops)


def backward(*ops: str) -> Callable[[F], F]:
    """Register an op's transpose: (gradients of the outputs, arguments) -> gradients by argument.

    Beside the op's own arguments a rule may name ``grad`` (moments of the first output's gradient),
    ``grads`` (of all outputs, None where nothing flows), ``output`` and ``outputs`` (the forward
    moments), unless an argument has that name. It returns {argument's name: moments of its gradient},
    for a list of tensors a list; missing ones get none.
    """
    return _register(BACKWARD, ops)


def _register(table: dict[str, Rule], ops: tuple[str, ...]) -> Callable[[Any], Any]:
    def register(function: Any) -> Any:
        parameters = inspect.signature(function).parameters.values()
        everything = any(p.kind is p.VAR_KEYWORD for p in parameters)
        takes = None if everything else frozenset(p.name for p in parameters)
        for op in ops:
            table[op] = Rule(function, takes)
        return function

    return register
