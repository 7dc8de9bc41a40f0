"""What a model is run in while it is captured, and how everything is put back afterwards."""

from __future__ import annotations

import gc
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ._names import is_wrapped
from ._preserve import preserved
from ._standin import strided

SEED = 0xFA71

_ABOVE = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)  # noqa: SLF001 - has no public door


@contextmanager
def surroundings(model: nn.Module, *, whole: bool) -> Iterator[Callable[..., None]]:
    """Everything put back afterwards; no fused fast paths, no compiler, fixed seeds."""
    fused, collects = torch.backends.mha.get_fastpath_enabled(), gc.isenabled()
    with ExitStack() as stack:
        if collects:
            gc.disable()
            stack.callback(gc.enable)
        watch = stack.enter_context(preserved(model, silent_writes=False))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.set_grad_enabled(not whole))
        if whole:
            stack.enter_context(torch._C._AutoDispatchBelowAutograd())  # noqa: SLF001
            stack.enter_context(torch._C._ExcludeDispatchKeyGuard(_ABOVE))  # noqa: SLF001
        _run_eagerly(stack)
        stack.enter_context(warnings.catch_warnings())  # the model's are for its real runs
        warnings.simplefilter("ignore")
        torch.backends.mha.set_fastpath_enabled(value=False)
        torch.default_generator.manual_seed(SEED)
        random.seed(SEED)
        np.random.seed(SEED)  # noqa: NPY002 - models draw from it
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        yield watch


def _run_eagerly(stack: ExitStack) -> None:
    """Let compiled functions run their Python, without importing the compiler for its own sake."""
    if "torch._dynamo" in sys.modules:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        return
    compile_ = torch.compile

    def compiling(*args: Any, **kwargs: Any) -> Any:
        if torch.compile is compiling:
            torch.compile = compile_
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        return compile_(*args, **kwargs)

    stack.callback(setattr, torch, "compile", compile_)
    torch.compile = compiling  # type: ignore[assignment]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of torch.compile's and data parallelism's wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and is_wrapped(model):
            inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


# Statistics that a norm starts with.
_STATISTICS = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}


def moved(model: nn.Module) -> dict[int, tuple[Tensor, Tensor]]:
    """Put stand-ins and copies on the CPU in the place of what is elsewhere.

    Returns:
        id of a tensor -> itself and what stands for it now.
    """
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):  # its tensors belong to C++
            continue
        for held, copy in ((module._parameters, _parameter), (module._buffers, _buffer)):  # noqa: SLF001
            for name, tensor in held.items():
                if tensor is not None and tensor.device.type != "cpu":
                    if id(tensor) not in made:
                        made[id(tensor)] = tensor, copy(module, name, tensor)
                    held[name] = made[id(tensor)][1]  # type: ignore[assignment]
    return made


def _parameter(_: nn.Module, __: str, tensor: Tensor) -> Tensor:
    made = strided(tensor.shape, tensor.stride(), 0, tensor.dtype, None)
    made._is_param = True  # type: ignore[attr-defined] # noqa: SLF001 - what isinstance looks at
    return made.requires_grad_(tensor.requires_grad)


def _buffer(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_meta:
        return tensor.cpu()
    if isinstance(module, nn.modules.batchnorm._NormBase) and name in _STATISTICS:  # noqa: SLF001
        return torch.full(tensor.shape, _STATISTICS[name], dtype=tensor.dtype, device="cpu")
    return strided(tensor.shape, tensor.stride(), 0, tensor.dtype, None)
