"""Rules of writing into a tensor at indices of axes: ``x[i, :, j] = y``, index_add, index_copy, masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .algebra import unbroadcast
from .boxes import box_on, boxed, chosen, like, outside, share, written, zeros
from .domain import (
    Abstract,
    constant,
    expanded,
    limited,
    measured,
    multiplied,
    reshaped,
    scaled,
)
from .index import Reading, added_up, index
from .indexing import given_back, places, taken
from .registry import backward, forward
from .scatter import Source, as_tensor, complement, plus, scatter_reduce, scatter_reduce_back

# one axis -----------------------------------------------------------------------------------------


def _vector(index: Abstract) -> Abstract:
    return index if len(index.dims) == 1 else reshaped(index, (math.prod(index.shape),))


def _range_of(index: Abstract, n: int) -> tuple[int, int] | None:
    """(start, stop) where the indices are consecutive."""
    known = places(index)
    if known is None or known.size == 0:
        return None
    flat = known.ravel()
    start = int(flat[0]) % max(n, 1)
    return (
        (start, start + flat.size)
        if (flat % max(n, 1) == start + np.arange(flat.size)).all()
        else None
    )


def _rows(x: Abstract, dim: int, index: Abstract) -> Abstract:
    """1 at the indices of one axis, on axes that broadcast."""
    n = x.shape[dim]
    shape = [n if d == dim else 1 for d in range(len(x.dims))]
    known = places(index)
    if known is None:
        return share(shape, 1.0 - (1.0 - 1.0 / n) ** math.prod(index.shape))
    mark = np.zeros(n)
    mark[known.ravel()] = 1.0
    return measured(mark.reshape(shape)).plain()


@forward("index_add")
def index_add(
    x: Abstract, dim: int, index: Abstract, source: Abstract, *, alpha: float = 1
) -> Abstract:
    """``x`` plus ``source`` added up at indices of one axis."""
    if not x.dims:
        return plus(x, scaled(reshaped(source, ()), float(alpha)))
    dim %= len(x.dims)
    total = given_back(source, dim, _vector(index), [x.shape[dim]])
    return plus(x, scaled(total, float(alpha)).plain() if alpha != 1 else total)


@backward("index_add")
def index_add_back(
    grad: Abstract, dim: int, index: Abstract, source: Abstract, *, alpha: float = 1
) -> dict[str, Any]:
    """To ``x`` all of it, to ``source`` what stands at its indices."""
    if not grad.dims:
        return {"x": grad, "source": scaled(reshaped(grad, source.shape), float(alpha)).plain()}
    read = taken(grad, dim % len(grad.dims), _vector(index))
    return {"x": grad, "source": scaled(read, float(alpha)).plain() if alpha != 1 else read}


@forward("index_reduce")
def index_reduce(
    x: Abstract, dim: int, index: Abstract, source: Abstract, *, reduce: str,
    include_self: bool = True,
) -> Abstract:  # fmt: skip
    """As `scatter_reduce`, the same indices at all other positions."""
    wide = _as_long(index, dim % len(x.dims), source.shape)
    return scatter_reduce(x, dim, wide, source, reduce=_NAMES[reduce], include_self=include_self)


_NAMES = {"prod": "prod", "mean": "mean", "amax": "amax", "amin": "amin"}


def _as_long(index: Abstract, dim: int, shape: tuple[int, ...]) -> Abstract:
    narrow = [n if d == dim else 1 for d, n in enumerate(shape)]
    return expanded(reshaped(index, narrow), shape)


@backward("index_reduce")
def index_reduce_back(
    grad: Abstract, x: Abstract, dim: int, index: Abstract, source: Abstract, *, reduce: str,
    include_self: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """As of `scatter_reduce`."""
    wide = _as_long(index, dim % len(x.dims), source.shape)
    found = scatter_reduce_back(
        grad, x, dim, wide, source, reduce=_NAMES[reduce], include_self=include_self
    )
    return {"x": found["x"], "source": found["src"]}


@forward("index_copy")
def index_copy(x: Abstract, dim: int, index: Abstract, source: Abstract) -> Abstract:
    """``x`` with ``source`` at indices of one axis; consecutive ones are a segment."""
    if not x.dims:
        return reshaped(source, ())
    dim %= len(x.dims)
    span = _range_of(index, x.shape[dim])
    if span is not None:
        return written(x, source, box_on(x.shape, dim, *span))
    return chosen(_rows(x, dim, index), like(source, x.shape), x)


@backward("index_copy")
def index_copy_back(
    grad: Abstract, x: Abstract, dim: int, index: Abstract, source: Abstract
) -> dict[str, Any]:
    """Elsewhere to ``x``, there to ``source``."""
    if not x.dims:
        return {"x": zeros(()), "source": reshaped(grad, source.shape)}
    dim %= len(x.dims)
    span = _range_of(index, x.shape[dim])
    if span is not None:
        box = box_on(x.shape, dim, *span)
        return {"x": multiplied(grad, outside(box)), "source": boxed(grad, box)}
    kept = complement(_rows(x, dim, index))
    return {"x": limited(multiplied(grad, kept)), "source": taken(grad, dim, _vector(index))}


@forward("index_fill")
def index_fill(x: Abstract, dim: int, index: Abstract, value: Source) -> Abstract:
    """A number at indices of one axis."""
    number = as_tensor(value, ())
    if not x.dims:
        return number
    dim %= len(x.dims)
    return chosen(_rows(x, dim, index), expanded(number, x.shape), x)


@backward("index_fill")
def index_fill_back(
    grad: Abstract, x: Abstract, dim: int, index: Abstract, value: Source
) -> dict[str, Any]:
    """Elsewhere to ``x``; the sum of the rest to a tensor's value."""
    dim %= max(len(x.dims), 1)
    mark = _rows(x, dim, index) if x.dims else constant((), 1.0)
    found: dict[str, Any] = {"x": limited(multiplied(grad, complement(mark)))}
    if isinstance(value, Abstract):
        found["value"] = unbroadcast(multiplied(grad, mark), ())
    return found


