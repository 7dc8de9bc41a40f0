"""What all blocks share: they start through a plan of fanin, once, and understand others' names.

A block is a `Block`: its parameters are written when the outermost block has been built, by one
plan over all of it, so that nothing is drawn twice and no two layers start alike. Its `renamed`
says what other libraries call its parameters.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._api import plan
from .._errors import InvalidValueError
from .._no_init import skips_filling

Names = Mapping[str, Tensor]
_M = TypeVar("_M")


class _Depth(threading.local):
    """How many constructors of blocks are running in this thread."""

    value = 0


_BUILDING = _Depth()


class _Once(type):
    """Calls `reset_parameters` when the outermost constructor of a block has returned."""

    def __call__(cls: type[_M], *args: Any, **kwargs: Any) -> _M:
        _BUILDING.value += 1
        try:
            block = super().__call__(*args, **kwargs)  # type: ignore[misc]
        finally:
            _BUILDING.value -= 1
        if not _BUILDING.value and not skips_filling(block):
            block.reset_parameters()
        return block


class Block(nn.Module, metaclass=_Once):
    """Base of the modules of `fanin.nn`.

    Attributes:
        init: scheme by which `reset_parameters` plans.
    """

    init = "cs336"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_load_state_dict_pre_hook(_understand)

    def reset_parameters(self, scheme: str | None = None, seed: int | None = None) -> None:
        """Write every parameter anew, by one plan over the whole block.

        A value depends on the seed and on the parameter's name within this block alone. On the
        meta device nothing happens: there are no values to write.

        Args:
            scheme: as in `fanin.plan`; the block's own `init` if None.
            seed: 0 <= seed < 2^64; one from torch's default generator if None, so that
                `torch.manual_seed` governs.

        Raises:
            FaninError: an unknown scheme, or parameters that none of its rules covers.

        Example:
            >>> from fanin.nn import Linear
            >>> layer = Linear(64, 256)
            >>> layer.reset_parameters("kaiming", seed=1)
            >>> round(layer.weight.std().item(), 2)
            0.12
        """
        if _BUILDING.value or not any(True for _ in self.parameters()):
            return
        if any(p.is_meta for p in self.parameters()):
            return
        if seed is None:
            seed = int(torch.randint(2**63 - 1, (), device="cpu"))
        plan(self, scheme=scheme or self.init).fill_(self, seed=seed)

    def renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """``weights`` under this block's own names, tensors cut or transposed as needed.

        Args:
            weights: tensors by name within this block, as this or another library writes them.
        """
        return weights


def _understand(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any, **__: Any
) -> None:
    """Hook before loading: others' names become ours, for this block's own entries."""
    assert isinstance(module, Block)
    _rename_in(module, state_dict, prefix)


def _rename_in(block: Block, weights: dict[str, Any], prefix: str) -> None:
    own = {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
    new = block.renamed(unwrapped(own))
    if new.keys() != own.keys() or any(new[k] is not own[k] for k in new):
        for key in own:
            del weights[prefix + key]
        weights.update({prefix + k: v for k, v in new.items()})


def unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without what torch.compile puts in front of them."""
    if not any("_orig_mod." in name for name in weights):
        return weights
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in weights.items()}


def under_own_names(module: nn.Module, weights: Names) -> dict[str, Tensor]:
    """``weights`` with every block in ``module`` having translated its own part, outermost first.

    Example:
        >>> import torch
        >>> from fanin.nn import SwiGLU
        >>> sorted(under_own_names(SwiGLU(4, 8), {"gate_proj.weight": torch.ones(8, 4)}))
        ['w1.weight']
    """
    found = dict(weights)
    for name, block in module.named_modules():
        if isinstance(block, Block):
            _rename_in(block, found, f"{name}." if name else "")
    return found


def moved(weights: dict[str, Tensor], table: Mapping[str, str]) -> dict[str, Tensor]:
    """Names that begin with a key of ``table`` begin with its value instead; the longest key wins.

    >>> sorted(moved({"mlp.c_fc.weight": None, "ln.weight": None}, {"mlp.": "ffn."}))
    ['ffn.c_fc.weight', 'ln.weight']
    """
    keys = sorted(table, key=len, reverse=True)

    def new(name: str) -> str:
        key = next((k for k in keys if name.startswith(k)), None)
        return name if key is None else table[key] + name[len(key) :]

    return {new(name): tensor for name, tensor in weights.items()}


@contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """In eval mode, each part back as it was afterwards."""
    before = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in before:
            m.training = training


def positive(**sizes: int | None) -> None:
    """Each of ``sizes`` that is not None is a positive integer.

    Raises:
        InvalidValueError: naming the first that is not.
    """
    for name, value in sizes.items():
        if value is not None and (
            not isinstance(value, int) or isinstance(value, bool) or value < 1
        ):
            raise InvalidValueError(f"{name} must be a positive integer, got {value!r}.")


def divides(small: str, a: int, large: str, b: int) -> None:
    """``a`` divides ``b``.

    Raises:
        InvalidValueError: with both names and values.
    """
    if b % a:
        raise InvalidValueError(f"{small} must divide {large}, got {small}={a} and {large}={b}.")


def head_size(d_model: int, num_heads: int, head_dim: int | None = None) -> int:
    """``head_dim`` if it is given, else the heads' equal share of ``d_model``.

    Raises:
        InvalidValueError: a size that is no positive integer, or no equal share.

    >>> head_size(64, 4)
    16
    """
    positive(d_model=d_model, num_heads=num_heads, head_dim=head_dim)
    if head_dim is None:
        divides("num_heads", num_heads, "d_model", d_model)
    return head_dim or d_model // num_heads


def names_of(weights: Iterable[str], shown: int = 6) -> str:
    """A few names for a message, with a count of the rest."""
    listed = sorted(weights)
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more
