"""Rules of moments against the real ops: draw tensors with the stated moments, run torch, compare.

A `Case` names an op with its arguments, tensors as `Abstract`. Tables are compared class by class
after segments are averaged out, each with the standard error of its own draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fanin._moments.domain import Abstract, average, drawn, merge_dim, uniform
from fanin._moments.registry import BACKWARD, FORWARD

SIGMAS = 5.0


@dataclass(frozen=True, eq=False)
class Case:
    """One op on one set of arguments.

    Args:
        op: ATen's name.
        args: by the names of `fanin._graph.Node.args`; an `Abstract` is drawn anew each time, or
            taken from its ``known``.
        draws: how many.
        rtol: what a rule may be off beyond the sampling error, of the table's largest entry; 0.01
            for rules that are exact, more only with a reason.
        call: how to run it on tensors; by default the ATen op of that name.
        backward: whether the transposed rule is compared too.
        grad: moments of the output's gradient; unit variance, independent, by default.
        label: tells cases of one op apart.
    """

    op: str
    args: Mapping[str, Any]
    draws: int = 300
    rtol: float = 0.01
    call: Callable[..., Any] | None = None
    backward: bool = True
    grad: Abstract | None = None
    label: str = ""
    grad_rtol: float = field(default=0.03)

    def __str__(self) -> str:
        return f"{self.op}-{self.label}" if self.label else self.op


def check_forward(case: Case) -> None:
    """The rule's second moments, pair moments and means against the real op's."""
    predicted = _list(predict(case))
    rng = np.random.default_rng(0)
    samples: list[list[Any]] = [[] for _ in predicted]
    with torch.no_grad():
        for _ in range(case.draws):
            for k, out in enumerate(
                _tensors(run(case, tensors_of(case.args, rng)))[: len(predicted)]
            ):
                samples[k].append(out.double().numpy())
    for k, abstract in enumerate(predicted):
        if samples[k]:
            drawn_outputs = np.stack(samples[k])
            means = drawn_outputs.reshape(len(drawn_outputs), -1).mean(axis=1)
            _compare(f"{case} output {k}", abstract, pair_tables(drawn_outputs), means, case.rtol)


def check_backward(case: Case) -> None:
    """The transposed rule's moments of each argument's gradient against autograd's."""
    outputs = _list(predict(case))
    grad = case.grad or _white(outputs[0].shape)
    given = {"op": case.op, "grad": grad, "grads": [grad, *[None] * (len(outputs) - 1)], "output": outputs[0],
             "outputs": outputs, "shapes": [o.shape for o in outputs], **case.args}  # fmt: skip
    predicted = BACKWARD[case.op](**given)
    rng = np.random.default_rng(1)
    samples: dict[str, list[Any]] = {}
    for _ in range(case.draws):
        tensors = tensors_of(case.args, rng, differentiable=True)
        out = _tensors(run(case, tensors))[0]
        cotangent = torch.as_tensor(drawn(grad, rng))
        leaves = {name: t for name, t in _named(tensors) if t.requires_grad}
        found = torch.autograd.grad(out, list(leaves.values()), cotangent, allow_unused=True)
        for name, g in zip(leaves, found, strict=True):
            if g is not None:
                samples.setdefault(name, []).append(g.numpy())
    flat = dict(_named(predicted))
    for name, drawn_grads in samples.items():
        assert name in flat, f"{case}: no gradient predicted for {name}"
        tables = pair_tables(np.stack(drawn_grads))
        _compare(f"{case} gradient of {name}", flat[name], tables, None, case.grad_rtol)


def predict(case: Case) -> Any:
    """What the rule says."""
    given = dict(case.args)
    shapes = [
        tuple(t.shape) for t in _tensors(run(case, tensors_of(case.args, np.random.default_rng(2))))
    ]
    return FORWARD[case.op](**given, op=case.op, shapes=shapes, dtypes=["float32"] * len(shapes))