# x[i, :, j] = -------------------------------------------------------------------------------------

_PUTS = ("index_put", "_unsafe_index_put", "_index_put_impl")


@forward(*_PUTS)
def index_put(
    x: Abstract, indices: Sequence[Abstract | None], values: Abstract, accumulate: bool = False
) -> Abstract:
    """``values`` written, or added, where ``x[indices]`` would read."""
    if all(i is None for i in indices):
        new = expanded(values, x.shape)
        return plus(x, new) if accumulate else new.plain()
    shape = _read_shape(x, indices, values)
    reading = Reading(x, indices, shape)
    if accumulate:
        return plus(x, added_up(expanded(values, shape), reading))
    span = _span(x, reading)
    if span is not None:
        return written(x, expanded(values, shape), box_on(x.shape, *span))
    return chosen(_marks(x, reading), like(expanded(values, shape), x.shape), x)


def _read_shape(
    x: Abstract, indices: Sequence[Abstract | None], values: Abstract
) -> tuple[int, ...]:
    """The shape of ``x[indices]``; an unknown mask leaves as many as there are values."""
    longest = values.shape[0] if values.dims else 1
    reading = Reading(x, indices, x.shape)
    rest = [n for d, n in enumerate(x.shape) if d not in dict(reading.places)]
    given = [i.shape for _, i in reading.places] if not reading.mask else [(longest,)]
    joint = np.broadcast_shapes(*given)
    return (*rest[: reading.at], *joint, *rest[reading.at :])


def _span(x: Abstract, reading: Reading) -> tuple[int, int, int] | None:
    """(axis, start, stop) where one axis is read at consecutive indices."""
    if len(reading.places) != 1 or reading.mask:
        return None
    axis, given = reading.places[0]
    span = _range_of(given, x.shape[axis]) if len(given.dims) == 1 else None
    return None if span is None else (axis, *span)


def _marks(x: Abstract, reading: Reading) -> Abstract:
    """1 where it reads, on axes that broadcast; a share where that is not known."""
    shape = [1] * len(x.dims)
    for (axis, _), n in zip(reading.places, reading.lengths, strict=True):
        shape[axis] = n
    known: Mapping[int, Any] = {a: places(i) for a, i in reading.places}
    if reading.mask or any(k is None for k in known.values()):
        n = math.prod(reading.lengths)
        p = math.prod(reading.shape) / n
        return share(shape, min(p, 1.0) if reading.mask else 1.0 - (1.0 - 1.0 / n) ** (p * n))
    mark = np.zeros(shape)
    mark[tuple(known.get(d, 0) for d in range(len(x.dims)))] = 1.0
    return measured(mark).plain()


@backward(*_PUTS)
def index_put_back(
    grad: Abstract,
    x: Abstract,
    indices: Sequence[Abstract | None],
    values: Abstract,
    *,
    accumulate: bool = False,
) -> dict[str, Any]:
    """What stands there to ``values``; to ``x`` the rest, or all of it where it was added."""
    shape = _read_shape(x, indices, values)
    read = index(grad, indices, [shape]) if any(i is not None for i in indices) else grad
    mine = unbroadcast(read, values.shape)
    if accumulate:
        return {"x": grad, "values": mine}
    reading = Reading(x, indices, shape)
    return {"x": limited(multiplied(grad, complement(_marks(x, reading)))), "values": mine}


@forward("masked_scatter")
def masked_scatter(x: Abstract, mask: Abstract, source: Abstract) -> Abstract:
    """``source`` where the mask is true."""
    return chosen(expanded(mask.plain(), x.shape), like(source, x.shape), x)


@backward("masked_scatter")
def masked_scatter_back(
    grad: Abstract, x: Abstract, mask: Abstract, source: Abstract
) -> dict[str, Any]:
    """Under the mask to ``source``, elsewhere to ``x``."""
    u = mask.plain()
    p = min(1.0, mask.average_mean * math.prod(x.shape) / max(math.prod(source.shape), 1))
    used = multiplied(like(grad, source.shape), share(source.shape, p))
    return {"x": limited(multiplied(grad, complement(u))), "source": used}


@forward("put", "diagonal_scatter")
def put(
    x: Abstract, source: Abstract | None = None, src: Abstract | None = None,
    index: Abstract | None = None, accumulate: bool = False,
) -> Abstract:  # fmt: skip
    """Elements replaced, or added to, anywhere in the tensor."""
    new = source if source is not None else src
    assert new is not None
    p = min(1.0, math.prod(new.shape) / math.prod(x.shape))
    value = like(reshaped(new, (math.prod(new.shape),)), x.shape)
    if accumulate and index is not None:
        return plus(x, multiplied(value, share(x.shape, p)))
    return chosen(share(x.shape, p), value, x)


@backward("put", "diagonal_scatter")
def put_back(
    grad: Abstract, source: Abstract | None = None, src: Abstract | None = None,
    accumulate: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """To those elements, and the rest to ``x``."""
    new = source if source is not None else src
    assert new is not None
    p = min(1.0, math.prod(new.shape) / math.prod(grad.shape))
    own = grad if accumulate else multiplied(grad, share(grad.shape, 1.0 - p))
    mine = like(reshaped(grad, (math.prod(grad.shape),)), new.shape)
    return {"x": own, "source" if source is not None else "src": mine}
