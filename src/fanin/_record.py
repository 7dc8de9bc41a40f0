"""A dispatch mode that reports each ATen op on the signal, with the module that ran it.

Module hooks miss functional code; ATen ops are what every model ends in. An op is on the signal
when it reads something computed from the model's inputs: arithmetic on parameters alone, masks,
positions and noise are not reported. Tensors are followed by their storage, so views, in-place
writes, casts and copies need no rule of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

INPUT = -1  # as a source: the model's own inputs


@dataclass(slots=True)
class Op:
    """One ATen op on the signal, reported when autograd has finished with its output.

    Args:
        index: position in execution order, from 0.
        op: the field's name: ``linear``, ``conv2d``, ``layer_norm``, ``relu``.
        aten: torch's name: ``addmm``, ``convolution``, ``native_layer_norm``, ``relu_``.
        module: FQN of the innermost module that ran it; of a shared module, its first name.
        args: as the op got them; do not keep them.
        kwargs: as the op got them; do not keep them.
        output: the first floating output; a tensor hook on it sees this op's gradient.
        value: the same numbers with samples along dim 0, where torch had folded it.
        sources: indices of the ops that made its inputs; `INPUT` for the model's inputs.
        params: FQNs of the parameters it reads, directly or through arithmetic on them.
    """

    index: int
    op: str
    aten: str
    module: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor
    value: Tensor
    sources: tuple[int, ...]
    params: tuple[str, ...]


# The same numbers under another tensor: nothing to report.
_VIEWS = frozenset(
    ("_unsafe_view", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "lift_fresh")
)
_COPIES = frozenset(("clone", "_to_copy", "copy_", "lift_fresh_copy", "_reshape_copy", "view_copy"))
# They take a tensor for its shape only.
_FACTORIES = frozenset(
    ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like",
     "new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided")
)  # fmt: skip

# ATen's name -> the field's. Others lose a leading "native_" or "_" and a trailing "_".
_NAMES = {
    "_native_batch_norm_legit": "batch_norm",
    "_native_batch_norm_legit_no_training": "batch_norm",
    "_batch_norm_with_update": "batch_norm",
    "_batch_norm_no_update": "batch_norm",
    "cudnn_batch_norm": "batch_norm",
    "miopen_batch_norm": "batch_norm",
    "_fused_rms_norm": "rms_norm",
    "_prelu_kernel": "prelu",
    "_safe_softmax": "softmax",
    "_trilinear": "bilinear",
    "clamp_min": "clamp",
    "clamp_max": "clamp",
    "log_sigmoid_forward": "logsigmoid",
    "max_pool2d_with_indices": "max_pool2d",
    "max_pool3d_with_indices": "max_pool3d",
    "mkldnn_rnn_layer": "lstm",
    "rrelu_with_noise": "rrelu",
}
_PRODUCTS = frozenset(("addmm", "mm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot"))
_CONVOLUTIONS = frozenset(
    ("convolution", "convolution_overrideable", "cudnn_convolution", "mkldnn_convolution")
)
# Modules that torch computes by several elementwise ops: the last of them is the module.
_COMPOSITES = {"Softsign": "div", "Tanhshrink": "sub", "Softmin": "softmax"}
_SELU_SCALE = 1.0507009873554805


_TENSORS = frozenset((Tensor, nn.Parameter))
_NOTHING = frozenset((bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout))


class _Rule(NamedTuple):
    aten: str
    name: str
    view: bool
    copy: bool
    factory: bool


def _rule_of(func: Any) -> _Rule:
    aten = func._schema.name.split("::")[1]  # noqa: SLF001 - an operator's schema has no public door
    name = _NAMES.get(aten)
    if name is None:
        name = aten.removeprefix("_").removeprefix("native_").rstrip("_")
        if name.startswith("scaled_dot_product"):
            name = "scaled_dot_product_attention"
    return _Rule(aten, name, func.is_view or aten in _VIEWS, aten in _COPIES, aten in _FACTORIES)


def field_name(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], params: tuple[str, ...], kind: str
) -> str:
    """What people call the op: products with a parameter are ``linear``, without ``matmul``.

    Args:
        name: ATen's name, cleaned.
        args: of the op.
        kwargs: of the op.
        params: FQNs of the parameters that it reads.
        kind: class name of the module that ran it.
    """
    if name in _PRODUCTS:
        return "linear" if params else "matmul"
    if name in _CONVOLUTIONS:
        transposed = len(args) > 6 and args[6] is True
        return f"conv{'_transpose' if transposed else ''}{args[1].ndim - 2}d"
    if name == "hardtanh" and (args[1:] or tuple(kwargs.values())) == (0.0, 6.0):
        return "relu6"
    if name == "elu" and len(args) > 2 and abs(args[2] - _SELU_SCALE) < 1e-6:
        return "selu"
    if _COMPOSITES.get(kind) == name:
        return kind.lower()
    return "dropout" if name == "mul" and "Dropout" in kind else name


def storage_key(tensor: Tensor) -> int | None:
    """Identity of the memory behind ``tensor``; None for layouts without a storage.

    Unique while the storage, or a weak reference to it, is alive.
    """
    try:
        return tensor.untyped_storage()._cdata  # noqa: SLF001 - views share it, data_ptr may be 0
    except (NotImplementedError, RuntimeError):
        return None


class Recorder(TorchDispatchMode):
    """Report each ATen op that reads the signal and yields a floating tensor.

    A record is delivered when the next op is about to run, and at the end: then autograd has
    attached the output's ``grad_fn``, and torch has unfolded what it had folded for the product.
    What ``on_op`` computes is not reported, but modes entered before this one see it.

    Args:
        model: its modules' FQNs name the ops.
        on_op: called once per op. It must not keep the record's tensors.
        inputs: what the model is called with, any nesting; their storages start the signal. Without
            tensors among them the parameters do.
        on_output: called with (FQN, op index) when a module of ``model`` returns: the op whose
            result, perhaps reshaped, is its first floating output.
        parameters: FQN -> tensor, if the model is run with others than its own.
        before: called with each op before it runs, in place of the modes entered before this one.

    Attributes:
        missed: names of ops on the signal with a floating or complex result that could not be
            reported (sparse, complex, subclasses of Tensor), with their counts.
    """

    def __init__(  # noqa: PLR0917 - what a run consists of, in its order
        self,
        model: nn.Module,
        on_op: Callable[[Op], None],
        inputs: Any = (),
        on_output: Callable[[str, int], None] | None = None,
        parameters: Mapping[str, Tensor] | None = None,
        before: Callable[[Any, tuple[Any, ...], dict[str, Any]], None] | None = None,
    ) -> None:
        super().__init__()
        self._reported = 0
        self.missed: dict[str, int] = {}
        self._on_op, self._on_output, self._before = on_op, on_output, before
        self._fqns = {id(m): name for name, m in model.named_modules()}
        self._stack: list[tuple[nn.Module, str]] = []
        self._rules: dict[Any, _Rule] = {}
        self._pending: Op | None = None
        self._handles: list[Any] = []
        self._alive: dict[int, StorageWeakRef] = {}  # keeps a key from being given twice
        self._made_by: dict[int | None, int] = {}  # storage of the signal -> op index
        self._params: dict[
            int | None, tuple[str, ...]
        ] = {}  # storage computed from parameters alone
        owned = dict(model.named_parameters()) if parameters is None else parameters
        for name, parameter in owned.items():
            self._own(parameter, (name,))
        given = [t for t in tree_leaves(inputs) if isinstance(t, Tensor)]
        self._batch = next((t.shape[:1] for t in given if t.ndim), None)
        for tensor in given or owned.values():
            self._mark(tensor, INPUT)

    @property
    def seen(self) -> int:
        """How many results on the signal were floating or complex so far."""
        return self._reported + sum(self.missed.values())

    @property
    def where(self) -> str:
        """FQN of the innermost module that is running, or was when an exception ended the run."""
        return self._stack[-1][1] if self._stack else ""

    # the run ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._handles = [
            register_module_forward_pre_hook(self._entered),
            register_module_forward_hook(self._left),
        ]
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        for handle in self._handles:
            handle.remove()
        if error is None:
            with torch.no_grad():
                self._deliver()
        self._pending = None

    def _entered(self, module: nn.Module, _: Any) -> None:
        name = self._fqns.get(id(module))
        if name is not None:
            self._stack.append((module, name))

    def _left(self, module: nn.Module, _: Any, output: Any) -> None:
        stack = self._stack
        if not stack or stack[-1][0] is not module:
            # An exception that the model caught leaves modules on the stack above this one.
            if all(m is not module for m, _ in stack):
                return
            while stack[-1][0] is not module:
                stack.pop()
        _, name = stack.pop()
        if self._on_output is not None:
            plain = type(output) is Tensor and output.is_floating_point()
            first = output if plain else next(floating_leaves(output), None)
            index = None if first is None else self._made_by.get(storage_key(first))
            if index is not None and index != INPUT:
                self._on_output(name, index)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = self._rules.get(func)
        if rule is None:
            rule = self._rules[func] = _rule_of(func)
        if not rule.view:
            self._deliver()
        if self._before is None or types:  # subclasses of Tensor need their own dispatch
            result = func(*args, **kwargs)
        else:
            self._before(func, args, kwargs)
            with torch._C._DisableTorchDispatch():  # noqa: SLF001 - skips the other modes
                result = func(*args, **kwargs)
        if rule.view:
            self._unfold(result)
        elif not rule.factory:
            self._follow(rule, args, kwargs, result)
        return result

    # following -------------------------------------------------------------------------------

    def _follow(
        self, rule: _Rule, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        sources, params = self._read(_tensors((*args, *kwargs.values()), []))
        outputs = [result] if type(result) is Tensor else _tensors((result,), [])
        if not sources:
            for tensor in outputs if params else ():
                self._own(tensor, params)
            return
        index = max(sources)
        signal = next((t for t in outputs if t.is_floating_point() or t.is_complex()), None)
        if signal is None or rule.copy or storage_key(signal) in self._params:
            pass
        elif _measurable(signal):
            index = self._reported
            self._reported += 1
            module, where = self._stack[-1] if self._stack else (None, "")
            name = field_name(rule.name, args, kwargs, params, type(module).__name__)
            self._pending = Op(
                index, name, rule.aten, where, args, kwargs, signal, signal, sources, params
            )
        else:
            self.missed[rule.name] = self.missed.get(rule.name, 0) + 1
        for tensor in outputs:
            self._mark(tensor, index)

    def _read(self, tensors: list[Tensor]) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Ops that made ``tensors``, and parameters behind them."""
        sources: list[int] = []
        params: tuple[str, ...] = ()
        for tensor in tensors:
            key = storage_key(tensor)
            made_by = self._made_by.get(key)
            if made_by is not None and made_by not in sources:
                sources.append(made_by)
            if key in self._params:
                params += tuple(n for n in self._params[key] if n not in params)
        return tuple(sources), params

    def _unfold(self, view: Any) -> None:
        """Take a view of the pending result that brings the samples back to dim 0."""
        last = self._pending
        if last is None or not isinstance(view, Tensor) or last.value.shape[:1] == self._batch:
            return
        whole = view.shape[:1] == self._batch and view.numel() == last.output.numel()
        if whole and storage_key(view) == storage_key(last.output):
            last.value = view

    def _deliver(self) -> None:
        last, self._pending = self._pending, None
        if last is not None:
            self._on_op(last)

    def _own(self, tensor: Tensor, names: tuple[str, ...]) -> None:
        key = self._keep(tensor)
        if key is not None:
            self._params[key] = tuple(dict.fromkeys((*self._params.get(key, ()), *names)))

    def _mark(self, tensor: Tensor, index: int) -> None:
        key = self._keep(tensor)
        if key is not None and (index == INPUT or key not in self._params):
            self._made_by[key] = index

    def _keep(self, tensor: Tensor) -> int | None:
        key = storage_key(tensor)
        if key is not None and key not in self._alive:
            self._alive[key] = StorageWeakRef(tensor.untyped_storage())
        return key


def _tensors(values: Iterable[Any], found: list[Tensor]) -> list[Tensor]:
    """Tensors among ``values`` and in lists of them, added to ``found``."""
    for value in values:
        kind = type(value)
        if kind in _TENSORS:
            found.append(value)
        elif kind in _NOTHING:  # isinstance(value, Tensor) is slow where the answer is no
            continue
        elif kind is list or kind is tuple:
            _tensors(value, found)
        elif isinstance(value, Tensor):
            found.append(value)
    return found


def _measurable(tensor: Tensor) -> bool:
    plain = type(tensor) in _TENSORS and tensor.layout is torch.strided
    return plain and tensor.is_floating_point()


def floating_leaves(value: Any) -> Iterator[Tensor]:
    """Floating tensors of a model's output, in order: nested tuples, dicts, dataclasses.

    Objects with ``to_tuple`` (as Hugging Face's outputs) are read through it.
    """
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from floating_leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from floating_leaves(item)
    elif callable(getattr(value, "to_tuple", None)):
        yield from floating_leaves(value.to_tuple())
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from floating_leaves(getattr(value, name))