def run(case: Case, tensors: Mapping[str, Any]) -> Any:
    """The real op on real tensors."""
    if case.call is not None:
        return case.call(**tensors)
    packet = getattr(torch.ops.aten, case.op)
    errors = []
    for name in packet.overloads():
        overload = getattr(packet, name)
        arguments = {a.name: a for a in overload._schema.arguments}
        renamed = {next((n for n in ("self", "input") if k == "x" and n in arguments), k): v
                   for k, v in tensors.items()}  # fmt: skip
        if set(renamed) - set(arguments) or "out" in arguments:
            continue
        try:
            return overload(**renamed)
        except (RuntimeError, TypeError) as error:
            errors.append(f"{name or 'default'}: {error}")
    raise AssertionError(f"no overload of aten::{case.op} takes {sorted(tensors)}: {errors}")


def tensors_of(
    args: Mapping[str, Any], rng: np.random.Generator, *, differentiable: bool = False
) -> dict[str, Any]:
    """Arguments with every `Abstract` drawn, in float64."""

    def one(value: Any) -> Any:
        if isinstance(value, Abstract):
            if value.known is not None:
                return torch.as_tensor(np.array(value.known))
            return torch.as_tensor(drawn(value, rng)).requires_grad_(differentiable)
        if isinstance(value, (list, tuple)):
            return type(value)(one(item) for item in value)
        return value

    return {name: one(value) for name, value in args.items()}


def pair_tables(xs: np.ndarray) -> np.ndarray:
    """E[x x'] by which axes' indices differ, as `measured` has it, of each of many tensors."""
    xs = xs.reshape(len(xs), *(n for n in xs.shape[1:] if n > 1))
    rank = xs.ndim - 1
    q = np.empty((len(xs), *(2,) * rank))
    for which in np.ndindex(*(2,) * rank):
        part = xs.mean(axis=tuple(a + 1 for a in range(rank) if which[a]))
        q[(slice(None), *which)] = np.square(part).reshape(len(xs), -1).mean(axis=1)
    for axis, n in enumerate(xs.shape[1:], 1):
        # From the mean over all pairs to the mean over pairs of different indices.
        alike, both = np.take(q, [0], axis), np.take(q, [1], axis)
        q = np.concatenate([alike, (both - alike / n) / (1 - 1 / n)], axis)
    return q


def _compare(what: str, x: Abstract, tables: np.ndarray, means: Any, rtol: float) -> None:
    for d in range(len(x.dims)):
        x = merge_dim(x, d)
    x = uniform(x)
    real = np.broadcast_to(tables, (len(tables), *x.q.shape))
    average_of, error = real.mean(0), real.std(0) / np.sqrt(len(tables))
    scale = max(float(np.abs(average_of).max()), 1e-12)
    allowed = SIGMAS * error + rtol * scale
    assert (np.abs(x.q - average_of) <= allowed).all(), (
        f"{what}: predicted\n{x.q}\nmeasured\n{average_of}\nallowed difference\n{allowed}"
    )
    if means is not None:
        center, spread = np.mean(means), np.std(means) / np.sqrt(len(means))
        assert abs(x.average_mean - center) <= SIGMAS * spread + rtol * np.sqrt(scale), (
            f"{what}: mean predicted {x.average_mean}, measured {center} +- {spread}"
        )


def _white(shape: tuple[int, ...]) -> Abstract:
    from fanin._moments.domain import full

    return full(shape, 1.0)


def _list(value: Any) -> list[Abstract]:
    return [value] if isinstance(value, Abstract) else list(value)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for item in value for t in _tensors(item)] if isinstance(value, (list, tuple)) else []


def _named(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(name or name[i], tensor) pairs, lists flattened, what is no tensor left out."""
    found = []
    for name, value in values.items():
        if isinstance(value, (torch.Tensor, Abstract)):
            found.append((name, value))
        elif isinstance(value, (list, tuple)):
            found += [
                (f"{name}[{i}]", v)
                for i, v in enumerate(value)
                if isinstance(v, (torch.Tensor, Abstract))
            ]
    return found


__all__ = ["BACKWARD", "FORWARD", "Case", "average", "check_backward", "check_forward"]
