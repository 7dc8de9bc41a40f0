"""Numbers that a tensor without numbers might have, for Python that must have some.

What can be replayed cheaply is replayed on drawn numbers, so that all that is drawn agrees: how
many elements of a mask are true, and what indexing with that mask gives. What a parameter or a
product is part of is drawn from N(0, 1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._graph import Ref
from ._ledger import Ledger
from ._standin import Standin

SEED = 0xFA71
REPLAYED = 1 << 20  # elements of a value up to which its op is replayed
DEPTH = 100  # ops in a row that are replayed

# Ops whose results are drawn: products, norms and whatever draws numbers itself.
_OPAQUE = frozenset(
    ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "conv1d", "conv2d", "conv3d",
     "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "embedding", "layer_norm",
     "group_norm", "batch_norm", "rms_norm", "lstm", "gru", "rnn_tanh", "rnn_relu", "_grouped_mm",
     "scaled_dot_product_attention", "bilinear", "view_write", "empty_like", "new_empty")
)  # fmt: skip
_TRUE = frozenset(("all", "_is_all_true", "eq", "equal", "isclose", "allclose", "isfinite"))
_SAME = frozenset(("view", "reshape", "flatten", "squeeze", "unsqueeze", "to", "detach", "clone",
                   "select", "contiguous", "alias"))  # fmt: skip


class Draws:
    """Draws numbers for values of a ledger, each once.

    Args:
        ledger: what has been written down so far.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._drawn: dict[int, Tensor] = {}
        self._makers: dict[int, tuple[int, int]] = {}
        self._seen = 0
        self.generator = torch.Generator("cpu").manual_seed(SEED)

    def of(self, tensor: Tensor) -> Tensor:
        """Numbers for a tensor; its own if it has some."""
        if type(tensor) is not Standin and not self._ledger.is_unknown(tensor):
            return tensor if tensor.device.type == "cpu" else tensor.cpu()
        return self.value(self._ledger.read(tensor))

    def know(self, index: int, tensor: Tensor) -> None:
        """Say that the value ``index`` was drawn already."""
        self._drawn[index] = tensor

    def value(self, index: int, depth: int = 0) -> Tensor:
        """Numbers for a value."""
        found = self._drawn.get(index)
        if found is None:
            found = self._drawn[index] = self._find(index, depth)
        return found

    def truth(self, index: int) -> bool:
        """Which way a branch on a value goes: ``all`` and equalities hold, anything else does not."""
        maker = self._maker(index)
        if maker is None:
            return False
        node = self._ledger.nodes[maker[0]]
        if node.op in _SAME:
            return self.truth(node.args["x"].index)
        if node.op in ("logical_not", "bitwise_not"):
            return not self.truth(node.args["x"].index)
        return node.op in _TRUE

    def _maker(self, index: int) -> tuple[int, int] | None:
        nodes = self._ledger.nodes
        for i in range(self._seen, len(nodes)):
            for place, output in enumerate(nodes[i].outputs):
                self._makers[output] = i, place
        self._seen = len(nodes)
        return self._makers.get(index)

    def _find(self, index: int, depth: int) -> Tensor:
        value = self._ledger.values[index]
        dtype = getattr(torch, value.dtype)
        if value.data is not None:
            return torch.as_tensor(value.data.copy(), device="cpu").to(dtype)
        maker = self._maker(index)
        if maker is not None and depth < DEPTH:
            found = self._replayed(*maker, depth)
            if found is not None and found.shape == value.shape:
                return found
        return self._fresh(value.shape, dtype)

    def _replayed(self, node: int, place: int, depth: int) -> Tensor | None:
        done, aten = self._ledger.nodes[node], self._ledger.atens[node]
        inputs = [self._ledger.values[i] for _, i in done.refs]
        large = any(_size(v.shape) > REPLAYED for v in inputs)
        if (
            aten is None
            or large
            or done.op in _OPAQUE
            or any(v.kind == "parameter" for v in inputs)
        ):
            return None

        def numbers(name: str, given: Any) -> Any:
            if type(given) is Ref:
                return self.value(given.index, depth + 1)
            if type(given) is list:
                return [numbers(name, item) for item in given]
            return getattr(torch, given) if "dtype" in name and given else given

        bound = {name: numbers(name, given) for name, given in done.args.items()}
        try:
            with torch._C._DisableTorchDispatch():  # noqa: SLF001 - skips the modes
                result = aten.call(bound)
        except (RuntimeError, TypeError, NotImplementedError, KeyError):
            return None
        outputs = list(result) if isinstance(result, (list, tuple)) else [result]
        return outputs[place] if place < len(outputs) else None

    def _fresh(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        made = torch.empty(shape, dtype=dtype, device="cpu")
        if dtype.is_floating_point or dtype.is_complex:
            return made.normal_(generator=self.generator)
        return made.random_(0, 2, generator=self.generator)


def _size(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
