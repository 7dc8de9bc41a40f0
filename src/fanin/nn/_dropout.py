"""Dropout by counter: which elements a layer drops is a function of seed, name, step and place."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from .._dropout_op import Key, drop, key_for, next_key, random_key, signed
from .._errors import InvalidValueError, finite
from .._names import module_name
from .._rng import Stream
from .._rng.philox import ROW_LIMIT

for _function in ("drop", "key_for", "next_key", "random_key"):
    torch.fx.wrap(_function)  # symbolic tracing records the calls, rather than one mask


def dropout(
    x: Tensor,
    p: float = 0.5,
    *,
    seed: int | None = None,
    name: str = "",
    step: int = 0,
    training: bool = True,
) -> Tensor:
    """``y = m x / (1 - p)``, each m one with probability 1 - p, else zero.

    m is a function of (seed, name, step, index of the element in row-major order) alone: not of threads, strides,
    device or dtype. A dropped NaN or infinity becomes 0. The backward pass draws m once more, so that
    no mask is stored; derivatives of every order are right.

    Args:
        x: float32, float64, bfloat16 or float16, of any shape.
        p: probability of a zero, in [0, 1].
        seed: in [0, 2^64); None takes one from torch's default generator, on every call anew.
        name: tells places apart that share a seed.
        step: tells the calls of one place apart, in [0, 2^32); for a seed that is given.
        training: False returns x itself, as p = 0 does.

    Returns:
        A tensor like x.

    Raises:
        InvalidValueError: an argument that does not fit.

    >>> dropout(torch.ones(8), 0.5, seed=1, name="attention")
    tensor([2., 0., 2., 0., 2., 2., 0., 2.])

    Source: Srivastava et al. 2014; docs/nn.md.
    """
    p = _probability(p)
    if not training or p == 0.0:
        return x
    if seed is None:
        return drop(x, random_key(x), name, p)
    return drop(x, key_for(x, _key(seed, name, step)), name, p)


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, faster on CPUs where tensors are large, and with a seed the same on every machine.

    In training each element is zero with probability p, else divided by 1 - p; in evaluation, and with p = 0, the
    layer returns its argument itself. Without a seed every call takes one from torch's default
    generator, so that torch.manual_seed and checkpointing work as they do with torch's. With one, call number
    ``step`` drops a function of (seed, name, step, index of the element): see `dropout`.

    Args:
        p: probability of a zero, in [0, 1].
        seed: in [0, 2^64); None follows torch's generator.
        name: tells layers apart that share a seed; `name_dropouts_` gives each the name that it has in a model.

    Raises:
        InvalidValueError: p outside [0, 1], or no such seed.

    >>> layer = Dropout(0.5, seed=1, name="h.0.drop")
    >>> layer(torch.ones(8)), layer(torch.ones(8)), layer.step
    (tensor([0., 0., 2., 0., 2., 0., 2., 2.]), tensor([0., 2., 2., 2., 0., 0., 0., 2.]), 2)

    Source: Srivastava et al. 2014; docs/nn.md.
    """

    def __init__(self, p: float = 0.5, *, seed: int | None = None, name: str = "") -> None:
        super().__init__(_probability(p))
        self.name = name
        # (seed, step) on the CPU. No buffer: those follow the model to a GPU, and each call would wait for it.
        self._counter: Tensor | None = None
        if seed is not None:
            self.seed_(seed)

    @property
    def seed(self) -> int | None:
        """The seed; None where torch's generator is followed."""
        return None if self._counter is None else int(self._counter[0]) % 2**64

    @property
    def step(self) -> int:
        """How many masks this layer has drawn by its seed."""
        return 0 if self._counter is None else int(self._counter[1])

    def seed_(self, seed: int | None, step: int = 0) -> Dropout:
        """Draw from now on by this seed, from this step on; by torch's generator if None."""
        if seed is None:
            self._counter = None
            return self
        key = _key(seed, self.name, step)
        self._counter = torch.tensor([signed(key.seed), step], dtype=torch.int64, device="cpu")
        return self

    def forward(self, x: Tensor) -> Tensor:
        """The tensor with a part of it dropped, in training."""
        if not self.training or self.p == 0.0:
            return x
        if self._counter is None:
            return drop(x, random_key(x), self.name, self.p)
        return drop(x, next_key(x, self._counter, self.name), self.name, self.p)

    def extra_repr(self) -> str:
        """What is not the default."""
        seeded = "" if self._counter is None else f", seed={self.seed}, name={self.name!r}"
        return f"p={self.p}{seeded}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._counter is not None:
            destination[prefix + "step"] = self._counter[1].clone()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Take up the step that was saved; a state without one, of a layer without seed or of torch's, is fine."""
        step = state_dict.get(prefix + "step")
        if step is None or self._counter is None:
            known = {k: v for k, v in state_dict.items() if k != prefix + "step"}
            super()._load_from_state_dict(known, prefix, *rest)
        else:
            self._counter[1] = int(step)


def name_dropouts_(model: nn.Module, *, seed: int | None = None) -> nn.Module:
    """Give every `Dropout` of a model its name in the model, so that layers with one seed drop differently.

    Args:
        model: what compile, checkpoint and data-parallel wrappers add to names is left out.
        seed: if given, the seed of all of them, from step 0.

    Returns:
        ``model``.

    >>> model = name_dropouts_(nn.Sequential(nn.Linear(2, 2), Dropout(0.1)), seed=7)
    >>> model[1]
    Dropout(p=0.1, seed=7, name='1')
    """
    for path, module in model.named_modules():
        if isinstance(module, Dropout):
            module.name = module_name(path)
            if seed is not None:
                module.seed_(seed)
    return model


def _probability(p: float) -> float:
    number = finite("p", p, least=0.0)
    if number > 1.0:
        raise InvalidValueError(
            f"p must be a probability, at most 1; got {p!r}. It is that of a zero: 0.1 keeps nine tenths."
        )
    return number


def _key(seed: int, name: str, step: int) -> Key:
    """The key, once it is known to be one."""
    stream = Stream(name, seed)
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < ROW_LIMIT:
        raise InvalidValueError(f"step must be an integer in [0, 2**32); got {step!r}.")
    return Key(stream.seed, step)
