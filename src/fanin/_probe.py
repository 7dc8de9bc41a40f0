"""Run a model forward and backward once, and measure the signal at every op.

Numbers are reduced in float64 and fetched together at the end. The gradient is asked for with
`torch.autograd.grad`, so that no ``.grad`` is written; it is linear in the cotangent, so a factor
of 2^64 keeps what float32 would lose, exactly, and is divided out again. What still falls
below float32's normal numbers is measured a second time in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ._errors import FaninError, ModelError
from ._findings import find
from ._inputs import Inputs, as_inputs
from ._measure import BOUNDED, KILLERS, Sums, backward_sums, forward_sums
from ._preserve import preserved
from ._record import INPUT, Op, Recorder, floating_leaves
from ._report import Coverage, Layer, Signal, SignalReport
from ._width import Passed, error_bars

SCALE = 2.0**64  # of the cotangent, where the dtype has float32's exponents
COTANGENT_KEY = 0xFA71  # seed of the fixed N(0,1) cotangent
_FIRST_CHANNELS = ("conv", "batch_norm", "group_norm", "instance_norm", "max_pool", "avg_pool", "adaptive_")
_LAST_CHANNELS = frozenset(("linear", "layer_norm", "rms_norm", "embedding", "bilinear", "lstm", "matmul", "softmax"))


def probe(
    model: nn.Module,
    example_inputs: Any,
    *,
    loss_fn: Callable[[Any], Tensor] | None = None,
    backward: bool = True,
) -> SignalReport:
    """Measure activations and gradients at every op of one run, and say what is wrong.

    act_rms = sqrt(mean x^2); correlation = mean over pairs of samples a != b of
    x_a . x_b / (|x_a| |x_b|); grad_rms = sqrt(mean (dL/dx)^2).

    The model runs in its present train or eval mode, with its present random state; afterwards
    every bit of it and of the random states is as before, also if it raises. Inputs are cloned.

    Args:
        model: any nn.Module with real weights.
        example_inputs: a tensor, a tuple of positional arguments, a mapping of keyword arguments,
            or `fanin.Inputs`. Samples lie along dim 0.
        loss_fn: output -> loss, one number. Without it the gradient starts from a fixed draw of
            N(0, 1) at the first floating output.
        backward: whether to measure gradients.

    Returns:
        A `SignalReport`: one `Layer` per op with `measured`, findings, and what was not covered.

    Raises:
        ModelError: the model has lazy or meta parameters, or it, the loss or the backward pass
            raises; the message names the module and the input shapes.

    Example:
        >>> import fanin, torch
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(*[torch.nn.Linear(64, 64, bias=False) for _ in range(20)])
        >>> report = fanin.probe(net, torch.randn(32, 64))
        >>> report.ok, [f.code for f in report.findings]
        (False, ['FAN102'])

    Source: Schoenholz et al. 2017 (arXiv 1611.01232), sections 3 and 4, for the three quantities.
    """
    _check(model)
    inputs = as_inputs(example_inputs)
    run = _run(model, inputs, loss_fn, backward=backward, wide=False)
    notes: list[str] = []
    lost = run.lost()
    if lost and run.dtype is not torch.float64:
        try:
            run = replace(_run(model, inputs, loss_fn, backward=backward, wide=True), dtype=run.dtype)
            notes.append(f"measured in float64: {lost} of the {_name(run.dtype)} figures left its range")
        except FaninError as error:
            notes.append(f"{lost} figures left the range of {_name(run.dtype)}; float64 failed: {error}")
    report = run.report(_leaves(model))
    return find(replace(report, notes=(*report.notes, *notes)))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _leaves(model: nn.Module) -> set[str]:
    """FQNs of modules that contain no other, parametrizations apart."""
    return {n for n, m in model.named_modules() if not set(dict(m.named_children())) - {"parametrizations"}}


def _check(model: nn.Module) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise ModelError(
                f"{name} is lazy: its shape is known only after a first run. "
                "Run the model once on example inputs, then probe it."
            )
        if tensor.is_meta:
            raise ModelError(
                f"{name} is on the meta device: it has a shape but no numbers to measure. Give it "
                "memory with model.to_empty(device='cpu') and numbers with fanin.initialize_(model)."
            )


# one run -------------------------------------------------------------------------------------


@dataclass
class _Run:
    """What one forward and backward pass left, still on its devices.

    Args:
        ops: per op, what the numbers alone do not tell.
        forward: per op, (vector laid out like `Sums`, elements).
        grads: op index -> (vector (sum, scale), elements).
        outputs: FQN -> index of the op whose result the module returned.
        scale: the cotangent was multiplied by it.
    """

    ops: list[Passed] = field(default_factory=list)
    forward: list[tuple[Tensor, int]] = field(default_factory=list)
    grads: dict[int, tuple[Tensor, int]] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)
    inputs: tuple[Tensor, int] | None = None
    loss: Tensor | None = None
    chance: float | None = None
    scale: float = 1.0
    dtype: torch.dtype = torch.float32
    coverage: Coverage = field(default_factory=Coverage)
    notes: list[str] = field(default_factory=list)

    def on_op(self, op: Op) -> None:
        """Measure one op's output, and ask for its gradient."""
        # Neither the recorder nor `preserved` need see the ops that measure.
        with torch._C._DisableTorchDispatch(), torch.no_grad():  # noqa: SLF001 - both modes at once
            units = self._units(op)
            limits = BOUNDED.get(op.op, (0.0, 0.0)) if op.op in BOUNDED else None
            if op.op == "hardtanh":
                limits = tuple((*op.args[1:3], *op.kwargs.values(), -1.0, 1.0)[:2])  # type: ignore[assignment]
            by_mask = op.op == "mul" and any(getattr(a, "dtype", None) is torch.bool for a in op.args)
            kills = op.op in KILLERS or by_mask
            sums, count = (
                forward_sums(op.value, op.op, units, limits, kills=kills)
                if op.value.numel()
                else (torch.full((len(Sums._fields),), math.nan, dtype=torch.float64), 1)
            )
            self.forward.append((sums, count))
            shape = tuple(op.value.shape)
            width = shape[units] if shape else 1
            self.ops.append(Passed(op.op, op.module, shape, units, op.sources, bool(op.params), width))
        if op.output.requires_grad:
            op.output.register_hook(self._hook(op.index))

    def _hook(self, index: int) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            if grad.layout is torch.strided and grad.numel():
                with torch._C._DisableTorchDispatch(), torch.no_grad():  # noqa: SLF001
                    self.grads[index] = backward_sums(grad)

        return hook

    def _units(self, op: Op) -> int:
        """The dim of the units: channels after a convolution, else features."""
        ndim = op.value.ndim
        if op.op.startswith(_FIRST_CHANNELS) and ndim > 1:
            return 1
        if op.op in _LAST_CHANNELS:
            return ndim - 1
        source = next((s for s in op.sources if s != INPUT), None)
        if source is not None and len(self.ops[source].shape) == ndim:
            return self.ops[source].units
        return 1 if ndim > 3 else max(ndim - 1, 0)
