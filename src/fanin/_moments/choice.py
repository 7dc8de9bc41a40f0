"""Choices, truth values, masks, and tensors made from nothing.

A truth value is a number 0 or 1: its mean is a probability, its pairs joint probabilities, both of
the Gaussian that is compared. Where masked entries are set to a large negative number, a tensor of
logits keeps its moments and learns which entries are allowed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from .algebra import plus, through, times, unbroadcast
from .arithmetic import BINARY, Gradients, mixed, returned
from .bivariate import joint, through_either
from .domain import Abstract, constant, expanded, full, measured, multiplied
from .gaussian import pointwise
from .kin import Operand, certain
from .masks import BLOCKING, in_blocks
from .notes import linear, unchained
from .pointwise import clipped
from .registry import backward, forward

# comparisons --------------------------------------------------------------------------------------

_COMPARED = {
    "gt": lambda z: (z > 0) * 1.0,
    "ge": lambda z: (z >= 0) * 1.0,
    "lt": lambda z: (z < 0) * 1.0,
    "le": lambda z: (z <= 0) * 1.0,
    "eq": lambda z: (z == 0) * 1.0,
    "ne": lambda z: (z != 0) * 1.0,
}
_SAME = {"greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "not_equal": "ne", "isclose": "eq"}  # fmt: skip


@forward(*_COMPARED, *_SAME)
def compare(op: str, x: Operand, other: Operand) -> Abstract:
    """P(x > y) and P(x > y, x' > y'), of the Gaussian x - y; equality has probability 0."""
    op = _SAME.get(op, op)
    difference = plus(x, other, 1.0, -1.0)
    if op in ("eq", "ne") and difference.variance > 0 and linear(unchained(difference)[1]):
        return constant(difference.shape, float(op == "ne"))
    return pointwise(difference, _COMPARED[op])


@backward(*_COMPARED, *_SAME, "isnan", "isinf", "isfinite", "isneginf", "isposinf", "logical_not")
def nothing_flows() -> Gradients:
    """Truth values have no gradient."""
    return {}


@forward("isnan", "isinf", "isneginf", "isposinf")
def is_odd(x: Abstract) -> Abstract:
    """Never."""
    return constant(x.shape, 0.0)


@forward("isfinite")
def is_finite(x: Abstract) -> Abstract:
    """Always."""
    return constant(x.shape, 1.0)


@forward("logical_not", "bitwise_not")
def negation(x: Abstract) -> Abstract:
    """1 - p."""
    if x.known is not None:
        return measured(np.logical_not(x.known))
    return plus(1.0, truth(x), 1.0, -1.0)


def truth(x: Abstract) -> Abstract:
    """x as a truth value: itself where it is 0 or 1 already, else whether it is not 0."""
    share = x.average_mean
    if math.isclose(x.second_moment, share, rel_tol=1e-6, abs_tol=1e-12):
        return x
    return constant(x.shape, 1.0) if x.known is None else measured(x.known != 0)


_LOGIC = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


@forward(
    *(f"{kind}_{op}" for kind in ("logical", "bitwise") for op in _LOGIC),
    *(f"__{op}__" for op in _LOGIC),
)
def logic(op: str, x: Abstract, other: Operand) -> Abstract:
    """p q; p + q - p q; p + q - 2 p q: of one tensor's comparisons jointly."""
    op = op.strip("_").rsplit("_", 1)[-1]
    if not isinstance(other, Abstract):
        other = constant((), float(bool(other)))
    if x.known is not None and other.known is not None:
        return measured(_LOGIC[op](x.known, other.known))
    a, b = truth(x), truth(other)
    if op == "and":
        return times(a, b)
    return mixed(a, 1.0 if op == "or" else negation(b), b)


@backward("logical_and", "bitwise_and", "logical_or", "bitwise_or", "logical_xor", "bitwise_xor", "bitwise_not", "__and__", "__or__", "__xor__")  # fmt: skip
def no_gradient() -> Gradients:
    """Truth values have no gradient."""
    return {}


# choices ------------------------------------------------------------------------------------------


@forward("where")
def where(condition: Abstract, x: Operand, other: Operand) -> Abstract:
    """c x + (1 - c) y; where one of the two is hugely negative, the other with what is allowed."""
    for chosen, blocked, flip in ((other, x, True), (x, other, False)):
        if isinstance(chosen, Abstract) and _blocks(blocked):
            return _allowing(chosen, condition, flip=flip)
    return mixed(truth(condition), x, other)


def _blocks(x: Operand) -> bool:
    value = certain(x) if isinstance(x, Abstract) else float(x)
    if isinstance(x, Abstract) and x.known is not None and x.known.size == 1:
        value = float(x.known.reshape(()))
    return value is not None and value <= -BLOCKING


