"""Ops whose results steer the run: numbers, indices, counts. They are sampled where unknown.

Indices are valid and balanced: of a router's choices every expert gets its share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._aten import ATEN, Aten
from ._standin import Standin

if TYPE_CHECKING:
    from ._tape import Tape

LARGE = 1 << 20  # indices up to which they are sampled

Args = tuple[Any, ...]
Named = dict[str, Any]
Handler = Callable[["Tape", Aten, Args, Named], Any]

SAMPLED: dict[str, Handler] = {}
_MASKS = (torch.bool, torch.uint8)


def _sampled(*names: str) -> Callable[[Handler], Handler]:
    def register(function: Handler) -> Handler:
        SAMPLED.update(dict.fromkeys(names, function))
        return function

    return register


# numbers ------------------------------------------------------------------------------------------


@_sampled("item", "is_nonzero")
def _item(tape: Tape, aten: Aten, args: Args, kwargs: Named) -> Any:
    """One number for Python."""
    tape.note(aten.name)
    x = args[0]
    if x.dtype is torch.bool:
        return tape.draws.truth(tape.ledger.read(x))
    number = tape.draws.of(x).item()
    return bool(number) if aten.name == "is_nonzero" else number


@_sampled("equal", "allclose")
def _equal(tape: Tape, aten: Aten, args: Args, kwargs: Named) -> bool:
    """A check of the model's; it passes."""
    tape.note(aten.name)
    return True


@_sampled("_assert_async", "_assert_scalar", "_assert_tensor_metadata", "_linalg_check_errors")
def _checked(tape: Tape, aten: Aten, args: Args, kwargs: Named) -> None:
    """Checks of torch's."""


@_sampled("nonzero", "nonzero_numpy", "argwhere", "_unique", "_unique2", "unique_dim",
          "unique_consecutive", "histc")  # fmt: skip
def _counted(tape: Tape, aten: Aten, args: Args, kwargs: Named) -> Any:
    """Results whose shape depends on numbers: really computed on drawn ones."""
    tape.note(aten.name)
    return tape.compute(aten, args, kwargs)


@_sampled("where")
def _where(tape: Tape, aten: Aten, args: Args, kwargs: Named) -> Any:
    """With a condition alone: the indices where it holds."""
    if len(args) + len(kwargs) == 1:
        return _counted(tape, aten, args, kwargs)
    return NotImplemented


@_sampled("one_hot")
def _one_hot(tape: Tape, aten: Aten, args: Args, kwargs: Named) -> Any:
    bound = aten.bind(args, kwargs)
    if bound["num_classes"] >= 0:
        x = bound["x"]
        return tape.written(aten, args, kwargs, [((*x.shape, bound["num_classes"]), torch.int64)])[
            0
        ]
    return _counted(tape, aten, args, kwargs)


@_sampled("bincount")
def _bincount(tape: Tape, aten: Aten, args: Args, kwargs: Named) -> Any:
    counts = tape.compute(aten, args, kwargs)
    weights = aten.bind(args, kwargs)["weights"]
    if weights is None:
        tape.note(aten.name)
        return counts
    return tape.written(aten, args, kwargs, [(counts.shape, counts.dtype)])[0]


@_sampled("repeat_interleave")
def _repeat_interleave(tape: Tape, aten: Aten, args: Args, kwargs: Named) -> Any:
    bound = aten.bind(args, kwargs)
    repeats = bound["repeats"]
    if "x" not in bound:
        return _counted(tape, aten, args, kwargs)
    x, dim = bound["x"], bound["dim"]
    shape = [x.numel()] if dim is None else list(x.shape)
    dim = dim or 0
    if isinstance(repeats, int):
        shape[dim] *= repeats
        return tape.written(aten, args, kwargs, [(shape, x.dtype)])[0]
    if type(repeats) is Standin:
        tape.note(aten.name)
    repeats = tape.draws.of(repeats)
    shape[dim] = int(repeats.sum()) if repeats.numel() > 1 else int(repeats) * shape[dim]
    args = (x, repeats, *args[2:])
    return tape.written(aten, args, {k: v for k, v in kwargs.items() if k != "repeats"},
                        [(shape, x.dtype)])[0]  # fmt: skip


