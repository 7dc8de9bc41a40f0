"""Run a model forward and backward once, and measure the signal at every op.

Numbers are reduced in float64 and fetched together at the end. The gradient is asked for with
`torch.autograd.grad` up to the first op, so that no ``.grad`` is written and none of a weight is
computed. It is linear in the cotangent, so a factor of 2^48 keeps what float32 would lose,
exactly, and is divided out again. What still leaves the range of the model's dtype is measured a
second time in float64.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map_only

from ._capture import capture
from ._check import propagated
from ._errors import FaninError, ModelError
from ._findings import find
from ._inputs import Inputs, as_inputs
from ._meter import Meter
from ._predict import joined, predicted
from ._preserve import Watch, preserved
from ._record import Recorder, floating_leaves
from ._report import Coverage, Layer, SignalReport

SCALE = 2.0**48  # of the cotangent, for dtypes with float32's exponents
COTANGENT_SEED = 0xFA71
_SCALED = frozenset((torch.float32, torch.bfloat16))


def probe(
    model: nn.Module,
    example_inputs: Any,
    *,
    loss_fn: Callable[[Any], Tensor] | None = None,
    backward: bool = True,
    predict: bool = True,
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
        predict: whether to predict the same ops from the weights, as `fanin.check` does.

    Returns:
        A `SignalReport`: one `Layer` per op with `measured`, and `predicted` where the graph has the
        same op; findings, and what was not covered.

    Raises:
        ModelError: the model has lazy or meta parameters, or it, the loss or the backward pass
            raises; the message names the module and the input shapes.

    Example:
        >>> import fanin, torch
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(*[torch.nn.Linear(64, 64, bias=False) for _ in range(20)])
        >>> report = fanin.probe(net, torch.randn(32, 64))
        >>> report.ok, [f.code for f in report.findings]
        (False, ['FAN102', 'FAN102'])

    Source: Schoenholz et al. 2017 (arXiv 1611.01232), sections 3 and 4, for the three quantities.
    """
    inputs = as_inputs(example_inputs)
    _check(model, inputs)
    report, lost = _run(model, inputs, loss_fn, backward=backward, wide=False)
    if lost and report.dtype != "float64":
        report = _again_in_float64(report, lost, model, inputs, loss_fn, backward=backward)
    if predict:
        report = _with_predictions(report, model, inputs, from_loss=loss_fn is not None)
    return replace(report, findings=find(report))


def _with_predictions(
    report: SignalReport, model: nn.Module, inputs: Inputs, *, from_loss: bool
) -> SignalReport:
    """What `check` says of the same ops; with a loss of the user's, of the activations alone."""
    try:
        found = predicted(propagated(model, capture(model, inputs), backwards=not from_loss))
    except FaninError as error:
        return replace(report, notes=(*report.notes, f"nothing predicted: {error}"))
    return joined(report, found)


def _check(model: nn.Module, inputs: Inputs) -> None:
    given = [t for t in tree_leaves((inputs.args, inputs.kwargs)) if isinstance(t, Tensor)]
    if given and not any(t.numel() for t in given):
        raise ModelError(
            f"the example inputs are empty: {', '.join(str(list(t.shape)) for t in given)}. "
            "Give at least one sample; two or more show the correlation between inputs."
        )
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


def _again_in_float64(
    narrow: SignalReport,
    lost: int,
    model: nn.Module,
    inputs: Inputs,
    loss_fn: Callable[[Any], Tensor] | None,
    *,
    backward: bool,
) -> SignalReport:
    try:
        report, _ = _run(model, inputs, loss_fn, backward=backward, wide=True)
    except FaninError as error:
        note = f"{lost} figures left {narrow.dtype}'s range; in float64 {error}"
        return replace(narrow, notes=(*narrow.notes, note))
    note = f"measured in float64, because {lost} figures left {narrow.dtype}'s range"
    return replace(report, dtype=narrow.dtype, notes=(*report.notes, note))


# one run -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Call:
    """A model with copies of its arguments.

    Args:
        run: without arguments, returns the model's output.
        args: positional and keyword arguments, for the recorder.
        parameters: FQN -> tensor, if not the model's own.
    """

    run: Callable[[], Any]
    args: tuple[Any, dict[str, Any]]
    parameters: dict[str, Tensor] | None = None


