"""The operator behind `fanin.init`: one call that fills one tensor, with its seed as a tensor.

To torch.compile, vmap, export and FakeTensorMode it is an opaque operator that mutates its first
argument. The distribution travels as (kind, arguments), all that an operator's schema can carry.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ._errors import InvalidValueError, ModelError
from ._fill import place_of, recall_arguments, write, write_constant, write_known
from ._rng import Stream
from ._rng.backend import pack_words
from ._rng.stream import words_of
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


def put_at_once(tensor: Tensor, draw: Draw, key: str, generator: torch.Generator | None) -> bool:
    """`check`, `seed_for` and `put` in a tenth of the time; False, and nothing done, but for the plain case.

    It is plain to draw for a plain tensor by a law that has filled one before, while nothing watches.
    """
    kind, arguments = draw
    if kind in FIXED or kind not in DISTRIBUTIONS or is_watched():
        return False
    known = recall_arguments(tensor, DISTRIBUTIONS[kind], arguments)
    place = None if known is None else place_of(tensor, known)
    if known is None or place is None:
        return False
    low, high = two_words(generator)
    write_known(tensor, known, place, pack_words(*words_of(key, low | high << 32)))
    return True


def is_watched() -> bool:
    """Whether a mode, a transform of torch.func or a tracer is to see each operator."""
    return (
        torch._C._len_torch_dispatch_stack() > 0  # noqa: SLF001 - torch has no public names for these
        or torch._C._functorch.peek_interpreter_stack() is not None  # noqa: SLF001
        or torch._C._is_tracing()  # noqa: SLF001
    )


class _Pair(NamedTuple):
    """Two numbers in memory, for torch and for numpy."""

    tensor: Tensor
    array: Any


class _Words(threading.local):
    """Memory for the two words of a seed, a thread's own: torch takes long to make a tensor."""

    def __init__(self) -> None:
        with torch.inference_mode(mode=False):
            tensor = torch.empty(2, dtype=torch.int64, device="cpu")
        self.pair = _Pair(tensor, tensor.numpy())


_words = _Words()


def two_words(generator: torch.Generator | None) -> list[int]:
    """Two random numbers of 32 bits."""
    words = _words.pair
    if generator is None:
        words.tensor.random_(0, 2**32)
    elif generator.device.type == "cpu":
        words.tensor.random_(0, 2**32, generator=generator)
    else:
        return _randint(generator).tolist()
    return words.array.tolist()


def _randint(generator: torch.Generator | None) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.randint(2**32, (2,), dtype=torch.int64, device=device, generator=generator)


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
    return _randint(generator)


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