# masks --------------------------------------------------------------------------------------------


@_sampled("index", "index_put")
def _index(tape: Tape, aten: Aten, args: Args, kwargs: Named) -> Any:
    """Masks among the indices become the indices where they hold."""
    found: list[Tensor | None] = []
    masks = 0
    for index in args[1]:
        if index is None or index.dtype not in _MASKS:
            found.append(index)
            continue
        masks += 1
        if type(index) is Standin:
            tape.note(aten.name)
        found += tape.draws.of(index).bool().nonzero(as_tuple=True)
    if not masks:
        return NotImplemented
    return tape.run(aten, (args[0], found, *args[2:]), kwargs)


@_sampled("masked_select")
def _masked_select(tape: Tape, aten: Aten, args: Args, kwargs: Named) -> Any:
    x, mask = aten.bind(args, kwargs)["x"], aten.bind(args, kwargs)["mask"]
    if type(mask) is Standin:
        tape.note(aten.name)
    shape = torch.broadcast_shapes(x.shape, mask.shape)
    count = int(tape.draws.of(mask).broadcast_to(shape).sum())
    return tape.written(aten, args, kwargs, [((count,), x.dtype)])[0]


# choices ------------------------------------------------------------------------------------------


def balanced(shape: tuple[int, ...], dim: int | None, n: int, generator: torch.Generator) -> Tensor:
    """Indices below ``n``, each as often as any other.

    Args:
        shape: of the indices.
        dim: the axis along which an index occurs once, if there is one.
        n: how many there are to choose from.
        generator: draws which place gets which.

    >>> balanced((6, 2), 1, 3, torch.Generator().manual_seed(0)).flatten().bincount().tolist()
    [4, 4, 4]
    """
    rows, along = list(shape), [1] * len(shape)
    k = 1
    if dim is not None and shape:
        k = along[dim] = rows[dim]
        rows[dim] = 1
    order = torch.randperm(math.prod(rows), generator=generator, device="cpu")
    first = order.mul_(k).remainder_(n).view(rows)
    return (first + torch.arange(k, device="cpu").view(along)).remainder_(n)


def _choose(tape: Tape, aten: Aten, results: list[Any], dim: int | None, n: int) -> Any:
    """An op's results, the last of which are indices below ``n``, these replaced by sampled ones."""
    indices = results[-1]
    if indices.numel() <= LARGE:
        drawn = balanced(tuple(indices.shape), dim, max(n, 1), tape.draws.generator)
        tape.note(aten.name)
        tape.draws.know(indices.index, drawn)
        tape.ledger.know(indices.index, drawn)
        results[-1] = drawn
    return results[0] if len(results) == 1 else tuple(results)


def _length(x: Tensor, dim: int) -> int:
    return x.shape[dim] if x.dim() else 1


@_sampled("topk")
def _topk(tape: Tape, aten: Aten, args: Args, kwargs: Named) -> Any:
    bound = aten.bind(args, kwargs)
    x, k, dim = bound["x"], bound["k"], bound["dim"]
    shape = list(x.shape)
    if shape:
        shape[dim] = k
    results = tape.written(aten, args, kwargs, [(shape, x.dtype), (shape, torch.int64)])
    return _choose(tape, aten, results, dim, _length(x, dim))


@_sampled("sort", "msort")
def _sort(tape: Tape, aten: Aten, args: Args, kwargs: Named) -> Any:
    bound = aten.bind(args, kwargs)
    x, dim = bound["x"], bound.get("dim", 0)
    if aten.name == "msort":
        return tape.written(aten, args, kwargs, [(x.shape, x.dtype)])[0]
    results = tape.written(aten, args, kwargs, [(x.shape, x.dtype), (x.shape, torch.int64)])
    return _choose(tape, aten, results, dim, _length(x, dim))


@_sampled("argsort")
def _argsort(tape: Tape, aten: Aten, args: Args, kwargs: Named) -> Any:
    bound = aten.bind(args, kwargs)
    x, dim = bound["x"], bound["dim"]
    results = tape.written(aten, args, kwargs, [(x.shape, torch.int64)])
    return _choose(tape, aten, results, dim, _length(x, dim))


