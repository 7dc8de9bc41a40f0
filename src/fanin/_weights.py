"""Moments of a model's parameters and buffers: of their numbers, or of what a plan would draw."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ._moments.domain import Abstract, concatenated, constant, cut, full, measured
from ._moments.strata import whole
from ._plan import InitPlan
from ._rows import Row
from .distributions import Constant, DeltaOrthogonal, Distribution, Kept, LooksLinear

READ = 1 << 16  # elements that pair moments are taken from; second moments come from all
CHANCE = 4.0  # standard errors: less is taken for sampling error of independent elements


def of_plan(plan: InitPlan) -> dict[str, Abstract]:
    """FQN, aliases included -> moments of what the plan draws; none for what it keeps."""
    found: dict[str, Abstract] = {}
    for row in plan:
        if isinstance(row.distribution, Kept):
            continue
        moments = _of_row(row)
        found |= dict.fromkeys((row.name, *row.aliases), moments)
    return found


def _of_row(row: Row) -> Abstract:
    x = _drawn_from(row.distribution, row.shape)
    for part in row.packed:
        n = row.shape[part.dim]
        own = _drawn_from(part.distribution, part.shape_in(row.shape))
        pieces = [cut(x, part.dim, 0, part.start), own, cut(x, part.dim, part.stop, n)]
        kept = [p for p, size in zip(pieces, (part.start, 1, n - part.stop), strict=True) if size]
        x = concatenated(kept, part.dim)
    return x.plain()


def _drawn_from(law: Distribution, shape: tuple[int, ...]) -> Abstract:
    if isinstance(law, Constant):
        return constant(shape, law.value)
    std, mean = law.std_for(shape), law.mean_for(shape)
    if isinstance(law, DeltaOrthogonal):
        tap = (*shape[:2], *(1 for _ in shape[2:]))
        return _among_zeros(full(tap, std * std * math.prod(shape[2:])), shape, _centre(shape))
    if isinstance(law, LooksLinear):
        return _mirrored(law, shape)
    return full(shape, std * std + mean * mean, mean)


def _mirrored(law: LooksLinear, shape: tuple[int, ...]) -> Abstract:
    second = law.std_for(shape) ** 2
    if not law.centre:
        return _images(shape, second, (law.outputs, law.inputs))
    tap, taps = (*shape[:2], *(1 for _ in shape[2:])), math.prod(shape[2:])
    return _among_zeros(
        _images(tap, second * taps, (law.outputs, law.inputs)), shape, _centre(shape)
    )


def _images(shape: tuple[int, ...], second: float, mirrored: tuple[bool, bool]) -> Abstract:
    """Mirrored axes are (2, half): the same element of the other half is its negative."""
    halves = (*mirrored, *(False for _ in shape[2:]))
    dims = tuple(
        ((2,), *whole(n // 2)) if half else whole(n) for half, n in zip(halves, shape, strict=True)
    )
    places = np.cumsum([0, *map(len, dims)])
    k = int(places[-1])
    q = np.zeros((2,) * k)
    for other in itertools.product(*((0, 1) if half else (0,) for half in halves)):
        at = [0] * k
        for place, one in zip(places, other, strict=False):
            if one:
                at[place] = 1
        q[tuple(at)] = second * (-1) ** sum(other)
    return Abstract(dims, np.zeros((1,) * k), q)


def _centre(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Where the centre tap begins on each axis."""
    return (0, 0, *(n // 2 for n in shape[2:]))


def _among_zeros(x: Abstract, shape: tuple[int, ...], starts: tuple[int, ...]) -> Abstract:
    """A block at ``starts`` of a tensor of ``shape`` that is 0 elsewhere."""
    for d, (n, start) in enumerate(zip(shape, starts, strict=True)):
        sizes = (start, x.shape[d], n - start - x.shape[d])
        zeros = [constant((*x.shape[:d], k, *x.shape[d + 1 :]), 0.0) for k in sizes[::2]]
        x = concatenated([p for p, k in zip((zeros[0], x, zeros[1]), sizes, strict=True) if k], d)
    return x


def of_model(model: nn.Module, but: Collection[str] = ()) -> dict[str, Abstract]:
    """FQN -> moments of the numbers that parameters and buffers hold now; none for meta tensors.

    Args:
        model: any nn.Module.
        but: FQNs that are not wanted.
    """
    found: dict[str, Abstract] = {}
    seen: dict[int, Abstract] = {}
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    with torch.no_grad():
        for name, tensor in named:
            if name in but or tensor.is_meta or nn.parameter.is_lazy(tensor):
                continue
            if id(tensor) not in seen:
                seen[id(tensor)] = of_tensor(tensor)
            found[name] = seen[id(tensor)]
    return found


def of_tensor(tensor: Tensor) -> Abstract:
    """Moments of one tensor's numbers; those of pairs that chance explains are those of independence."""
    x = tensor.detach()
    if x.numel() == 0 or not (x.is_floating_point() or x.is_complex()) or x.numel() <= 64:
        return measured(_array(x))
    if x.ndim == 1 and bool((x == x[0]).all()):
        return constant(tuple(x.shape), float(x[0]))  # norms as they start
    images = _images_of(x)
    if images is not None:
        return images
    starts, core = _nonzero_taps(x)
    if core is not x:
        return _among_zeros(of_tensor(core).plain(), tuple(x.shape), starts)
    few = _array(_sparse(x))
    found = measured(few).with_(known=None)
    square = float(torch.linalg.vector_norm(x.float() if x.dtype.itemsize < 4 else x)) ** 2
    second = square / x.numel()
    return _without_chance(found, second, few.size, tuple(x.shape))


def _images_of(x: Tensor) -> Abstract | None:
    """Moments of a weight in mirror images (`LooksLinear`), zeros of outer taps apart; else None."""
    if x.ndim < 2:
        return None
    starts, core = _nonzero_taps(x)
    mirrored = (_is_mirrored(core, 0), _is_mirrored(core, 1))
    if not any(mirrored):
        return None
    second = float(core.double().square().mean())
    return _among_zeros(_images(tuple(core.shape), second, mirrored), tuple(x.shape), starts)


def _is_mirrored(x: Tensor, dim: int) -> bool:
    n = x.shape[dim]
    if n % 2 or not bool((x.select(dim, 0) == -x.select(dim, n // 2)).all()):
        return False
    first, second = x.chunk(2, dim)
    return bool((first == -second).all()) and bool(first.any())


def _nonzero_taps(x: Tensor) -> tuple[tuple[int, ...], Tensor]:
    """A kernel without the outer taps that are 0, and where it begins; itself where all are used."""
    starts, core = [0] * x.ndim, x
    for d in range(2, x.ndim):
        start, stop = 0, core.shape[d]
        while stop - start > 1 and _is_zero(core.select(d, start)):
            start += 1
        while stop - start > 1 and _is_zero(core.select(d, stop - 1)):
            stop -= 1
        if stop - start < core.shape[d]:
            starts[d], core = start, core.narrow(d, start, stop - start)
    return tuple(starts), core


def _is_zero(x: Tensor) -> bool:
    return not bool(x[0].any()) and not bool(x.any())


def _array(x: Tensor) -> npt.NDArray:
    if x.dtype in {torch.bfloat16, torch.float16}:
        x = x.float()
    return x.cpu().numpy()


def _sparse(x: Tensor) -> Tensor:
    """Every k-th row, column, ... of a large tensor."""
    while x.numel() > READ:
        axis = max(range(x.ndim), key=lambda d: x.shape[d])
        x = x.narrow(axis, 0, x.shape[axis] // 2 * 2)
        x = x.unflatten(axis, (-1, 2)).select(axis + 1, 0)
    return x


def _without_chance(x: Abstract, second: float, count: int, shape: tuple[int, ...]) -> Abstract:
    mean = x.average_mean
    variance = max(second - mean * mean, 0.0)
    if abs(mean) < CHANCE * (variance / count) ** 0.5:
        mean, variance = 0.0, second
    out = full(shape, second, mean)
    k = out.q.ndim
    sizes = [n for n in x.shape if n > 1]
    q = out.q.copy()
    for which in np.ndindex((2,) * k):
        if not any(which):
            continue
        pairs = 1.0
        for own, n in zip(which, sizes, strict=True):
            pairs *= n * (n - 1) if own else n
        excess = x.q[which] - mean * mean
        # Symmetric pairs count once.
        if abs(excess) > CHANCE * variance * (2.0 / pairs) ** 0.5:
            q[which] = x.q[which]
    return Abstract(out.dims, out.mean, q)