def _run(
    model: nn.Module,
    inputs: Inputs,
    loss_fn: Callable[[Any], Tensor] | None,
    *,
    backward: bool,
    wide: bool,
) -> tuple[SignalReport, int]:
    """One forward and backward pass; the report without findings, and how many figures are lost."""
    meter = Meter()
    with _surroundings(model, backward=backward, wide=wide) as watch:
        call = _wide_call(model, inputs) if wide else _call(model, inputs)
        for tensor in filter(_is_measurable, tree_leaves(call.args)):
            meter.on_input(tensor)
            break
        recorder = Recorder(model, meter.on_op, call.args, meter.on_output, call.parameters, watch)
        try:
            with recorder:
                output = call.run()
        except FaninError:
            raise
        except Exception as error:
            raise ModelError(_where_it_failed(model, recorder.where, call.args, error)) from error
        scale = SCALE if set(meter.dtypes) <= _SCALED else 1.0
        loss = None if loss_fn is None else _loss(loss_fn, output)
        notes = _backward(output, loss, meter.edges, scale) if backward else []
        layers, lost = meter.layers(scale)
        leaves = _leaves(model)
        report = SignalReport(
            layers,
            coverage=Coverage(
                len(layers), recorder.seen, tuple(f"{n} x{k}" for n, k in recorder.missed.items())
            ),
            outputs=tuple((name, i) for name, i in meter.outputs.items() if name in leaves),
            inputs=meter.input(),
            loss=None if loss is None else float(loss.detach()),
            chance=None if loss is None else _chance(loss, output),
            dtype=str(meter.dtype).removeprefix("torch."),
            notes=(*notes, *_gaps(layers, backward=backward and not notes)),
        )
    return report, lost


def _gaps(layers: tuple[Layer, ...], *, backward: bool) -> Iterator[str]:
    """What is missing from the layers, in words."""
    if not layers:
        yield "no op on floating tensors reads the inputs"
    known = sum(x.signal.grad_rms is not None for x in layers)
    if backward and known < len(layers):
        yield f"gradients reach {known} of {len(layers)} ops"


@contextmanager
def _surroundings(model: nn.Module, *, backward: bool, wide: bool) -> Iterator[Watch]:
    """Everything put back afterwards; ops that arrive one by one; nothing that costs for no gain.

    Denormals would slow the CPU down; a garbage collection in the middle finds nothing to free.
    """
    fused, collects = torch.backends.mha.get_fastpath_enabled(), gc.isenabled()
    with (
        preserved(model) as watch,
        torch.inference_mode(mode=False),
        torch.set_grad_enabled(backward),
    ):
        torch.backends.mha.set_fastpath_enabled(value=False)
        torch.set_flush_denormal(True)
        gc.disable()
        if wide:
            torch.set_default_dtype(torch.float64)
        try:
            yield watch
        finally:
            torch.backends.mha.set_fastpath_enabled(value=fused)
            if collects:
                gc.enable()


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_measurable(value: Any) -> bool:
    return _is_floating(value) and value.layout is torch.strided and value.numel() > 0


def _leaves(model: nn.Module) -> set[str]:
    """FQNs of modules that contain no other, parametrizations apart."""
    return {
        name
        for name, module in model.named_modules()
        if not {n for n, _ in module.named_children()} - {"parametrizations"}
    }


# calls ---------------------------------------------------------------------------------------


def _call(model: nn.Module, inputs: Inputs) -> _Call:
    frozen = not all(p.requires_grad for p in model.parameters())
    args, kwargs = _copies(inputs, frozen=frozen, wide=False)
    return _Call(lambda: model(*args, **kwargs), (args, kwargs))


def _wide_call(model: nn.Module, inputs: Inputs) -> _Call:
    """The same call with float64 copies of parameters, buffers and arguments."""
    params = {
        n: _widened(p.detach()).clone().requires_grad_(p.requires_grad)
        for n, p in model.named_parameters()
    }
    buffers = {n: _widened(b.detach()).clone() for n, b in model.named_buffers()}
    frozen = not all(p.requires_grad for p in params.values())
    args, kwargs = _copies(inputs, frozen=frozen, wide=True)
    return _Call(
        lambda: functional_call(model, {**params, **buffers}, args, kwargs), (args, kwargs), params
    )


