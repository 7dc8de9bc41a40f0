"""The operator behind `fanin.init`: one call that fills one tensor, with its seed as a tensor.

To torch.compile, vmap, export and FakeTensorMode it is an opaque operator that mutates its first
argument. The distribution travels as (kind, arguments), all that an operator's schema can carry.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ._errors import InvalidValueError, ModelError
from ._fill import write, write_constant
from ._rng import Stream
from ._shards import is_dtensor
from .distributions import DISTRIBUTIONS, Distribution

Draw = tuple[str, list[Any]]  # a distribution's kind, and its arguments by position

NATIVE = ("Zero", "Constant")  # torch writes these itself: any dtype, any value, nothing drawn
FIXED = (*NATIVE, "Identity", "Dirac")  # these need no random numbers
PARTWISE = ("Uniform", "TruncatedNormal", "BoundedNormal")  # of a complex number, each part alone

NAME = "fanin::init_"
torch.library.define(
    NAME, "(Tensor(a!) tensor, Tensor? seed, str kind, float[] arguments, str key) -> ()"
)


class InitValueError(InvalidValueError, RuntimeError):
    """A value that no distribution has: a ValueError here, where torch raises RuntimeError."""


class InitDtypeError(InvalidValueError, NotImplementedError):
    """A dtype without random numbers: a ValueError here, where torch raises NotImplementedError."""


class InitLazyError(ModelError, ValueError):
    """A parameter without a shape: a RuntimeError here, where torch raises that or ValueError."""


def check(draw: Draw, dtype: torch.dtype) -> None:
    """Raise what `put` would raise for a tensor of this dtype, before anything is written.

    Raises:
        InitValueError: a value that the distribution cannot have.
        InitDtypeError: random numbers for a dtype that holds none.
    """
    if draw[0] not in NATIVE:
        _distribution(*draw, dtype)


def put(tensor: Tensor, draw: Draw, key: str, seed: Tensor | None) -> None:
    """Fill ``tensor`` with one draw; ``seed`` as `seed_for` gives it."""
    kind, arguments = draw
    if kind in NATIVE:
        write_constant(tensor, *arguments)
    elif is_dtensor(tensor):
        _write(tensor, seed, kind, arguments, key)
    else:
        with torch.no_grad():
            torch.ops.fanin.init_(tensor, seed, kind, arguments, key)


def seed_for(tensor: Tensor, draw: Draw, generator: torch.Generator | None) -> Tensor | None:
    """64 random bits in two words, from ``generator``, else from torch's default one.

    None, and the generator is left as it is, where nothing is drawn: constants and meta tensors.
    """
    if draw[0] in FIXED or tensor.is_meta:
        return None
    if torch.compiler.is_compiling() or isinstance(tensor, FakeTensor):
        # Inductor replaces torch.randint by a generator of its own; this operator it leaves to torch.
        blank = tensor.new_empty(2, dtype=torch.int64, device="cpu")
        return torch.ops.aten.random.to(blank, 2**32, generator=generator)
    device = "cpu" if generator is None else generator.device
    return torch.randint(2**32, (2,), dtype=torch.int64, device=device, generator=generator)


def _distribution(kind: str, arguments: list[Any], dtype: torch.dtype) -> Distribution:
    if not (dtype.is_floating_point or dtype.is_complex or kind in FIXED):
        raise InitDtypeError(
            f"random starting values need a real or complex floating point tensor; got {dtype}. "
            "Convert it, e.g. with tensor.float()."
        )
    try:
        return DISTRIBUTIONS[kind](*arguments)
    except InvalidValueError as error:
        raise InitValueError(str(error)) from error


def _write(
    tensor: Tensor, seed: Tensor | None, kind: str, arguments: list[float], key: str
) -> None:
    law = _distribution(kind, arguments, tensor.dtype)
    low, high = (0, 0) if seed is None else seed.tolist()
    if tensor.dtype.is_complex and kind in PARTWISE:
        tensor = torch.view_as_real(tensor)
    write(tensor, law, Stream(key, low | high << 32))


def _write_nothing(
    tensor: Tensor, seed: Tensor | None, kind: str, arguments: list[float], key: str
) -> None:
    del seed, key
    _distribution(kind, arguments, tensor.dtype)


def _write_each(  # noqa: PLR0917 - the operator's own arguments
    info: Any,
    in_dims: tuple[int | None, ...],
    tensor: Tensor,
    seed: Tensor | None,
    kind: str,
    arguments: list[float],
    key: str,
) -> tuple[None, None]:
    """Under vmap: every example with its own seed (randomness="different"), or all with one ("same")."""
    of_tensor, of_seed = in_dims[:2]
    if of_tensor is None:
        raise ModelError(
            "under vmap the filled tensor must be one of the mapped arguments: examples with seeds of "
            "their own cannot share one tensor."
        )
    for i in range(info.batch_size):
        words = seed if seed is None or of_seed is None else seed.select(of_seed, i)
        torch.ops.fanin.init_(tensor.select(of_tensor, i), words, kind, arguments, key)
    return None, None


torch.library.impl(NAME, "CompositeExplicitAutograd", _write)
torch.library.register_fake(NAME, _write_nothing)
torch.library.register_vmap(NAME, _write_each)
