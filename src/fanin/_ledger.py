"""The graph while it is written: values, nodes, and which tensor of the run holds which value.

A value never changes. An in-place op makes a new one, and a write through a view makes a new value
of the whole that is viewed; other views of that whole read their part of it when they are next used.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from . import _regions
from ._aten import Aten, dtype_name
from ._graph import Kind, Node, Ref, Value
from ._standin import Look, Memory, Standin, fresh, strided

KEEP = 1 << 24  # elements in memory of a constant up to which its numbers are kept

PLAIN = frozenset((bool, int, float, complex, str, type(None)))
_SEQUENCES = frozenset((list, tuple, torch.Size))
_NO_KEY = 0


class Leaf(NamedTuple):
    """A tensor that the model or its caller owns."""

    tensor: Tensor
    kind: Kind
    name: str


class Ledger:
    """Values and nodes of one run.

    Args:
        leaves: parameters, buffers and inputs; a tied one by its first name.
        draw: what `Standin.draw` becomes.

    Attributes:
        module: FQN that new nodes get.
    """

    def __init__(self, leaves: Iterable[Leaf], draw: Callable[[Standin], Tensor]) -> None:
        self.values: list[Value] = []
        self.nodes: list[Node] = []
        self.atens: list[Aten | None] = []  # what each node ran; None for those made by the ledger
        self.module = ""
        self.leaves = {id(leaf.tensor): leaf for leaf in leaves}
        self.index: dict[int, int] = {}  # id of a tensor that is no stand-in -> its value
        self._draw = draw
        self._alive: list[Tensor] = []  # an id is a tensor's own while it is alive
        self._wholes: dict[int, weakref.ref[Tensor]] = {}  # storage -> the first tensor seen there
        self._shown: dict[int, list[int]] = {}  # storage -> ids of tensors that values show
        self._memories: dict[int, Memory] = {}  # storage -> what a tensor that is no stand-in sees
        self._standins: dict[int, Standin] = {}  # id of such a tensor -> a stand-in for it
        self._unknown: set[int] = set()  # storages of parameters, and those with unknown numbers
        for leaf in self.leaves.values():
            if leaf.kind == "parameter":
                self._unknown.add(storage_of(leaf.tensor))
                self.first(leaf.tensor)
        self._unknown.discard(_NO_KEY)

    def alias(self, tensor: Tensor, now: Tensor) -> None:
        """Say that ``now`` stands for ``tensor``, wherever the model still has that."""
        if type(now) is Standin:
            self._standins[id(tensor)] = now
            self._unknown.add(storage_of(tensor))
            self._alive.append(tensor)

    # values ----------------------------------------------------------------------------------

    def add(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """A new value that an op computes."""
        self.values.append(Value(tuple(shape), dtype_name(dtype)))
        return len(self.values) - 1

    def made(self, shape: Sequence[int], dtype: torch.dtype, index: int | None = None) -> Standin:
        """A stand-in that holds a new value, or the value ``index``."""
        return fresh(shape, dtype, self.add(shape, dtype) if index is None else index, self._draw)

    def emit(
        self, op: str, args: Mapping[str, Any], outputs: tuple[int, ...], aten: Aten | None = None
    ) -> None:
        """Write down a node whose tensors are `Ref`s already."""
        self.nodes.append(Node(op, args, outputs, self.module))
        self.atens.append(aten)

    def input(self, tensor: Tensor, name: str) -> int:
        """A new value for an input of the model."""
        data = None if tensor.is_meta else _numpy(tensor)
        self.values.append(
            Value(tuple(tensor.shape), dtype_name(tensor.dtype), "input", name, data)
        )
        return len(self.values) - 1

    def hold(self, tensor: Tensor, index: int) -> None:
        """Say that ``tensor`` holds the value ``index``."""
        self.index[id(tensor)] = index
        self._alive.append(tensor)
        self._shown.setdefault(storage_of(tensor), []).append(id(tensor))

    def know(self, index: int, tensor: Tensor) -> None:
        """Say that a node's output ``index`` has the numbers of ``tensor``."""
        self.values[index] = replace(self.values[index], kind="constant", data=_kept(tensor))
        self.hold(tensor, index)

    # reading ---------------------------------------------------------------------------------

    def is_unknown(self, tensor: Tensor) -> bool:
        """Whether a tensor that is no stand-in has no numbers that may be used."""
        return (
            (type(tensor) is torch.nn.Parameter and id(tensor) in self.leaves)
            or tensor.is_meta
            or storage_of(tensor) in self._unknown
        )

    def read(self, tensor: Tensor) -> int:
        """Index of the value that ``tensor`` holds now."""
        if type(tensor) is Standin:
            memory = tensor.memory
            if memory is not None and tensor.version != memory.version:
                tensor.index, tensor.version = self._part(tensor, memory), memory.version
            return tensor.index if tensor.index >= 0 else self._leaf(tensor)
        if self._memories and storage_of(tensor) in self._memories:
            return self.read(self.standin(tensor))
        found = self.index.get(id(tensor))
        return self._leaf(tensor) if found is None else found

    def refer(self, given: Any) -> Any:
        """An argument with its tensors as `Ref`s, in the words of the core."""
        kind = type(given)
        if kind is Standin:
            return Ref(self.read(given))
        if kind in PLAIN:
            return given
        if isinstance(given, Tensor):
            return Ref(self.read(given))
        if kind in _SEQUENCES:
            if all(type(item) is int for item in given):
                return tuple(given)
            items = [self.refer(item) for item in given]
            return items if any(type(i) is Ref for i in items) else tuple(items)
        if kind is torch.dtype:
            return dtype_name(given)
        return None if kind is torch.Generator else str(given)

    def _leaf(self, tensor: Tensor) -> int:
        """A new value for a tensor that is read for the first time."""
        leaf = self.leaves.get(id(tensor))
        if leaf is None and storage_of(tensor) in self._unknown:
            return self.read(self.standin(tensor))
        if type(tensor) is Standin:
            tensor.index, tensor.draw = len(self.values), self._draw
        kind, name = ("constant", "") if leaf is None else (leaf.kind, leaf.name)
        empty = kind == "parameter" or type(tensor) is Standin
        data = None if empty else _kept(tensor)
        if kind == "buffer" and data is not None:
            data = data.copy()
        self.values.append(Value(tuple(tensor.shape), dtype_name(tensor.dtype), kind, name, data))
        self.hold(tensor, len(self.values) - 1)
        return len(self.values) - 1

    # memory ----------------------------------------------------------------------------------

    def first(self, tensor: Tensor) -> None:
        """Note ``tensor`` if it is the first to look at its memory."""
        key = storage_of(tensor)
        seen = self._wholes.get(key)
        if seen is None or (there := seen()) is None or storage_of(there) != key:
            self._wholes[key] = weakref.ref(tensor)

    def standin(self, tensor: Tensor) -> Standin:
        """A stand-in that looks where ``tensor`` does; from now on its numbers are not used."""
        if type(tensor) is Standin:
            return tensor
        made = self._standins.get(id(tensor))
        if made is None:
            made = self._standins[id(tensor)] = strided(
                tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, self._draw
            )
            self._alive.append(tensor)
            made.memory, made.version = self._memory(tensor), -1
        return made

    def _memory(self, tensor: Tensor) -> Memory:
        key = storage_of(tensor)
        found = self._memories.get(key)
        if found is None:
            self.first(tensor)
            whole = self._wholes[key]()
            assert whole is not None
            if whole.numel() * whole.element_size() != whole.untyped_storage().nbytes():
                whole = torch.empty(0, dtype=whole.dtype, device=whole.device).set_(
                    whole.untyped_storage()
                )
            index = self.index.get(id(whole))
            if index is None:
                self._unknown.discard(key)
                index = self._leaf(whole)
            self._freeze(key)
            self._unknown.add(key)
            found = self._memories[key] = Memory(
                whole.shape, whole.stride(), whole.storage_offset(), index
            )
        return found

    def view(  # noqa: PLR0917 - those of as_strided
        self,
        of: Standin,
        shape: Sequence[int],
        strides: Sequence[int],
        offset: int,
        dtype: torch.dtype | None = None,
        index: int | None = None,
    ) -> Standin:
        """A stand-in for another look at the memory of ``of``.

        It holds a new value, or the value ``index``.
        """
        made = strided(shape, strides, offset, dtype or of.dtype, self._draw)
        if of.memory is None:
            of.memory = Memory(of.shape, of.stride(), of.storage_offset(), self.read(of))
        made.memory, made.version = of.memory, of.memory.version
        made.index = self.add(shape, made.dtype) if index is None else index
        return made

    def write(self, tensor: Tensor, index: int) -> None:
        """Say that ``tensor`` holds the value ``index`` from now on, and so do those that share."""
        target = self.standin(tensor)
        memory = target.memory
        if memory is not None:
            memory.written.append((target.look, index))
            memory.version += 1
            target.version = memory.version
        target.index = index

    def moved(self, tensor: Tensor) -> None:
        """The shape of ``tensor`` was changed in place."""
        self._standins.pop(id(tensor), None)

    def settle(self, tensor: Standin, index: int) -> None:
        """Say that ``tensor`` holds ``index``, and that its memory has not changed."""
        tensor.index = index
        if tensor.memory is not None:
            tensor.version = tensor.memory.version

    def about_to_change(self, tensor: Tensor) -> None:
        """A real op is about to write numbers: values that show the old ones keep a copy."""
        key = storage_of(tensor)
        if key in self._shown:
            self._freeze(key)
            for known in self._shown.pop(key):
                self.index.pop(known, None)

    def _freeze(self, key: int) -> None:
        for known in self._shown.get(key, ()):
            i = self.index.get(known)
            if i is not None and self.values[i].data is not None:
                self.values[i] = replace(self.values[i], data=self.values[i].data.copy())

    # parts and wholes ------------------------------------------------------------------------

    def _computed(self, op: str, shape: tuple[int, ...], dtype: str, args: dict[str, Any]) -> int:
        self.values.append(Value(shape, dtype))
        self.emit(op, args, (len(self.values) - 1,))
        return len(self.values) - 1

    def _part(self, view: Standin, memory: Memory) -> int:
        """The value of a view, from the present value of the whole."""
        look = view.look
        if memory.written and memory.written[-1][0] == look:
            return memory.written[-1][1]
        for written, index in memory.written:
            memory.index = self._whole(written, memory, index)
        memory.written.clear()
        sizes = tuple(n if s else 1 for n, s in zip(look.shape, look.strides, strict=True))
        seen, emit = self._place(look._replace(shape=sizes), memory)
        if seen is None:
            size = {"size": look.shape, "stride": look.strides, "storage_offset": look.offset}
            return emit("as_strided", look.shape, x=Ref(memory.index), **size)
        index = _regions.read(emit, memory.index, memory.shape, sizes, seen)
        if sizes != look.shape:
            index = emit("expand", look.shape, x=Ref(index), size=look.shape, implicit=False)
        return index

    def _whole(self, look: Look, memory: Memory, index: int) -> int:
        """The value of the whole after ``index`` was written to a view of it."""
        seen, emit = self._place(look, memory)
        if seen is not None:
            return _regions.write(emit, memory.index, memory.shape, index, look.shape, seen)
        unknown = {"starts": None, "stops": None, "steps": None}
        return emit("view_write", memory.shape, x=Ref(memory.index), value=Ref(index), **unknown)

    def _place(self, look: Look, memory: Memory) -> tuple[_regions.Box | None, _regions.Emit]:
        """Where a view looks, if that is a box, and what writes nodes down."""
        whole = self.values[memory.index].dtype
        offset = look.offset - memory.offset
        box = _regions.box(memory.shape, memory.strides, look.shape, look.strides, offset)

        def emit(op: str, made: tuple[int, ...], **args: Any) -> int:
            dtype = dtype_name(look.dtype) if op == "as_strided" else whole
            return self._computed(op, made, dtype, args)

        return (box if dtype_name(look.dtype) == whole else None), emit


