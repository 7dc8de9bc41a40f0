"""Run a model and leave every bit of it as it was, also when the run raises.

Cloning all parameters would double the memory. Instead a dispatch mode looks at each ATen op that
is about to run: what its schema says it will write is saved first, once per storage. Buffers are
small and some kernels write them without saying so (batch norm), hence they are saved at once.
"""

from __future__ import annotations

import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

Restore = Callable[[], None]
Watch = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]
_DICTS = frozenset((dict, OrderedDict, defaultdict))
_CONTAINERS = _DICTS | {list, set, deque}
_PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None)))  # hold nothing
_PLAIN_TENSORS = frozenset((Tensor, nn.Parameter))
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


@contextmanager
def preserved(model: nn.Module, *, silent_writes: bool = True) -> Iterator[Watch]:
    """Whatever the body does with ``model``, afterwards it is bit-equal to what it was.

    Put back: parameters and buffers (objects and bits, tied ones too), ``.grad``,
    ``requires_grad``, tensor and module hooks, training flags, attributes of every module with
    the lists, dicts, sets and tensors that they hold, the states of the random generators of
    torch (CPU and every accelerator in use), Python and NumPy and of generators that modules
    hold, the flush-denormal flag, the default dtype and device, and the grad mode.

    Not seen: writes that pass around ATen (through ``.numpy()``), and the inner state of objects
    other than the above that a module merely refers to.

    Args:
        model: any nn.Module.
        silent_writes: whether kernels that write buffers without saying so may run; then the bits
            of all buffers are saved at once.

    Yields:
        What its dispatch mode calls before each op, with (op, args, kwargs): another mode that
        sees the op first may call it, and run the op unseen.

    Example:
        >>> import torch
        >>> norm = torch.nn.BatchNorm1d(2)
        >>> with preserved(norm):
        ...     _ = norm(torch.randn(4, 2))
        >>> int(norm.num_batches_tracked)
        0
    """
    with ExitStack() as stack:
        stack.callback(_process_state())
        memory = _Memory()
        stack.callback(memory.restore)
        stack.callback(_Objects(model, memory, save_buffers=silent_writes).restore)
        yield stack.enter_context(_WriteGuard(memory)).watch


# bits ----------------------------------------------------------------------------------------


class _Memory:
    """Storages that may not change, and the bits of those that were about to."""

    def __init__(self) -> None:
        self.guarded: dict[int, torch.UntypedStorage] = {}
        self._saved: dict[int, Tensor] = {}
        self._whole: list[tuple[Tensor, Tensor]] = []

    def guard(self, tensor: Tensor) -> None:
        """Save the bits of ``tensor`` before the first op that writes them."""
        for storage in _storages(tensor):
            self.guarded[storage._cdata] = storage  # noqa: SLF001 - a storage's identity

    def save(self, tensor: Tensor) -> None:
        """Save the bits of ``tensor`` now."""
        storages = _storages(tensor)
        self.guard(tensor)
        for storage in storages:
            self.about_to_write(storage)
        if not storages:
            self._whole.append((tensor, tensor.detach().clone()))

    def about_to_write(self, storage: torch.UntypedStorage) -> None:
        """Save the bits of ``storage`` if it is guarded and not saved yet."""
        key = storage._cdata  # noqa: SLF001
        if key in self.guarded and key not in self._saved and storage.device.type != "meta":
            self._saved[key] = _bytes(storage).clone()

    def restore(self) -> None:
        """Write the saved bits back; version counters of the tensors do not move."""
        for key, bits in self._saved.items():
            storage = self.guarded[key]
            if storage.nbytes() != bits.numel():
                storage.resize_(bits.numel())
            _bytes(storage).copy_(bits)
        for tensor, bits in self._whole:
            with torch.no_grad():
                tensor.copy_(bits)


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _storages(tensor: Tensor) -> list[torch.UntypedStorage]:
    """The memory behind a tensor; of a wrapper such as DTensor, that of its parts."""
    if type(tensor) not in _PLAIN_TENSORS and is_traceable_wrapper_subclass(tensor):
        return [
            s for name in tensor.__tensor_flatten__()[0] for s in _storages(getattr(tensor, name))
        ]
    try:
        return [tensor.untyped_storage()]
    except (NotImplementedError, RuntimeError):  # sparse and other layouts
        return []