def _allowing(x: Abstract, condition: Abstract, *, flip: bool) -> Abstract:
    """x, allowed where the condition holds, or with ``flip`` where it does not."""
    shape = np.broadcast_shapes(x.shape, condition.shape)
    out = expanded(x, shape)
    if condition.known is None:
        return out
    allowed = condition.known.astype(bool)
    allowed = ~allowed if flip else allowed
    before = out.allowed
    if before is not None:
        allowed = allowed & before
    return Abstract(
        out.dims, out.mean, out.q, chain=out.chain, allowed=allowed, noise=out.noise, note=out.note
    )


@backward("where")
def where_backward(grad: Abstract, condition: Abstract, x: Operand, other: Operand) -> Gradients:
    """c g and (1 - c) g.

    Where one side is hugely negative, the other's g is 0 already wherever it was not taken: `where`
    told the softmax that reads it, and rows of its gradient sum to 0 over what is allowed. Rows
    where nothing is allowed are the exception: a softmax spreads evenly there.
    """
    for name, chosen, blocked in (("other", other, x), ("x", x, other)):
        if isinstance(chosen, Abstract) and _blocks(blocked) and condition.known is not None:
            taken = condition.known.astype(bool) == (name == "x")
            return returned(**{name: (chosen, _on_rows(grad.plain(), taken))})
    c = truth(condition)
    return returned(x=(x, through(grad, c)), other=(other, through(grad, plus(1.0, c, 1.0, -1.0))))


def _on_rows(grad: Abstract, taken: npt.NDArray[np.bool_]) -> Abstract:
    """The gradient where a row along the last axis has anything taken, 0 elsewhere."""
    if taken.ndim == 0:
        return grad
    rows = np.asarray(taken.any(axis=-1, keepdims=True))
    return grad if rows.all() else multiplied(grad, in_blocks(measured(rows)).plain())


@forward("masked_fill")
def masked_fill(x: Abstract, mask: Abstract, value: Operand) -> Abstract:
    """The value where the mask holds, x elsewhere; as `where`."""
    return where(mask, value, x)


@backward("masked_fill")
def masked_fill_backward(grad: Abstract, x: Abstract, mask: Abstract, value: Operand) -> Gradients:
    """(1 - c) g."""
    found = where_backward(grad, mask, value, x)
    names = {"x": "value", "other": "x"}
    return {names[name]: g for name, g in found.items()}


@forward("clamp", "clip")
def clamp(x: Abstract, min: Operand | None = None, max: Operand | None = None) -> Abstract:  # noqa: A002
    """x kept within [min, max], numbers or tensors."""
    if not isinstance(min, Abstract) and not isinstance(max, Abstract):
        return pointwise(x, clipped(min, max)[0])
    out = x if min is None else joint(x, min, np.maximum)
    return out if max is None else joint(out, max, np.minimum)


@backward("clamp", "clip")
def clamp_backward(
    grad: Abstract,
    x: Abstract,
    min: Operand | None = None,  # noqa: A002 - ATen's name
    max: Operand | None = None,  # noqa: A002
) -> Gradients:
    """g where x is within, to a tensor bound where it is beyond."""
    if not isinstance(min, Abstract) and not isinstance(max, Abstract):
        return {"x": through(grad, x, clipped(min, max)[1])}
    found: Gradients = {}
    for name, bound, op in (("min", min, "maximum"), ("max", max, "minimum")):
        if bound is not None:
            _, to_x, to_bound = BINARY[op]
            found |= returned(**{name: (bound, through_either(grad, x, bound, to_bound))})
            grad = through_either(grad, x, bound, to_x)
    return {**found, **returned(x=(x, grad))}


@forward("heaviside")
def heaviside(x: Abstract, values: Abstract) -> Abstract:
    """P(x > 0): x is never exactly 0."""
    del values
    return pointwise(x, _COMPARED["gt"])


@backward("heaviside")
def heaviside_backward() -> Gradients:
    """A step has no gradient."""
    return {}


@lru_cache(maxsize=64)
def _triangle(rows: int, columns: int, diagonal: int, *, upper: bool) -> Abstract:
    mask = np.ones((rows, columns))
    kept = np.triu(mask, diagonal) if upper else np.tril(mask, diagonal)
    return measured(kept).with_(known=None)


@forward("tril", "triu")
def triangle(op: str, x: Abstract, diagonal: int = 0) -> Abstract:
    """x with a triangle of its last two axes set to 0; positions within it averaged."""
    rows, columns = x.shape[-2:]
    return multiplied(x, _triangle(rows, columns, int(diagonal), upper=op == "triu"))


@backward("tril", "triu")
def triangle_backward(op: str, grad: Abstract, diagonal: int = 0) -> Gradients:
    """The same triangle of g."""
    return {"x": triangle(op, grad, diagonal)}


# tensors from nothing -----------------------------------------------------------------------------


