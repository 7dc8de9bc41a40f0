"""What the zoo is made of: entries by name, and the inputs that several of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fanin import Inputs


@dataclass(frozen=True)
class Architecture:
    """One entry of the zoo.

    Args:
        package: what must be installed beside torch; empty for nothing.
        build: a model with its own starting values, drawn anew at each call.
        inputs: example inputs, drawn anew at each call.
    """

    package: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]


ZOO: dict[str, Architecture] = {}


def entry(name: str, inputs: Callable[[], Inputs], *sizes: object) -> Callable[[type], type]:
    """Put ``cls(*sizes)`` into the zoo."""

    def add(cls: type) -> type:
        ZOO[name] = Architecture("", lambda: cls(*sizes), inputs)
        return cls

    return add


def normal(*shape: int) -> Callable[[], Inputs]:
    return lambda: Inputs(torch.randn(shape))


def ids(*shape: int, vocabulary: int = 500) -> Tensor:
    return torch.randint(vocabulary, shape)


def tokens(*shape: int) -> Callable[[], Inputs]:
    return lambda: Inputs(ids(*shape))