def _widened(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _copies(inputs: Inputs, *, frozen: bool, wide: bool) -> tuple[Any, Any]:
    """Clones of the arguments, one per tensor.

    If some parameter wants no gradient, floating inputs do: else there may be none to measure.
    """
    copies: dict[int, Tensor] = {}

    def copy(tensor: Tensor) -> Tensor:
        if id(tensor) not in copies:
            clone = tensor.detach().clone()
            clone = _widened(clone) if wide else clone
            if clone.is_floating_point() and (frozen or tensor.requires_grad):
                # Not the leaf itself: the model may write into its input, not into a leaf.
                clone = clone.requires_grad_().clone()
            copies[id(tensor)] = clone
        return copies[id(tensor)]

    args, kwargs = tree_map_only(Tensor, copy, (inputs.args, inputs.kwargs))
    return args, kwargs


def _words(error: Exception) -> str:
    return str(error).rstrip(" .\n")


def _where_it_failed(model: nn.Module, where: str, args: Any, error: Exception) -> str:
    kind = type(model.get_submodule(where)).__name__
    place = f"in module {where!r} ({kind})" if where else f"in {kind} itself"
    given = ", ".join(
        f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}"
        for t in tree_leaves(args)
        if isinstance(t, Tensor)
    )
    return (
        f"the model failed {place}: {type(error).__name__}: {_words(error)}. "
        f"It was called with {given or 'no tensors'}. Give example inputs that model(...) accepts."
    )


# backward ------------------------------------------------------------------------------------


def _loss(loss_fn: Callable[[Any], Tensor], output: Any) -> Tensor:
    try:
        loss = loss_fn(output)
    except Exception as error:
        raise ModelError(
            f"loss_fn failed on the model's output: {type(error).__name__}: {_words(error)}. "
            "It is called with what model(...) returns and gives one number."
        ) from error
    if not _is_floating(loss) or loss.numel() != 1:
        got = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise ModelError(f"loss_fn must return one floating number as a tensor; got {got}.")
    return loss


def _backward(
    output: Any, loss: Tensor | None, edges: list[GradientEdge], scale: float
) -> list[str]:
    """Run the backward pass for the sake of its hooks; notes if there is none to run."""
    roots = [
        t for t in ([loss] if loss is not None else floating_leaves(output)) if t.requires_grad
    ]
    if not roots or not edges:
        return ["no gradients: the output does not depend on anything that requires them"]
    root = roots[0]
    if loss is None:
        generator = torch.Generator().manual_seed(COTANGENT_SEED)
        cotangent = torch.randn(root.shape, generator=generator, dtype=torch.float32, device="cpu")
    else:
        cotangent = torch.ones(root.shape, dtype=torch.float32, device="cpu")
    cotangent = (cotangent * scale).to(root.device, root.dtype)
    # In torch's own backward nothing writes into the model; then `preserved` need not watch.
    watch = nullcontext() if _runs_python(root) else torch._C._DisableTorchDispatch()  # noqa: SLF001
    try:
        with watch:
            torch.autograd.grad(root, edges, cotangent, allow_unused=True)
    except Exception as error:
        raise ModelError(
            f"the backward pass failed: {type(error).__name__}: {_words(error)}. "
            "probe(..., backward=False) measures the forward pass alone."
        ) from error
    return []


def _runs_python(root: Tensor) -> bool:
    """Whether the backward pass runs the user's Python: module hooks and autograd Functions do."""
    front, seen = [root.grad_fn], {root.grad_fn}
    while front:
        node = front.pop()
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        parents = (
            {parent for parent, _ in node.next_functions if parent is not None} if node else set()
        )
        front += parents - seen
        seen |= parents
    return False


def _chance(loss: Tensor, output: Any) -> float | None:
    """ln(classes) if ``loss`` is a mean cross-entropy, as its graph tells; else None."""
    logits = next((t for t in floating_leaves(output) if t.ndim > 1), None)
    if logits is None:
        return None
    ends = {t.grad_fn for t in floating_leaves(output) if t.ndim}
    front, near = [loss.grad_fn], 0
    while front and near < 64:
        node, near = front.pop(0), near + 1
        if node is None or node in ends:
            continue
        name = node.name()
        if name.startswith("NllLoss") and getattr(node, "_saved_reduction", 1) == 1:
            return math.log(logits.shape[1 if "2D" in name else -1])
        if "LogSoftmax" in name or "Logsumexp" in name:
            return math.log(logits.shape[-1])
        front += [parent for parent, _ in node.next_functions]
    return None