class _WriteGuard(TorchDispatchMode):
    """Tell `_Memory` of every storage that an op is about to write."""

    def __init__(self, memory: _Memory) -> None:
        super().__init__()
        self._memory = memory
        self._writes: dict[Any, tuple[tuple[int, ...], tuple[str, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.watch(func, args, kwargs)
        return func(*args, **kwargs)

    def watch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Save what ``func`` is about to write."""
        writes = self._writes.get(func)
        if writes is None:
            writes = self._writes[func] = _written_arguments(func)
        positions, names = writes
        for i in positions:
            if i < len(args):
                self._saved(args[i])
        for name in names:
            self._saved(kwargs.get(name))

    def _saved(self, value: Any) -> None:
        for tensor in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(tensor, Tensor):
                for storage in _storages(tensor):
                    self._memory.about_to_write(storage)


def _written_arguments(func: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Positions and names of the arguments that an op's schema says it writes."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return (), ()
    written = [
        (i, a.name)
        for i, a in enumerate(schema.arguments)
        if a.alias_info is not None and a.alias_info.is_write
    ]
    return tuple(i for i, _ in written), tuple(name for _, name in written)


# the model -----------------------------------------------------------------------------------


class _Objects:
    """Which objects a model holds, and what its containers and tensors say beside their bits."""

    def __init__(self, model: nn.Module, memory: _Memory, *, save_buffers: bool) -> None:
        self._memory = memory
        self._seen: set[int] = set()
        self._inert: set[type] = set()  # kinds of which nothing is noted
        self._empty: list[Any] = []
        self._containers: list[tuple[Any, Any]] = []
        self._restores: list[Restore] = []
        held: dict[int, Tensor] = {}
        for module in model.modules():
            inside = module.__dict__
            self._containers.append((inside, inside.copy()))
            for value in inside.values():
                kind = type(value)
                if kind in _CONTAINERS and not value:
                    self._empty.append(value)
                elif kind not in _PLAIN:
                    self._visit(value)
            for tensors, save in (
                (module._parameters, False),  # noqa: SLF001 - without names, each module once
                (module._buffers, save_buffers),  # noqa: SLF001
            ):
                for tensor in tensors.values():
                    if tensor is not None and id(tensor) not in held:
                        held[id(tensor)] = tensor
                        (memory.save if save else memory.guard)(tensor)
        self._tensors = [_TensorState(t) for t in held.values()]
        for tensor in held.values():
            if tensor.is_leaf and tensor.grad is not None:
                memory.guard(tensor.grad)

    def _visit(self, value: Any) -> None:
        """Note what ``value`` holds: containers, tensors and random generators in it."""
        kind = type(value)
        if kind in _PLAIN or kind in self._inert:
            return
        if kind in _CONTAINERS or kind is tuple:
            if id(value) in self._seen:
                return
            self._seen.add(id(value))
            if kind is not tuple:
                self._containers.append((value, value.copy()))
            for item in value.values() if kind in _DICTS else value:
                self._visit(item)
        elif isinstance(value, Tensor):
            self._memory.guard(value)
        elif isinstance(value, torch.Generator):
            self._restores.append(_setter(value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            self._restores.append(_setter(value.setstate, value.getstate()))
        elif isinstance(value, np.random.Generator):
            put_back = partial(setattr, value.bit_generator, "state")
            self._restores.append(_setter(put_back, value.bit_generator.state))
        else:
            self._inert.add(kind)

    def restore(self) -> None:
        """Put every object back where it was."""
        for container in self._empty:
            if container:
                container.clear()
        for container, content in self._containers:
            if container or content:
                _put_back(container, content)
        for tensor in self._tensors:
            tensor.restore()
        for put_back in self._restores:
            put_back()


def _put_back(container: Any, content: Any) -> None:
    """Give ``container`` its old content, in its old order, if it has another."""
    if len(container) == len(content):
        if isinstance(container, set):
            same = container == content
        else:
            same = all(map(is_, container, content))
            if same and isinstance(container, dict):
                same = all(map(is_, container.values(), content.values()))
        if same:
            return
    container.clear()
    getattr(container, "extend" if isinstance(container, (list, deque)) else "update")(content)


class _TensorState:
    """Everything about a tensor object but its bits: memory, grad, flags, attributes, hooks."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._data = tensor, tensor.data
        self._leaf, self._wants_grad = tensor.is_leaf, tensor.requires_grad
        self._grad = tensor.grad if self._leaf else None
        self._attributes = tensor.__dict__.copy()
        self._hooks = {
            name: dict(hooks) for name in _TENSOR_HOOKS if (hooks := getattr(tensor, name, None))
        }

    def restore(self) -> None:
        tensor = self._tensor
        if _moved(tensor, self._data):
            tensor.data = self._data
        if self._leaf:
            if tensor.requires_grad is not self._wants_grad:
                tensor.requires_grad_(self._wants_grad)
            if tensor.grad is not self._grad:
                tensor.grad = self._grad
        if tensor.__dict__ or self._attributes:
            _put_back(tensor.__dict__, self._attributes)
        for name in _TENSOR_HOOKS:
            now = getattr(tensor, name, None)
            if now is not None:
                _put_back(now, self._hooks.get(name, {}))


def _moved(tensor: Tensor, data: Tensor) -> bool:
    """Whether ``tensor`` looks at other memory, or at the same in another way, than ``data``."""
    if tensor.shape != data.shape or tensor.dtype != data.dtype:
        return True
    if type(tensor) in _PLAIN_TENSORS and tensor.layout is torch.strided:
        return tensor.data_ptr() != data.data_ptr() or tensor.stride() != data.stride()
    here, there = _storages(tensor), _storages(data)
    return [s._cdata for s in here] != [s._cdata for s in there]  # noqa: SLF001


# the process ---------------------------------------------------------------------------------


def _process_state() -> Restore:
    """Random states, the flush-denormal flag, default dtype and device, grad mode."""
    restores: list[Restore] = [
        _setter(torch.set_rng_state, torch.get_rng_state()),
        _setter(random.setstate, random.getstate()),
        _setter(np.random.set_state, np.random.get_state()),  # noqa: NPY002 - models draw from it
        _setter(torch.set_flush_denormal, flushes_denormals()),
        _setter(torch.set_default_dtype, torch.get_default_dtype()),
        _setter(torch.set_grad_enabled, torch.is_grad_enabled()),
        *_accelerator_states(),
    ]
    device = torch.get_default_device()

    def restore() -> None:
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        for put_back in restores:
            put_back()

    return restore


def _accelerator_states() -> Iterator[Restore]:
    for name in ("cuda", "xpu", "mps"):
        backend: Any = getattr(torch, name, None)
        if sys.modules.get(f"torch.{name}") is None or not backend.is_available():
            continue
        if name == "mps":
            yield _setter(backend.set_rng_state, backend.get_rng_state())
        elif backend.is_initialized():
            yield _setter(backend.set_rng_state_all, backend.get_rng_state_all())


def _setter(put_back: Callable[[Any], Any], state: Any) -> Restore:
    return lambda: (put_back(state), None)[1]


def flushes_denormals() -> bool:
    """Whether this thread's CPU arithmetic turns denormal results into zero."""
    tiny = torch.tensor(1e-40, dtype=torch.float32, device="cpu")
    return float(tiny * 1.0) == 0.0
