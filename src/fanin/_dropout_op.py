"""The operators behind `fanin.nn.Dropout`, and the short way around them.

`fanin::dropout` is a pure function of its arguments, linear in x, so that its derivative of any order is
itself. `fanin::dropout_key` counts the calls of a layer that has a seed. To torch.compile, export, vmap
and FakeTensorMode both are opaque.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from ._errors import InvalidValueError, ModelError
from ._init_op import is_watched, two_words
from ._rng import masks
from ._rng.dropout import Mask

NAME, NAME_OF_KEY = "fanin::dropout", "fanin::dropout_key"
torch.library.define(NAME, "(Tensor x, Tensor key, str name, float p) -> Tensor")
# By its tag the compiler restores torch's generator when it runs a checkpoint once more.
torch.library.define(
    NAME_OF_KEY,
    "(Tensor counter, str name) -> (Tensor, Tensor)",
    tags=(torch.Tag.nondeterministic_seeded,),
)

DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
CHUNK = 2**16  # elements for which the portable way holds a mask at a time
REMEMBERED = 2**16  # calls whose step can be found again when a checkpoint runs them once more

_LIMIT = 2**32
_ONE = torch.tensor([0, 1], dtype=torch.int64, device="cpu")
_Call = tuple[str | int, ...]  # name, seed, two words of torch's generator
_steps: OrderedDict[_Call, int] = OrderedDict()
_steps_lock = Lock()


class Key(NamedTuple):
    """Which mask: the seed, in [0, 2^64), and the step, in [0, 2^32)."""

    seed: int
    step: int


def drop(x: Tensor, key: Key | Tensor, name: str, p: float) -> Tensor:
    """``x / (1 - p)`` where the mask keeps, else 0.

    Args:
        x: real floating point.
        key: which mask, as one of the three functions below gives it for this tensor.
        name: of the layer.
        p: probability of a zero.
    """
    if isinstance(key, Key):
        if x.requires_grad and torch.is_grad_enabled():
            return _Drop.apply(x, key, name, p)
        return _dropped(x, key, name, p)
    if torch.compiler.is_compiling():
        return torch.ops.fanin.dropout(x, key, name, p)
    return _DropUnderTransforms.apply(x, key, name, p)


def key_for(x: Tensor, key: Key) -> Key | Tensor:
    """The key as `drop` wants it for this tensor: for the operators a tensor."""
    return key if is_plain(x) else as_tensor(key)


def random_key(x: Tensor) -> Key | Tensor:
    """64 bits from torch's default generator of the CPU, as one key."""
    if is_plain(x):
        return Key(*two_words(None))
    if torch.compiler.is_compiling() or isinstance(x, FakeTensor):
        # Inductor replaces torch.randint by a generator of its own; this operator it leaves to torch.
        return torch.ops.aten.random.to(torch.empty(2, dtype=torch.int64, device="cpu"), _LIMIT)
    return torch.randint(_LIMIT, (2,), dtype=torch.int64, device="cpu")


def next_key(x: Tensor, counter: Tensor, name: str) -> Key | Tensor:
    """The key of this call, and the counter (seed, step) advanced.

    When a checkpoint runs a call once more, during the backward pass, it gets the key of the first time. Both
    times then draw a word from torch's generator, whose state checkpoints restore: by it the call is known.
    """
    if not is_plain(x):
        key, following = torch.ops.fanin.dropout_key(counter, name)
        counter.copy_(following)
        return key
    found, again = _next(counter, name)
    if not again:
        counter.add_(_ONE)
    return found


def as_tensor(key: Key) -> Tensor:
    """The key as operators take it: two int64 on the CPU, the seed's bits as a signed number."""
    return torch.tensor([signed(key.seed), key.step], dtype=torch.int64, device="cpu")


def signed(seed: int) -> int:
    """64 bits as int64 has them."""
    return seed - 2**64 if seed >= 2**63 else seed


def is_plain(x: Tensor) -> bool:
    """Whether the short way does what the operators do: nothing traces, transforms or watches."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, torch.nn.Parameter)
        and x.is_cpu
        and not x.is_neg()
        and not x._is_zerotensor()  # noqa: SLF001 - torch has no public name for it
        and not is_watched()
        and forward_ad._current_level < 0  # noqa: SLF001
    )


class _Drop(torch.autograd.Function):
    """The short way's derivative; no tensor is saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, key: Key, name: str, p: float) -> Tensor:
        ctx.mask = key, name, p
        return _dropped(x, key, name, p)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        key, name, p = ctx.mask
        return drop(grad, key_for(grad, key), name, p), None, None, None


class _DropUnderTransforms(torch.autograd.Function):
    """The operator, for torch.func and forward derivatives, which operators of Python's do not reach."""

    @staticmethod
    def forward(x: Tensor, key: Tensor, name: str, p: float) -> Tensor:
        return torch.ops.fanin.dropout(x, key, name, p)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _remember(ctx, inputs, output)
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (key,) = ctx.saved_tensors
        return drop(grad, key, *ctx.rest), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (key,) = ctx.saved_tensors
        return drop(tangent, key, *ctx.rest)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        return _drop_each(info, in_dims, *arguments)


# What is computed


@lru_cache(maxsize=256)
def _factors(p: float) -> tuple[int, float]:
    return masks.threshold(p), 1.0 / (1.0 - p) if p < 1 else 0.0


