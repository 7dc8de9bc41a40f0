"""Blocks, and models made of them, as ONNX files."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import InvalidValueError, MissingExtraError, ModelError
from .._inputs import Inputs, as_inputs
from . import _exporting
from ._base import evaluated
from ._language import TransformerLM

OPSETS = range(18, 24)
NAMES = ("batch", "sequence", "context")  # of the free sizes, as they come
Axes = dict[int, int]  # axis -> its size in the example: sizes that are equal stay equal


def export_onnx(
    module: nn.Module,
    path: str | PathLike[str],
    example_inputs: Any = None,
    *,
    opset: int = 20,
    check: bool = True,
    tolerance: float = 1e-5,
) -> dict[str, float]:
    """Write ``module`` as an ONNX file whose batch and sequence lengths are free.

    Free are the first two axes of every input ((B, T) of ids and padding, (B, T, d) of features), the
    only one of positions, and the last two of ``mask``, with its first if it has three or four. Axes
    whose sizes are equal in the example stay equal; one of size 1 is constant. The file computes what
    the module does in eval mode. A query that may attend to nothing gives zeros there too.

    Args:
        module: a block, or any module; left as it was.
        path: of the file.
        example_inputs: a tensor, a tuple of positional arguments, a mapping of keyword arguments, or
            `fanin.Inputs`. Blocks that take one input have an example of their own.
        opset: 18 to 23. From 23 attention, RMS norms and rotary positions are one operator each.
        check: run onnx.checker, then onnxruntime with and without its optimisations, on the example and
            on other batches and lengths, and compare with the module.
        tolerance: largest difference, as a part of the largest output.

    Returns:
        What was run -> its largest difference, as a part of the largest output; empty with check=False.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        InvalidValueError: an opset out of range, inputs without two free axes.
        ModelError: the file computes something else than the module; nothing is written.

    Example:
        ``fanin.nn.export_onnx(encoder, "encoder.onnx", {"x": x, "key_padding_mask": padded}, opset=23)``
    """
    if opset not in OPSETS:
        raise InvalidValueError(f"opset must be from 18 to 23, got {opset!r}.")
    _import_onnx(check)
    inputs = _named(
        module, _example(module) if example_inputs is None else as_inputs(example_inputs)
    )
    axes = {name: _free_axes(name, tensor) for name, tensor in inputs.items()}
    with evaluated(module), tempfile.TemporaryDirectory(dir=Path(path).resolve().parent) as folder:
        file = Path(folder, "model.onnx")
        _write(module, inputs, axes, opset, file)
        errors = _compare(module, file, inputs, axes) if check else {}
        if errors and not max(errors.values()) <= tolerance:
            raise ModelError(
                f"the ONNX file of {type(module).__name__} differs from the module by more than {tolerance:g}: "
                + "; ".join(f"{case}: {error:.2g}" for case, error in errors.items())
            )
        for written in Path(folder).iterdir():
            written.replace(
                Path(path).with_name(written.name.replace("model.onnx", Path(path).name))
            )
    return errors


def _import_onnx(check: bool) -> None:
    try:
        import onnx
        import onnxscript

        if check:
            import onnxruntime  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("export_onnx", str(error.name), "onnx") from error
    del onnx, onnxscript


def _example(module: nn.Module) -> Inputs:
    if isinstance(module, TransformerLM):
        return Inputs(torch.zeros(2, min(3, module.context_length), dtype=torch.int64))
    if isinstance(size := getattr(module, "d_model", None), int):
        return Inputs(torch.randn(2, 3, size, generator=torch.Generator().manual_seed(0)))
    raise InvalidValueError(
        f"export_onnx cannot guess what {type(module).__name__} is called with: pass example_inputs."
    )


def _named(module: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """The arguments that are there, by their names in ``forward``."""
    bound = signature(module.forward).bind(*inputs.args, **inputs.kwargs)
    given = {name: value for name, value in bound.arguments.items() if value is not None}
    if wrong := [name for name, value in given.items() if not isinstance(value, Tensor)]:
        raise InvalidValueError(f"export_onnx takes tensors as inputs; {', '.join(wrong)} is none.")
    return given


def _free_axes(name: str, tensor: Tensor) -> Axes:
    if name == "mask":
        axes = [tensor.dim() - 2, tensor.dim() - 1] + [0] * (tensor.dim() > 2)
    else:
        axes = list(range(min(2, tensor.dim())))
    return {a: tensor.shape[a] for a in sorted(axes) if tensor.shape[a] > 1}


def _write(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    axes: Mapping[str, Axes],
    opset: int,
    file: Path,
) -> None:
    sizes = dict.fromkeys(size for free in axes.values() for size in free.values())
    if not sizes:
        raise InvalidValueError(
            "every input has batch and length 1: give an example with two of each."
        )
    names = [*NAMES, *(f"size{i}" for i in range(len(sizes)))]
    symbols = {size: torch.export.Dim(name) for size, name in zip(sizes, names, strict=False)}
    shapes = {n: {a: symbols[s] for a, s in free.items()} for n, free in axes.items()}
    with _exporting.exporting(opset), _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (),
            kwargs=dict(inputs),
            dynamic_shapes=shapes,
            dynamo=True,
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    program.save(file)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings about itself."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _compare(
    module: nn.Module, file: Path, inputs: Mapping[str, Tensor], axes: Mapping[str, Axes]
) -> dict[str, float]:
    """Largest difference of onnxruntime from the module, by case."""
    import onnx
    import onnxruntime as ort

    onnx.checker.check_model(str(file), full_check=True)
    errors: dict[str, float] = {}
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        options.log_severity_level = 3
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        for case, tensors in _cases(inputs, axes):
            try:
                with torch.no_grad():
                    wanted = module(**tensors)
            except InvalidValueError:
                continue  # longer than the module can take
            errors[f"{case}, {level}"] = _difference(session, tensors, wanted)
    return errors


def _cases(
    inputs: Mapping[str, Tensor], axes: Mapping[str, Axes]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The example, and the example with its free sizes cut to one or made larger."""
    for case, resized in (
        ("as given", lambda size: size),
        ("ones", lambda _: 1),
        ("larger", lambda size: size + 3),
    ):
        tensors = dict(inputs)
        for name, free in axes.items():
            for axis, size in free.items():
                index = torch.arange(resized(size), device=tensors[name].device) % size
                tensors[name] = tensors[name].index_select(axis, index)
        yield case, tensors


def _difference(session: Any, tensors: Mapping[str, Tensor], wanted: Any) -> float:
    used = {i.name for i in session.get_inputs()}
    found = session.run(None, {n: t.cpu().numpy() for n, t in tensors.items() if n in used})
    flat = [t for t in torch.utils._pytree.tree_leaves(wanted) if isinstance(t, Tensor)]  # noqa: SLF001
    worst = 0.0
    for ours, theirs in zip(flat, found, strict=True):
        exact = ours.cpu().double()
        gap = (exact - torch.as_tensor(theirs).double()).abs().max()
        worst = max(worst, float(gap / exact.abs().max().clamp_min(1e-30))) if gap > 0 else worst
    return worst
