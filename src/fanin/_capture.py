"""A model and its inputs -> the graph of ops that it runs, without computing on its parameters.

The model's own Python runs on stand-ins below autograd, so that ops arrive whole: ``linear``,
``layer_norm``, ``scaled_dot_product_attention``, ``lstm``. What depends on no parameter and no
floating input is really computed: masks, positions, rotary tables. A model that calls autograd in
its forward pass is run once more above autograd, and then its ops arrive in parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

from ._arguments import taken, tensors
from ._errors import FaninError, ModelError
from ._graph import Call, Graph
from ._inputs import Inputs, as_inputs
from ._ledger import Leaf
from ._names import canonical, is_wrapped, module_name
from ._surroundings import SEED, moved, surroundings, unwrapped
from ._tape import Tape


def capture(model: nn.Module, inputs: Any) -> Graph:
    """The ops that ``model`` runs on ``inputs``, as data.

    Nothing is computed on parameters, whatever device they are on, and afterwards every bit of the
    model and of the random states is as before, also if it raises.

    Args:
        model: any nn.Module, in the mode (train or eval) that is of interest.
        inputs: a tensor, a tuple of positional arguments, a mapping of keyword arguments, or
            `fanin.Inputs`. Tensors may be on the meta device, and a `torch.Size` stands for a
            floating tensor of that shape.

    Returns:
        A `Graph`: values, nodes in execution order, and calls of modules. `Graph.notes` says what
        was sampled.

    Raises:
        ModelError: the model has lazy parameters, it raises, or it does something that needs
            numbers which are not there; the message names the op, the module and the cause.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU())
        >>> graph = capture(net, torch.Size([4, 8]))
        >>> [(node.op, node.module) for node in graph.nodes]
        [('linear', '0'), ('relu', '1')]
        >>> graph.parameters
        {'0.weight': 1, '0.bias': 2}
    """
    given = as_inputs((inputs,) if isinstance(inputs, torch.Size) else inputs)
    _refuse_lazy(model)
    try:
        return _Run(model, given, whole=True).graph
    except _WantsAutogradError:
        return _Run(model, given, whole=False).graph


def _refuse_lazy(model: nn.Module) -> None:
    for path, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):  # noqa: SLF001
            if is_lazy(tensor):
                raise ModelError(
                    f"{path}.{name} is lazy: its shape is known only after a first run. "
                    "Run the model once on example inputs, then capture it."
                )


class _WantsAutogradError(Exception):
    """The model differentiates in its forward pass."""


# one run ------------------------------------------------------------------------------------------


class _Run:
    """One run of a model on stand-ins.

    Args:
        model: as given by the caller.
        inputs: what it is called with.
        whole: whether ops arrive whole, below autograd.

    Attributes:
        graph: what was seen.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, *, whole: bool) -> None:
        self._model, self._whole = model, whole
        self._notes: list[str] = []
        self._inputs: list[int] = []
        self._calls: list[Call] = []
        with surroundings(model, whole=whole) as watch:
            replaced = moved(model)
            parameters, leaves = _leaves(model)
            self._tape = Tape(leaves, watch, whole=whole)
            self._ledger = self._tape.ledger
            for before, now in replaced.values():
                self._ledger.alias(before, now)
            args, kwargs = taken(model, inputs, self._take)
            output = self._output(args, kwargs)
            outputs = tuple(self._ledger.read(t) for t in tensors(output))
        self.graph = self._graph(parameters, outputs)

    def _take(self, tensor: Tensor, name: str) -> Tensor:
        """What stands for a tensor that the model is called with."""
        ledger = self._ledger
        floating = tensor.is_floating_point() or tensor.is_complex()
        if tensor.is_meta and not floating:
            self._notes.append(f"{name}: given without numbers, which were drawn")
            tensor = self._drawn(tensor)
        index = ledger.input(tensor, name)
        self._inputs.append(index)
        if floating and tensor.layout is torch.strided:
            made = ledger.made(tensor.shape, tensor.dtype, index)
            return made if self._whole else made.requires_grad_(tensor.requires_grad)
        copy = tensor.detach().cpu().clone()
        ledger.hold(copy, index)
        return copy

    def _drawn(self, tensor: Tensor) -> Tensor:
        if tensor.dtype is torch.bool:
            return torch.ones(tensor.shape, dtype=torch.bool, device="cpu")
        generator = torch.Generator("cpu").manual_seed(SEED)
        return torch.randint(
            0,
            _vocabulary(self._model),
            tensor.shape,
            generator=generator,
            dtype=tensor.dtype,
            device="cpu",
        )

    def _output(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            with _followed(self._model, self._tape, self._calls), self._tape:
                return unwrapped(self._model)(*args, **kwargs)
        except FaninError:
            raise
        except Exception as error:
            if self._whole and isinstance(error, RuntimeError) and "grad" in str(error):
                raise _WantsAutogradError from error
            raise ModelError(self._what_failed(error, args, kwargs)) from error

    def _what_failed(self, error: Exception, *given: Any) -> str:
        where, kind = _innermost(self._model, error)
        place = f"in module {where!r} ({kind})" if where else f"in {kind} itself"
        shapes = ", ".join(
            f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in tensors(given)
        )
        op = f" The last op was {self._tape.op}." if self._tape.op else ""
        return (
            f"the model could not be captured: {place}: {type(error).__name__}: "
            f"{str(error).rstrip(' .')}.{op} It was called with {shapes or 'no tensors'}."
        )

    def _graph(self, parameters: dict[str, Tensor], outputs: tuple[int, ...]) -> Graph:
        index = self._ledger.index
        found = {name: index[id(p)] for name, p in parameters.items() if id(p) in index}
        sampled = (f"{op}: {n} sampled" for op, n in self._tape.sampled.items())
        whole = () if self._whole else ("differentiates in its forward pass: ops in parts",)
        return Graph(
            tuple(self._ledger.values),
            tuple(self._ledger.nodes),
            tuple(self._calls),
            tuple(self._inputs),
            outputs,
            found,
            tuple(name for name in parameters if name not in found),
            (*self._notes, *sampled, *whole),
        )


def _leaves(model: nn.Module) -> tuple[dict[str, Tensor], list[Leaf]]:
    """Parameters by every name, and all leaves; the first name of a tied one comes last."""
    wrapped = is_wrapped(model)
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for held, found in ((module._parameters, parameters), (module._buffers, buffers)):  # noqa: SLF001
            for name, tensor in held.items():
                if tensor is not None:
                    found[canonical(prefix + name, wrapped_root=wrapped)] = tensor
    return parameters, [
        *(Leaf(b, "buffer", name) for name, b in reversed(buffers.items())),
        *(Leaf(p, "parameter", name) for name, p in reversed(parameters.items())),
    ]


def _innermost(model: nn.Module, error: BaseException) -> tuple[str, str]:
    """FQN and class of the module whose method the error came through last."""
    names = {id(m): n for n, m in model.named_modules()}
    where, kind, trace = "", type(model).__name__, error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if id(owner) in names:
            where, kind = names[id(owner)], type(owner).__name__
        trace = trace.tb_next
    return where, kind


def _vocabulary(model: nn.Module) -> int:
    """Integers below it index every embedding of the model."""
    sizes = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    return max(1, min(sizes, default=2))


# modules ------------------------------------------------------------------------------------------


@contextmanager
def _followed(model: nn.Module, tape: Tape, calls: list[Call]) -> Iterator[None]:
    """Note which module runs, and what each call returns."""
    wrapped = is_wrapped(model)
    # Of a wrapper and what it wraps, which have one name, the inner counts.
    inner = {module_name(n, wrapped_root=wrapped): m for n, m in model.named_modules()}
    modules = {id(m): name for name, m in inner.items()}
    leaves = {
        id(m)
        for m in inner.values()
        if all(name == "parametrizations" for name, _ in m.named_children())
    }
    stack: list[tuple[nn.Module, str, int]] = []
    ledger = tape.ledger

    def entered(module: nn.Module, _: Any) -> None:
        name = modules.get(id(module))
        if name is not None:
            stack.append((module, ledger.module, len(ledger.nodes)))
            ledger.module = name

    def left(module: nn.Module, _: Any, output: Any) -> None:
        if not any(running is module for running, _, _ in stack):
            return
        while stack[-1][0] is not module:
            stack.pop()
        _, ledger.module, start = stack.pop()
        plain = (output,) if isinstance(output, Tensor) else tensors(output)
        first = next(filter(Tensor.is_floating_point, plain), None)
        calls.append(
            Call(
                modules[id(module)],
                type(module).__name__,
                start,
                len(ledger.nodes),
                None if first is None else ledger.read(first),
                id(module) in leaves,
            )
        )

    handles = [
        register_module_forward_pre_hook(entered),
        register_module_forward_hook(left, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
