"""Rules that are linear in their tensors, without drawing: whole second-moment matrices.

An `Abstract` says E[x_i x_j] for every pair of elements, so a small one can be written out as a
matrix; a linear op is a matrix too, found by running the real op on unit vectors. Their product,
averaged over the classes that a rule chose for its result, is what the rule must have said.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fanin._moments import strata
from fanin._moments.domain import Abstract, full
from monte_carlo import BACKWARD, FORWARD, Case, run


def written_out(x: Abstract) -> tuple[np.ndarray, np.ndarray]:
    """E[x] of every element and E[x x'] of every pair, elements in row-major order."""
    atoms = x.atoms
    index, segments = [], []
    for axis, atom in enumerate(atoms):
        n, k = sum(atom), len(atoms)
        segment = np.repeat(np.arange(len(atom)), atom)
        table = strata.classes(segment[:, None], segment[None], np.eye(n, dtype=bool), len(atom))
        shape = [1] * (2 * k)
        shape[axis], shape[k + axis] = n, n
        index.append(table.reshape(shape))
        segments.append(segment)
    n = int(np.prod(x.shape))
    mean = x.mean[np.ix_(*segments)].reshape(n) if atoms else x.mean.reshape(n)
    matrix = x.q[tuple(index)].reshape(n, n) if atoms else x.q.reshape(n, n)
    return mean, matrix


def pair_classes(dims: strata.Dims) -> tuple[np.ndarray, int]:
    """The flat class of every pair of elements, and how many classes there are."""
    atoms = [a for dim in dims for a in dim]
    shapes = [len(strata.pairs(a)) for a in atoms]
    n = int(np.prod([sum(a) for a in atoms], initial=1))
    numbers = np.arange(int(np.prod(shapes, initial=1)), dtype=float).reshape(shapes)
    dummy = Abstract(dims, np.zeros([len(a) for a in atoms]), numbers)
    return written_out(dummy)[1].astype(int).reshape(n, n), numbers.size


def averaged_on(dims: strata.Dims, mean: np.ndarray, matrix: np.ndarray) -> Abstract:
    """The moments by the classes of ``dims``; NaN where a class has no pair."""
    classes, count = pair_classes(dims)
    atoms = [a for dim in dims for a in dim]
    with np.errstate(invalid="ignore"):
        q = np.bincount(classes.ravel(), matrix.ravel(), count) / np.bincount(
            classes.ravel(), minlength=count
        )
    segments = np.arange(int(np.prod([len(a) for a in atoms], initial=1)))
    own = Abstract(
        dims,
        segments.reshape([len(a) for a in atoms]).astype(float),
        np.zeros([len(strata.pairs(a)) for a in atoms]),
    )
    owner = written_out(own)[0].astype(int)
    average = np.bincount(owner, mean, segments.size) / np.bincount(owner, minlength=segments.size)
    return Abstract(dims, average.reshape(own.mean.shape), q.reshape(own.q.shape))


def assert_same(
    what: str, got: Abstract, mean: np.ndarray, matrix: np.ndarray, rtol: float = 1e-9
) -> None:
    """``got`` says what the whole matrix says, in each of its own classes that has a pair."""
    want = averaged_on(got.dims, mean, matrix)
    there = np.isfinite(want.q)
    scale = max(float(np.abs(matrix).max(initial=0.0)), 1e-300)
    np.testing.assert_allclose(
        np.where(there, got.q, 0.0),
        np.where(there, want.q, 0.0),
        rtol=0,
        atol=rtol * scale,
        err_msg=what,
    )
    np.testing.assert_allclose(
        got.mean, want.mean, rtol=0, atol=rtol * np.sqrt(scale), err_msg=what
    )


def slots(args: Mapping[str, Any]) -> list[tuple[str, int | None, Abstract]]:
    """The tensors that are drawn: argument's name, place in its list, moments."""
    found: list[tuple[str, int | None, Abstract]] = []
    for name, value in args.items():
        if isinstance(value, Abstract):
            found.append((name, None, value))
        elif isinstance(value, (list, tuple)):
            found += [(name, i, v) for i, v in enumerate(value) if isinstance(v, Abstract)]
    return [slot for slot in found if slot[2].known is None]


def outputs_at(case: Case, values: list[np.ndarray]) -> list[np.ndarray]:
    """The real op's outputs at these numbers for the drawn tensors."""
    supply = iter(values)

    def one(value: Any) -> Any:
        if isinstance(value, Abstract):
            return torch.as_tensor(
                np.array(value.known if value.known is not None else next(supply))
            )
        if isinstance(value, (list, tuple)):
            return type(value)(one(v) for v in value)
        return value

    out = run(case, {name: one(value) for name, value in case.args.items()})
    return [t.numpy().copy() for t in (out if isinstance(out, (tuple, list)) else [out])]


def matrices(case: Case) -> tuple[list[list[np.ndarray]], list[np.ndarray], list[tuple[int, ...]]]:
    """[output][drawn tensor] -> matrix; what an output is at zero; shapes of the outputs."""
    drawn = [x for _, _, x in slots(case.args)]
    zeros = [np.zeros(x.shape) for x in drawn]
    at_zero = outputs_at(case, zeros)
    found: list[list[np.ndarray]] = [[] for _ in at_zero]
    for k, x in enumerate(drawn):
        columns: list[list[np.ndarray]] = [[] for _ in at_zero]
        for i in range(zeros[k].size):
            unit = np.zeros(zeros[k].size)
            unit[i] = 1.0
            given = [*zeros[:k], unit.reshape(x.shape), *zeros[k + 1 :]]
            for o, out in enumerate(outputs_at(case, given)):
                columns[o].append((out - at_zero[o]).ravel())
        for o, c in enumerate(columns):
            found[o].append(np.stack(c, axis=1))
    return found, [z.ravel() for z in at_zero], [z.shape for z in at_zero]


def check_linear(case: Case, rtol: float = 1e-9, *, backward: bool = True) -> None:
    """Forward and transposed rule against the op's own matrix."""
    found, at_zero, shapes = matrices(case)
    predicted = FORWARD[case.op](
        **case.args, op=case.op, shapes=shapes, dtypes=["float32"] * len(shapes)
    )
    outputs = [predicted] if isinstance(predicted, Abstract) else list(predicted)
    drawn = slots(case.args)
    for o, out in enumerate(outputs):
        assert out.shape == shapes[o], f"{case}: shape {out.shape}, not {shapes[o]}"
        mean, matrix = at_zero[o].copy(), 0.0
        for m, (_, _, x) in zip(found[o], drawn, strict=True):
            center, second = written_out(x)
            matrix = matrix + m @ (second - np.outer(center, center)) @ m.T
            mean = mean + m @ center
        assert_same(f"{case} output {o}", out, mean, matrix + np.outer(mean, mean), rtol)
    if backward:
        _check_transpose(case, found, outputs, rtol)


def _check_transpose(
    case: Case, found: list[list[np.ndarray]], outputs: list[Abstract], rtol: float
) -> None:
    grads: list[Abstract | None] = [full(o.shape, 1.0 + k) for k, o in enumerate(outputs)]
    if case.grad is not None:
        grads[0] = case.grad
    if len(grads) > 1:
        grads[-1] = None
    given = {**case.args, "op": case.op, "grad": grads[0], "grads": grads, "output": outputs[0],
             "outputs": outputs, "shapes": [o.shape for o in outputs]}  # fmt: skip
    predicted = BACKWARD[case.op](**given)
    for k, (name, place, x) in enumerate(slots(case.args)):
        mean, matrix = np.zeros(int(np.prod(x.shape))), 0.0
        for g, by_tensor in zip(grads, found, strict=True):
            if g is not None:
                center, second = written_out(g)
                m = by_tensor[k].T
                matrix = matrix + m @ (second - np.outer(center, center)) @ m.T
                mean = mean + m @ center
        got = predicted[name] if place is None else predicted[name][place]
        assert got.shape == x.shape, f"{case}: gradient of {name} is {got.shape}, not {x.shape}"
        assert_same(
            f"{case} gradient of {name}[{place}]", got, mean, matrix + np.outer(mean, mean), rtol
        )


def every_class_sum(x: Abstract) -> float:
    """E[(sum of all elements)^2]: what no view changes."""
    weights = [strata.pairs(a) for a in x.atoms]
    return float(
        sum(
            x.q[i] * np.prod([w[k] for w, k in zip(weights, i, strict=True)])
            for i in itertools.product(*map(range, x.q.shape))
        )
    )