# tensors ------------------------------------------------------------------------------------------


def storage_of(tensor: Tensor) -> int:
    """Identity of the memory behind ``tensor`` while it is alive; 0 for layouts without one."""
    try:
        return tensor.untyped_storage()._cdata  # noqa: SLF001 - views share it, data_ptr may be 0
    except (NotImplementedError, RuntimeError):
        return _NO_KEY


def _kept(tensor: Tensor) -> npt.NDArray[Any] | None:
    """The numbers of a tensor, where they are known and few, or all the same."""
    if tensor.is_meta:
        return None
    if tensor.layout is not torch.strided or _held(tensor) <= KEEP:
        return _numpy(tensor)
    one = tensor.reshape(-1)[:1]
    if tensor.is_complex() or not bool((tensor == one).all()):
        return None
    return np.broadcast_to(_numpy(one).reshape(()), tuple(tensor.shape))


def _held(tensor: Tensor) -> int:
    """How many elements are in memory: an expanded axis counts once."""
    count = 1
    for n, step in zip(tensor.shape, tensor.stride(), strict=True):
        count *= n if step else 1
    return count


def _numpy(tensor: Tensor) -> npt.NDArray[Any] | None:
    """The numbers without a copy where possible; bfloat16 and smaller as float32."""
    if type(tensor) is Tensor and tensor.dtype in _PLAIN and tensor.device.type == "cpu":
        with (
            suppress(RuntimeError, TypeError),  # of functorch's wrappers, and of other layouts
            torch._C._DisableTorchDispatch(),  # noqa: SLF001 - reading is nothing to watch
        ):
            return tensor.detach().numpy()
    plain = tensor.detach().cpu()
    if plain.layout is not torch.strided:
        plain = plain.to_dense()
    if plain.is_floating_point() and plain.dtype not in _NUMPY:
        plain = plain.float()
    try:
        return plain.resolve_conj().resolve_neg().numpy()
    except (TypeError, RuntimeError):  # quantised, or a functorch wrapper
        return None


_NUMPY = frozenset((torch.float16, torch.float32, torch.float64))
_PLAIN = _NUMPY | {torch.int64, torch.int32, torch.bool}