def _dropped(x: Tensor, key: Key, name: str, p: float) -> Tensor:
    _check(x)
    out = torch.empty_like(x)
    if not x.numel():
        return out
    mask = Mask(masks.stream_words(name, key.seed), key.step, *_factors(p))
    source = x.detach().contiguous()
    target = out if out.is_contiguous() else torch.empty_like(source)
    if x.device.type != "cpu" or not mask.into(
        source.data_ptr(), target.data_ptr(), x.numel(), DTYPES[x.dtype], threads=torch.get_num_threads()
    ):  # fmt: skip
        _portable(source.view(-1), target.view(-1), mask)
    return out if target is out else out.copy_(target)


def _portable(source: Tensor, target: Tensor, mask: Mask) -> None:
    """The same numbers by torch's own operators, on any device."""
    for first in range(0, source.numel(), CHUNK):
        x = source[first : first + CHUNK]
        kept = _kept(mask, first, first + x.numel(), x.device)
        real = x if x.dtype == torch.float64 else x.float()
        target[first : first + CHUNK] = torch.where(kept, real * mask.scale, 0.0)


def _kept(mask: Mask, first: int, last: int, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.from_numpy(mask.keep(first, last))
    tiles = torch.arange(first // masks.TILE, -(-last // masks.TILE), device=device)
    kept = masks.keep(mask.words, mask.step, tiles, mask.threshold, torch)
    return kept.view(-1)[: last - first]


def _check(x: Tensor) -> None:
    if x.dtype not in DTYPES:
        raise InvalidValueError(
            f"dropout needs a tensor of float32, float64, bfloat16 or float16; got {x.dtype}. "
            "Convert it first, e.g. with x.float()."
        )
    if x.numel() > masks.ELEMENT_LIMIT:
        raise InvalidValueError(
            f"dropout reaches 2**35 elements; got {x.numel()}. Split the tensor and give each part a "
            "seed or a name of its own."
        )


def _next(counter: Tensor, name: str) -> tuple[Key, bool]:
    """The key of this call, and whether it is one that is run again."""
    seed, step = counter.tolist()
    if step >= _LIMIT:
        raise InvalidValueError(
            "a seed has masks for 2**32 steps, and all were drawn. Take another seed."
        )
    key = Key(seed % 2**64, step)
    again = torch._C._current_graph_task_id() != -1  # noqa: SLF001 - as torch.utils.checkpoint asks
    if again or _may_run_again():
        call: _Call = (name, key.seed, *two_words(None))
        with _steps_lock:
            if again:
                return Key(key.seed, _step_of(call)), True
            _steps[call] = step
            if len(_steps) > REMEMBERED:
                _steps.popitem(last=False)
    return key, False


def _step_of(call: _Call) -> int:
    if call not in _steps:
        raise ModelError(
            "a Dropout with a seed was called in a backward pass, and its first call cannot be found, so "
            "that its mask would be another one. Checkpoint with preserve_rng_state=True, or leave "
            "out the seed: masks then follow torch's generator."
        )
    return _steps[call]


def _may_run_again() -> bool:
    """Whether this may be inside a checkpoint: those run without gradients, or under hooks on saved tensors."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)  # noqa: SLF001
    return not torch.is_grad_enabled() or hooks is not None


# The operators


def _drop(x: Tensor, key: Tensor, name: str, p: float) -> Tensor:
    seed, step = key.tolist()
    return _dropped(x, Key(seed % 2**64, step), name, p)


def _drop_fake(x: Tensor, key: Tensor, name: str, p: float) -> Tensor:
    del key, name, p
    _check(x)
    return torch.empty_like(x)


def _drop_each(  # noqa: PLR0917 - the operator's own arguments
    info: Any, in_dims: tuple[int | None, ...], x: Tensor, key: Tensor, name: str, p: float
) -> tuple[Tensor, int]:
    """Under vmap: every example with its own mask (randomness="different"), or all with one ("same")."""
    of_x, of_key = in_dims[:2]
    each = [
        drop(
            x if of_x is None else x.select(of_x, i),
            key if of_key is None else key.select(of_key, i),
            name,
            p,
        )
        for i in range(info.batch_size)
    ]
    return torch.stack(each), 0


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    _, key, *ctx.rest = inputs
    ctx.save_for_backward(key)


def _drop_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (key,) = ctx.saved_tensors
    return torch.ops.fanin.dropout(grad, key, *ctx.rest), None, None, None


def _key(counter: Tensor, name: str) -> tuple[Tensor, Tensor]:
    key, again = _next(counter, name)
    return as_tensor(key), counter.clone() if again else counter + _ONE


def _key_fake(counter: Tensor, name: str) -> tuple[Tensor, Tensor]:
    del name
    return torch.empty_like(counter), torch.empty_like(counter)


torch.library.impl(NAME, "CompositeExplicitAutograd", _drop)
torch.library.register_fake(NAME, _drop_fake)
torch.library.register_autograd(NAME, _drop_backward, setup_context=_remember)
torch.library.register_vmap(NAME, _drop_each)
torch.library.impl(NAME_OF_KEY, "CompositeExplicitAutograd", _key)
torch.library.register_fake(NAME_OF_KEY, _key_fake)