def _reduced(x: Tensor, dim: int, keepdim: bool) -> list[int]:
    shape = list(x.shape)
    if shape:
        if keepdim:
            shape[dim] = 1
        else:
            del shape[dim]
    return shape


@_sampled("argmax", "argmin")
def _argmax(tape: Tape, aten: Aten, args: Args, kwargs: Named) -> Any:
    bound = aten.bind(args, kwargs)
    x, dim, keepdim = bound["x"], bound["dim"], bound["keepdim"]
    if dim is None:
        shape, n = ([1] * x.dim() if keepdim else []), x.numel()
    else:
        shape, n = _reduced(x, dim, keepdim), _length(x, dim)
    results = tape.written(aten, args, kwargs, [(shape, torch.int64)])
    return _choose(tape, aten, results, None, n)


@_sampled("max", "min", "median", "nanmedian", "mode", "kthvalue")
def _extreme(tape: Tape, aten: Aten, args: Args, kwargs: Named) -> Any:
    """With an axis: values, and indices that are drawn only where they are needed."""
    bound = aten.bind(args, kwargs)
    if not isinstance(bound.get("dim"), int):
        return NotImplemented
    x = bound["x"]
    shape = _reduced(x, bound["dim"], bound["keepdim"])
    return tuple(tape.written(aten, args, kwargs, [(shape, x.dtype), (shape, torch.int64)]))


@_sampled("multinomial")
def _multinomial(tape: Tape, aten: Aten, args: Args, kwargs: Named) -> Any:
    bound = aten.bind(args, kwargs)
    x = bound["x"]
    shape = (*x.shape[:-1], bound["num_samples"])
    results = tape.written(aten, args, kwargs, [(shape, torch.int64)])
    return _choose(tape, aten, results, -1, x.shape[-1])


# shapes alone -------------------------------------------------------------------------------------


@_sampled("expand_as", "view_as", "reshape_as", "type_as", "to", "is_same_size")
def _shaped_by(tape: Tape, aten: Aten, args: Args, kwargs: Named) -> Any:
    """A constant that takes shape or dtype from a tensor without numbers stays one."""
    x = args[0]
    if type(x) is Standin or tape.ledger.is_unknown(x):
        return NotImplemented
    bare = [
        torch.empty((), dtype=a.dtype, device="cpu").expand(a.shape) if type(a) is Standin else a
        for a in args
    ]
    return tape.compute(aten, tuple(bare), kwargs)


@_sampled("broadcast_tensors")
def _broadcast(tape: Tape, aten: Aten, args: Args, kwargs: Named) -> list[Tensor]:
    """Each tensor expanded, so that constants among them stay constants."""
    tensors = args[0]
    shape = torch.broadcast_shapes(*(t.shape for t in tensors))
    expand = ATEN(torch.ops.aten.expand.default)
    return [tape.run(expand, (t, shape), {}) for t in tensors]


# packed sequences ---------------------------------------------------------------------------------


@_sampled("_pack_padded_sequence")
def _pack(tape: Tape, aten: Aten, args: Args, kwargs: Named) -> Any:
    """Sequences of known lengths, one after the other."""
    bound = aten.bind(args, kwargs)
    x = bound["x"]
    bare = torch.zeros((*x.shape[:2], 1), dtype=torch.float32, device="cpu")
    data, sizes = aten.call({**bound, "x": bare, "lengths": tape.draws.of(bound["lengths"])})
    specs = [((data.shape[0], *x.shape[2:]), x.dtype), (sizes.shape, sizes.dtype)]
    packed, counts = tape.written(aten, args, kwargs, specs)
    tape.ledger.know(counts.index, sizes)
    return packed, sizes


@_sampled("_pad_packed_sequence")
def _unpack(tape: Tape, aten: Aten, args: Args, kwargs: Named) -> Any:
    """The same sequences side by side again."""
    bound = aten.bind(args, kwargs)
    x = bound["data"]
    bare = torch.zeros((x.shape[0], 1), dtype=torch.float32, device="cpu")
    padded, lengths = aten.call({**bound, "data": bare})
    specs = [((*padded.shape[:2], *x.shape[1:]), x.dtype), (lengths.shape, lengths.dtype)]
    made, counts = tape.written(aten, args, kwargs, specs)
    tape.ledger.know(counts.index, lengths)
    return made, lengths
