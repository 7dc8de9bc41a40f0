"""Shapes from torch's own kernels: on the meta device, else on small drawn numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._aten import Aten

META = torch.device("meta")
DRAWN = 1 << 24  # elements of an op's arguments up to which its real kernel is run for the shapes


class Copies:
    """Copies of an op's tensors that a kernel may see, and which tensor each one stands for.

    Args:
        copy: makes one.
        device: what arguments that are devices become; None leaves them.
    """

    def __init__(
        self, copy: Callable[[Tensor], Tensor], device: torch.device | None = None
    ) -> None:
        self._copy, self._device = copy, device
        self._made: dict[int, Tensor] = {}
        self._sources: dict[int, Tensor] = {}

    def __call__(self, value: Any) -> Any:
        """The value with its tensors copied."""
        if isinstance(value, Tensor):
            made = self._made.get(id(value))
            if made is None:
                made = self._made[id(value)] = self._copy(value)
                if made.layout is torch.strided:
                    self._sources[made.untyped_storage()._cdata] = value  # noqa: SLF001 - its identity
            return made
        if type(value) in (list, tuple):
            return type(value)(map(self, value))
        return self._device if self._device and isinstance(value, torch.device) else value

    def source(self, result: Tensor) -> Tensor | None:
        """The tensor that ``result`` is a view of; None if it has memory of its own."""
        if result.layout is not torch.strided:
            return None
        return self._sources.get(result.untyped_storage()._cdata)  # noqa: SLF001

    @property
    def elements(self) -> int:
        """Of all tensors copied so far."""
        return sum(t.numel() for t in self._made.values())


def run(
    aten: Aten,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    numbers: Callable[[Tensor], Tensor],
) -> tuple[Any, Copies]:
    """What an op returns, for its shapes alone.

    Args:
        aten: the op.
        args: its arguments; tensors may be stand-ins.
        kwargs: its keyword arguments.
        numbers: gives a tensor with numbers for one that has none.

    Returns:
        The result, and the copies that it was computed from.

    Raises:
        NotImplementedError: torch has no kernel that tells.
    """
    bare = Copies(_bare, META)
    stripped = {name: bare(value) for name, value in kwargs.items()}
    if "device" in aten.names:
        stripped["device"] = META
    try:
        with torch._C._DisableTorchDispatch():  # noqa: SLF001 - skips the modes
            return aten.func(*bare(args), **stripped), bare
    except NotImplementedError as error:
        if bare.elements > DRAWN:
            raise NotImplementedError(
                f"{aten.name} has no kernel for the meta device, and its arguments have more than "
                f"{DRAWN} elements"
            ) from error
    drawn = Copies(numbers)
    given, named = drawn(args), {name: drawn(value) for name, value in kwargs.items()}
    with torch._C._DisableTorchDispatch():  # noqa: SLF001
        return aten.func(*given, **named), drawn


def _bare(tensor: Tensor) -> Tensor:
    if tensor.layout is not torch.strided:
        return tensor.to(META)
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)
