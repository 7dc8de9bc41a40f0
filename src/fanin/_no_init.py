"""Build a model without drawing what a plan is about to write."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from ._errors import ModelError, listed
from ._shards import is_dtensor

DRAWS = {
    "normal_", "uniform_", "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "random_",
    "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_",
}  # fmt: skip
# What a draw is transformed by in place: of no use once the draw is skipped.
TRANSFORMS = {"erfinv_", "mul_", "add_", "sub_", "div_", "clamp_"}
# Functions of torch.nn.init that look at what they drew, or draw elsewhere first.
WHOLE = ("_no_grad_trunc_normal_", "orthogonal_", "sparse_")
_RUNNING: list[Skipped] = []  # a record for each `no_init` around the running code


@dataclass
class Skipped:
    """What was not drawn.

    Args:
        tensors: how many tensors.
        elements: how many numbers.
    """

    tensors: int = 0
    elements: int = 0
    _alive: dict[int, weakref.ref[Tensor]] = field(default_factory=dict, repr=False)
    _memory: dict[int, weakref.ref[Tensor]] = field(default_factory=dict, repr=False)
    _modules: weakref.WeakSet[nn.Module] = field(default_factory=weakref.WeakSet, repr=False)

    def sees(self, module: nn.Module, tensor: Tensor | nn.Module | None) -> None:
        """A module got a parameter or a child."""
        self._modules.add(module)
        if isinstance(tensor, nn.Module):
            self._modules.add(tensor)
        elif isinstance(tensor, Tensor) and (address := _address(tensor)):
            self._memory[address] = weakref.ref(tensor)

    def skips(self, tensor: Any) -> bool:
        """Whether a draw into ``tensor`` is skipped: a parameter's memory, or a part of it."""
        if not isinstance(tensor, Tensor) or tensor.is_meta or is_lazy(tensor):
            return False
        parameter = isinstance(tensor, nn.Parameter) or self._is_part(tensor)
        return (
            parameter
            and (tensor.is_floating_point() or tensor.is_complex())
            and bool(tensor.numel())
        )

    def _is_part(self, tensor: Tensor) -> bool:
        """Whether it lies in the memory of a parameter that is still there."""
        address = _address(tensor)
        known = self._memory.get(address)
        parameter = None if known is None else known()
        return parameter is not None and _address(parameter) == address

    def marks(self, tensor: Tensor) -> None:
        """Count it, and put NaN where `_unwritten` looks."""
        self.tensors += 1
        self.elements += tensor.numel()
        self._alive[id(tensor)] = weakref.ref(tensor)
        with torch.no_grad():
            for place in _places(tensor):
                place.copy_(torch.tensor(math.nan))

    def pending(self, tensor: Any) -> bool:
        """Whether this tensor's draw was skipped and nothing has been written since."""
        if not isinstance(tensor, Tensor):
            return False
        known = self._alive.get(id(tensor))
        return known is not None and known() is tensor and _unwritten(tensor)

    def left(self) -> list[str]:
        """Names and shapes of what still waits for its values."""
        children = {c for m in self._modules for c in m.children()}
        named: dict[int, str] = {}
        for root in self._modules:
            if root not in children:
                for name, tensor in root.named_parameters():
                    named.setdefault(id(tensor), name)
        found = [
            f"{name}, shape {list(tensor.shape)}"
            for root in self._modules
            if root not in children
            for name, tensor in root.named_parameters()
            if _unwritten(tensor)
        ]
        alone = [
            t for ref in self._alive.values() if (t := ref()) is not None and id(t) not in named
        ]
        found += [
            f"a parameter of no module, shape {list(t.shape)}"
            for t in alone
            if isinstance(t, nn.Parameter) and _unwritten(t)
        ]
        return sorted(dict.fromkeys(found))


def skips_filling(module: nn.Module) -> bool:
    """Whether a module that would fill itself is being built inside `no_init`; its parameters then wait."""
    if not _RUNNING:
        return False
    for parameter in module.parameters():
        if _RUNNING[-1].skips(parameter):
            _RUNNING[-1].marks(parameter)
    return True


@contextmanager
def no_init() -> Iterator[Skipped]:
    """Inside, constructors do not draw random numbers into parameters; the block must then fill them.

    A constructor draws every weight, for a plan to overwrite: half of the time that it takes to
    build a large model. Functions of `torch.nn.init` and tensors' own `normal_`, `uniform_` and the
    like return at once where they are given a parameter; constants are written as ever. The memory
    is not touched, but for three numbers of each tensor that become NaN: they tell whether anything
    was written since.

    Yields:
        A record of what was skipped: ``tensors`` and ``elements``.

    Raises:
        ModelError: at the end of the block, parameters that still wait for their values, by name.

    Example:
        >>> import fanin
        >>> from torch import nn
        >>> with fanin.no_init() as skipped:
        ...     model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
        ...     plan = fanin.initialize_(model)
        >>> skipped.elements
        7510
    """
    record = Skipped()

    def sees(module: nn.Module, _: str, tensor: Any) -> None:
        record.sees(module, tensor)

    with ExitStack() as stack:
        for register in (
            hooks.register_module_parameter_registration_hook,
            hooks.register_module_module_registration_hook,
        ):
            stack.callback(register(sees).remove)
        for name in WHOLE:
            original = getattr(torch.nn.init, name)
            stack.enter_context(patch.object(torch.nn.init, name, _unless(record, original)))
        stack.enter_context(_Mode(record))
        _RUNNING.append(record)
        stack.callback(_RUNNING.pop)
        yield record
    left = record.left()
    if left:
        raise ModelError(
            f"no_init() skipped their draws, and nothing was written to them since:{listed(left)}\n"
            "Fill the model inside the block: fanin.initialize_(model), plan.fill_(model), or load a state dict."
        )


class _Mode(TorchFunctionMode):
    """Returns the tensor at once where a parameter was to be drawn."""

    def __init__(self, record: Skipped) -> None:
        super().__init__()
        self.record = record

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in DRAWS or name in TRANSFORMS:
            target = args[0] if args else kwargs.get("tensor")
            if name in DRAWS and self.record.skips(target):
                self.record.marks(target)
                return target
            if name in TRANSFORMS and self.record.pending(target):
                return target
        return func(*args, **kwargs)


def _unless(record: Skipped, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, which does nothing to what is skipped."""

    def maybe(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if record.skips(tensor):
            record.marks(tensor)
            return tensor
        return function(tensor, *args, **kwargs)

    return maybe


def _address(tensor: Tensor) -> int:
    """Where its memory begins; 0 where it has none of its own."""
    local = tensor.to_local() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]
    try:
        return 0 if local.is_meta else local.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _places(tensor: Tensor) -> list[Tensor]:
    """Views of the first, the middle and the last element that live here."""
    local = (tensor.to_local() if is_dtensor(tensor) else tensor).detach()  # type: ignore[attr-defined]
    count = local.numel()
    found = []
    for flat in {0, count // 2, count - 1} if count else ():
        place, index = local, flat
        for length in local.shape[::-1]:
            index, at = divmod(index, length)
            place = place.select(place.dim() - 1, at)
        found.append(place)
    return found


def _unwritten(tensor: Tensor) -> bool:
    """Whether one of the marked elements is NaN still."""
    if tensor.is_meta or is_lazy(tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    return any(bool(place.isnan()) for place in _places(tensor))