def _sizes(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(map(int, shapes[0]))


@forward("zeros", "zeros_like", "new_zeros", "zero", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")  # fmt: skip
def zeros(shapes: Sequence[Sequence[int]]) -> Abstract:
    """0, also where nothing has been written yet."""
    return constant(_sizes(shapes), 0.0)


@forward("ones", "ones_like", "new_ones")
def ones(shapes: Sequence[Sequence[int]]) -> Abstract:
    """1."""
    return constant(_sizes(shapes), 1.0)


@forward("full", "full_like", "new_full")
def filled(shapes: Sequence[Sequence[int]], fill_value: Operand) -> Abstract:
    """One number everywhere."""
    if isinstance(fill_value, Abstract):
        return expanded(fill_value, _sizes(shapes))
    return constant(_sizes(shapes), float(fill_value))


@forward("scalar_tensor")
def scalar_tensor(s: float) -> Abstract:
    """A number."""
    return constant((), float(s))


@forward("arange", "range", "linspace")
def counted(
    op: str,
    shapes: Sequence[Sequence[int]],
    start: float = 0.0,
    end: float = 1.0,
    step: float = 1.0,
) -> Abstract:
    """Numbers at equal distances, known."""
    (n,) = _sizes(shapes)
    start, end, step = (_number(v) for v in (start, end, step))
    numbers = np.linspace(start, end, n) if op == "linspace" else start + step * np.arange(n)
    return measured(numbers)


def _number(x: Operand) -> float:
    return x.average_mean if isinstance(x, Abstract) else float(x)


@forward("eye")
def eye(n: int, m: int | None = None) -> Abstract:
    """The identity matrix."""
    return measured(np.eye(int(n), None if m is None else int(m)))


@forward("rand", "rand_like")
def uniform_numbers(shapes: Sequence[Sequence[int]]) -> Abstract:
    """U(0, 1): mean 1/2, second moment 1/3."""
    return full(_sizes(shapes), 1 / 3, 0.5)


@forward("randn", "randn_like")
def normal_numbers(shapes: Sequence[Sequence[int]]) -> Abstract:
    """N(0, 1)."""
    return full(_sizes(shapes), 1.0)


@forward("randint", "randint_like")
def random_integers(shapes: Sequence[Sequence[int]], high: float, low: float = 0) -> Abstract:
    """Whole numbers from low to high - 1: variance ((high - low)^2 - 1) / 12."""
    mean = (float(low) + float(high) - 1) / 2
    return full(_sizes(shapes), mean * mean + ((float(high) - float(low)) ** 2 - 1) / 12, mean)


@forward("randperm")
def permutation(n: int) -> Abstract:
    """0 .. n - 1 in any order: two of them are different."""
    return measured(np.arange(float(n))).with_(known=None)


@forward("normal")
def normal(shapes: Sequence[Sequence[int]], mean: Operand = 0.0, std: Operand = 1.0) -> Abstract:
    """mean + std z with z ~ N(0, 1)."""
    return plus(mean, times(full(_sizes(shapes), 1.0), std))


@backward("normal")
def normal_backward(grad: Abstract, mean: Operand = 0.0) -> Gradients:
    """g for the mean."""
    return returned(mean=(mean, grad))


@forward("bernoulli")
def bernoulli(x: Abstract, p: Operand | None = None) -> Abstract:
    """1 with probability p, else 0: E m^2 = E p, pairs as those of p."""
    share = (
        x
        if p is None
        else expanded(p, x.shape)
        if isinstance(p, Abstract)
        else constant(x.shape, float(p))
    )
    q = np.array(share.q)
    q[tuple(slice(len(atom)) for atom in share.atoms)] = share.mean
    return Abstract(share.dims, share.mean, q)


@forward("fill")
def fill(x: Abstract, value: Operand) -> Abstract:
    """The value everywhere."""
    return (
        expanded(value, x.shape) if isinstance(value, Abstract) else constant(x.shape, float(value))
    )


@backward("fill")
def fill_backward(grad: Abstract, value: Operand) -> Gradients:
    """The sum of g for the value."""
    return returned(value=(value, grad))


@forward("copy")
def copy(x: Abstract, src: Abstract) -> Abstract:
    """The source, broadcast."""
    return expanded(src, x.shape)


@backward("copy")
def copy_backward(grad: Abstract, src: Abstract) -> Gradients:
    """g for the source."""
    return {"src": unbroadcast(grad, src.shape)}


_FACTORIES = [
    "zeros",
    "zeros_like",
    "new_zeros",
    "zero",
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "ones",
    "ones_like",
    "new_ones",
    "full",
    "full_like",
    "new_full",
    "scalar_tensor",
    "arange",
    "range",
    "linspace",
    "eye",
    "rand",
    "rand_like",
    "randn",
    "randn_like",
    "randint",
    "randint_like",
    "randperm",
    "bernoulli",
]


@backward(*_FACTORIES)
def made() -> Gradients:
    """Made from nothing: nothing flows."""
    return {}
