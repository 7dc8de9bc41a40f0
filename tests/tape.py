"""Several ops in a row: by the rules forward and backward, and by torch, from one description.

A pattern is a function of an op caller and tensors: ``lambda f, x: f("mul", x=x, other=f("sigmoid", x=x))``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fanin._moments import algebra
from fanin._moments.domain import Abstract, drawn, full
from monte_carlo import BACKWARD, FORWARD, Case, _compare, pair_tables, run, tensors_of

Pattern = Callable[..., Any]


class Var:
    """A value of the tape: its moments, an example of its numbers, and a place in it."""

    def __init__(self, x: Abstract, tensor: torch.Tensor) -> None:
        self.x, self.tensor = x, tensor


class Tape:
    """Calls rules, and walks back through them."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any], list[Var]]] = []

    def __call__(self, op: str, **args: Any) -> Any:
        bare = {k: v.x if isinstance(v, Var) else v for k, v in args.items()}
        made = run(
            Case(op, {}), {k: v.tensor if isinstance(v, Var) else v for k, v in args.items()}
        )
        tensors = [made] if isinstance(made, torch.Tensor) else list(made)
        found = FORWARD[op](
            **bare,
            op=op,
            shapes=[tuple(t.shape) for t in tensors],
            dtypes=["float32"] * len(tensors),
        )
        outs = [
            Var(x, t)
            for x, t in zip([found] if isinstance(found, Abstract) else found, tensors, strict=True)
        ]
        for out, tensor in zip(outs, tensors, strict=True):
            assert out.x.shape == tuple(tensor.shape), (op, out.x.shape, tensor.shape)
        self.calls.append((op, args, outs))
        return outs[0] if isinstance(found, Abstract) else outs

    def gradients(self, output: Var, grad: Abstract) -> dict[int, Abstract]:
        """Gradient moments by the values' identity."""
        flowing = {id(output): grad}
        for op, args, outs in reversed(self.calls):
            grads = [flowing.get(id(out)) for out in outs]
            if all(g is None for g in grads):
                continue
            bare = {k: v.x if isinstance(v, Var) else v for k, v in args.items()}
            given = {
                "op": op,
                "grad": grads[0],
                "grads": grads,
                "output": outs[0].x,
                "outputs": [o.x for o in outs],
            }
            for name, g in BACKWARD[op](**bare, **given, shapes=[o.x.shape for o in outs]).items():
                if isinstance(args[name], Var):
                    key = id(args[name])
                    flowing[key] = algebra.accumulated(flowing[key], g) if key in flowing else g
        return flowing


def check(
    pattern: Pattern, inputs: dict[str, Abstract], draws: int = 120, rtol: float = 0.01,
    grad_rtol: float = 0.03, grad: Abstract | None = None, backward: bool = True,
) -> Abstract:  # fmt: skip
    """The rules' moments of a pattern's output, and of its gradients, against torch's."""
    tape = Tape()
    example = tensors_of(inputs, np.random.default_rng(4))
    leaves = {name: Var(x, example[name]) for name, x in inputs.items()}
    output = pattern(tape, **leaves)
    grad = grad or full(output.x.shape, 1.0)
    back = tape.gradients(output, grad) if backward else {}
    rng = np.random.default_rng(3)
    outs, grads = [], {name: [] for name in inputs}
    for _ in range(draws):
        tensors = tensors_of(inputs, rng, differentiable=True)
        out = pattern(lambda op, **args: run(Case(op, {}), args), **tensors)
        outs.append(out.detach().numpy())
        if backward:
            found = torch.autograd.grad(
                out, list(tensors.values()), torch.as_tensor(drawn(grad, rng))
            )
            for name, g in zip(tensors, found, strict=True):
                grads[name].append(g.numpy())
    values = np.stack(outs)
    _compare("output", output.x, pair_tables(values), values.reshape(draws, -1).mean(axis=1), rtol)
    for name in inputs if backward else ():
        _compare(
            f"gradient of {name}",
            back[id(leaves[name])],
            pair_tables(np.stack(grads[name])),
            None,
            grad_rtol,
        )
    return output.x
