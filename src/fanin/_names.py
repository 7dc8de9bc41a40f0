"""FQNs without what wrappers put in front of them."""

from __future__ import annotations

import re

from torch import nn

ROOTS = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel")

_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\."
)


def is_wrapped(model: nn.Module) -> bool:
    """Whether a model is a data-parallel wrapper: its ``module`` is what one means."""
    return type(model).__name__ in ROOTS


def canonical(name: str, *, wrapped_root: bool = False) -> str:
    """The FQN without what torch.compile, checkpointing, FSDP1 and DDP put in front of it.

    >>> canonical("_orig_mod.h.0._checkpoint_wrapped_module.mlp.weight")
    'h.0.mlp.weight'
    """
    name = _WRAPPERS.sub("", name)
    return name.removeprefix("module.") if wrapped_root else name


def module_name(path: str, *, wrapped_root: bool = False) -> str:
    """The same for the path of a module.

    >>> module_name("_orig_mod"), module_name("_orig_mod.h.0")
    ('', 'h.0')
    """
    return canonical(f"{path}.", wrapped_root=wrapped_root).removesuffix(".") if path else ""
