"""A dispatch mode that runs a model's Python on stand-ins and writes its ops down.

What depends on a parameter or a floating input has no numbers: its shape is inferred and its op
becomes a node. Everything else is really computed and becomes a constant where a node reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.flex_attention import math_attention
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from . import _kernels, _layer_shapes  # noqa: F401 - registers its functions
from ._aten import ATEN, Aten
from ._draws import Draws
from ._ledger import PLAIN, Leaf, Ledger
from ._sampling import SAMPLED
from ._shapes import SHAPES, Spec
from ._standin import Standin
from ._views import VIEWS

COMPUTE = 1 << 22  # elements up to which constants are really computed
CPU = torch.device("cpu")

_PLAIN = frozenset((bool, int, float, complex, str, type(None), torch.dtype, torch.device))
_UNSET = frozenset(("empty", "empty_strided", "new_empty", "new_empty_strided", "empty_like",
                    "empty_permuted"))  # fmt: skip
_NOTHING = frozenset(("slice", "alias", "lift_fresh"))  # where the result has the same shape
# They draw real numbers, others each time: what is known of those is their law, not a sample.
_RANDOM = frozenset(("rand", "randn", "rand_like", "randn_like", "normal", "uniform", "bernoulli",
                     "exponential", "log_normal", "cauchy", "geometric"))  # fmt: skip
_DROPOUTS = frozenset(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"))
# They take only shape and dtype from a tensor.
_LIKE = frozenset(("zeros_like", "ones_like", "full_like", "empty_like", "randint_like", "new_zeros", "new_ones",
                   "new_full", "new_empty", "new_empty_strided"))  # fmt: skip


class Tape(TorchDispatchMode):
    """Runs ops on stand-ins, computes those on constants, writes the former down.

    Args:
        leaves: parameters and buffers.
        watch: called before each real op that writes, with (op, args, kwargs).
        whole: whether ops arrive whole; else autograd stands above this mode.

    Attributes:
        ledger: what was written down.
        draws: numbers for what has none.
        op: name of the op that ran last.
        sampled: op -> how often its result was sampled.
    """

    def __init__(
        self, leaves: Iterable[Leaf], watch: Callable[..., None], *, whole: bool = True
    ) -> None:
        super().__init__()
        self.ledger = Ledger(leaves, self._numbers)
        self.draws = Draws(self.ledger)
        self.op = ""
        self.sampled: dict[str, int] = {}
        self._watch, self._whole = watch, whole

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keeps torch from importing its compiler and from wrapping each dispatch."""
        return False

    def note(self, op: str) -> None:
        """Count an op whose result was sampled."""
        self.sampled[op] = self.sampled.get(op, 0) + 1

    def _numbers(self, tensor: Standin) -> Tensor:
        self.note("numpy")
        return self.draws.of(tensor)

    # dispatch --------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if type(func) is not OpOverload and isinstance(func, HigherOrderOperator):
            return self._expanded(func, args, kwargs or {})
        return self.run(ATEN(func), args, kwargs or {})

    def _expanded(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An op that takes functions, as the ops that it stands for."""
        self.op = func.name()
        if self.op != "flex_attention":
            raise NotImplementedError(f"{self.op} takes functions and has no expansion into ops")
        with self:
            return math_attention(*args, **kwargs)

    def run(self, aten: Aten, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One op, by the kind of thing that it is."""
        self.op = name = aten.name
        if not args or type(args[0]) is not Standin:
            tensors: list[Tensor] = []
            _collect(args, tensors)
            if kwargs:
                _collect(kwargs.values(), tensors)
            is_unknown = self.ledger.is_unknown
            for tensor in tensors:
                if type(tensor) is Standin or is_unknown(tensor):
                    break
            else:
                if not (_is_random(aten, args) or _is_large(aten, args, kwargs, tensors)):
                    return self.compute(aten, args, kwargs)
        sample = SAMPLED.get(name)
        if sample is not None and (not aten.written or name == "index_put"):
            result = sample(self, aten, args, kwargs)
            if result is not NotImplemented:
                return result
        if name in _LIKE:
            return self._like(aten, args, kwargs)
        if aten.written:
            return self._write(aten, args, kwargs)
        if aten.aliases:
            return self._view(aten, args, kwargs)
        return self._make(aten, args, kwargs)

    # constants -------------------------------------------------------------------------------

    def compute(self, aten: Aten, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op on numbers, on the CPU; numbers that are not known are drawn."""
        kwargs = {k: self._known(v) for k, v in kwargs.items() if k != "pin_memory"}
        args = tuple(map(self._known, args))
        if aten.written:
            bound = aten.bind(args, kwargs)
            changed: list[Tensor] = []
            _collect([bound[name] for name in aten.written], changed)
            for tensor in changed:
                self.ledger.about_to_change(tensor)
            self._watch(aten.func, args, kwargs)
        if "running_mean" in aten.names:  # its kernel writes them, its schema does not say so
            args = tuple(a.clone() if isinstance(a, Tensor) else a for a in args)
        with torch._C._DisableTorchDispatch():  # noqa: SLF001 - skips the modes below this one
            result = aten.func(*args, **kwargs)
            if aten.name in _UNSET:
                result.zero_()
        if not aten.aliases and not aten.written:
            made: list[Tensor] = []
            _collect((result,), made)
            for tensor in made:
                self.ledger.first(tensor)
        return result

    def _known(self, value: Any) -> Any:
        """An argument with numbers, on the CPU."""
        kind = type(value)
        if kind in _PLAIN:
            return CPU if kind is torch.device else value
        if isinstance(value, Tensor):
            return self.draws.of(value)
        if kind is list or kind is tuple:
            return kind(map(self._known, value))
        return value

    def _like(self, aten: Aten, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A constant in the shape of a tensor without numbers."""
        bound = aten.bind(args, kwargs)
        x = bound["x"]
        size = bound.get("size", x.shape)
        if math.prod(size) > COMPUTE:
            return self._make(aten, args, kwargs)
        bare = torch.empty((), dtype=x.dtype, device=CPU).expand(x.shape)
        with torch._C._DisableTorchDispatch():  # noqa: SLF001
            made = aten.call({**bound, "x": bare, "device": CPU, "pin_memory": False})
            made = made if made.is_contiguous() else made.contiguous()
            if aten.name in _UNSET:
                made.zero_()
        self.ledger.first(made)
        return made

    # nodes -----------------------------------------------------------------------------------

    def _bound(self, aten: Aten, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Every argument by name, tensors as `Ref`s."""
        bound = aten.bind(args, kwargs)
        for name, given in bound.items():
            if type(given) not in PLAIN:
                bound[name] = self.ledger.refer(given)
        return bound

    def written(
        self, aten: Aten, args: tuple[Any, ...], kwargs: dict[str, Any], specs: Sequence[Spec]
    ) -> list[Standin]:
        """Write a node down that makes tensors of given shapes and dtypes."""
        bound = self._bound(aten, args, kwargs)
        made = [self.ledger.made(*spec) for spec in specs]
        self.ledger.emit(aten.name, bound, tuple(t.index for t in made), aten)
        return made

    def _make(self, aten: Aten, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An op with results of its own."""
        infer = SHAPES.get(aten.name)
        if infer is not None:
            try:
                specs = infer(*args, **kwargs)
            except (NotImplementedError, TypeError):
                specs = None
            if specs is not None:
                if type(specs) is tuple:
                    return self.written(aten, args, kwargs, (specs,))[0]
                return tuple(self.written(aten, args, kwargs, specs))
        return self._by_kernel(aten, args, kwargs)

    def _view(self, aten: Aten, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An op whose results may share memory with its first argument."""
        if aten.name == "detach" and torch._C._current_autograd_node() is not None:  # noqa: SLF001
            return self._saved(args[0])
        look = VIEWS.get(aten.name)
        seen: Any = NotImplemented
        if look is not None:
            try:
                seen = look(*args, **kwargs)
            except (NotImplementedError, TypeError):
                seen = NotImplemented
        if seen is NotImplemented:
            return self._by_kernel(aten, args, kwargs)
        if seen is None:
            return args[0] if self._whole else self._again(args[0])
        if aten.name in _NOTHING and tuple(seen[0]) == args[0].shape:
            return self._again(args[0])
        bound = self._bound(aten, args, kwargs)
        results = [self._seen(args[0], each) for each in (seen if type(seen) is list else [seen])]
        self.ledger.emit(aten.name, bound, tuple(t.index for t in results), aten)
        return results if type(seen) is list else results[0]

    def _seen(self, x: Tensor, seen: Any) -> Standin:
        if len(seen) == 2:
            return self.ledger.made(*seen)
        return self.ledger.view(self.ledger.standin(x), *seen)

    def _saved(self, x: Tensor) -> Standin:
        """What autograd kept for its backward pass, detached and not: gradients find their way back."""
        index = self.ledger.read(x)
        maker = next((n for n in reversed(self.ledger.nodes) if index in n.outputs), None)
        kept = maker is not None and maker.op == "detach"
        return self._again(x, maker.args["x"].index if maker is not None and kept else None)

    def _again(self, x: Tensor, index: int | None = None) -> Standin:
        """Another tensor with the same memory and value."""
        of = self.ledger.standin(x)
        index = self.ledger.read(of) if index is None else index
        return self.ledger.view(of, of.shape, of.stride(), of.storage_offset(), index=index)

    def _write(self, aten: Aten, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An in-place op, or one with ``out=``."""
        raw = aten.bind(args, kwargs)
        if aten.geometric:
            return self._reshape(aten, raw)
        targets: list[Tensor] = []
        _collect([raw[name] for name in aten.written], targets)
        x, source = raw.get("x"), raw.get("src")
        if aten.name == "copy" and x.shape == source.shape and x.dtype is source.dtype:
            self.ledger.write(x, self.ledger.read(source))
            return x
        outs = aten.outs
        bound = {n: self.ledger.refer(given) for n, given in raw.items() if n not in outs}
        shapes = self._shapes(aten, raw, targets) if outs else [t.shape for t in targets]
        made = [self.ledger.add(s, t.dtype) for s, t in zip(shapes, targets, strict=True)]
        self.ledger.emit(aten.name, bound, tuple(made), None if outs else aten)
        for target, index in zip(targets, made, strict=True):
            self.ledger.write(target, index)
        results = [raw[name] for name in aten.written] if aten.returns else [None]
        return results[0] if len(results) == 1 else tuple(results)

    def _shapes(
        self, aten: Aten, raw: dict[str, Any], targets: list[Tensor]
    ) -> list[Sequence[int]]:
        """Shapes of an op's results; ``out`` tensors of other shapes are resized to them."""
        outs = {name: _emptied(raw[name]) for name in aten.outs}
        names = [n for n in aten.names if n not in aten.keywords]
        named = {n: raw[n] for n in aten.names if n in aten.keywords} | outs
        result, _ = _kernels.run(aten, tuple(raw[n] for n in names), named, self.draws.of)
        made: list[Tensor] = []
        _collect((result,), made)
        for target, new in zip(targets, made, strict=True):
            if target.shape != new.shape:
                with torch._C._DisableTorchDispatch():  # noqa: SLF001
                    target.resize_(new.shape)
                self.ledger.moved(target)
        return [t.shape for t in made]

    def _reshape(self, aten: Aten, raw: dict[str, Any]) -> Any:
        """An op that changes in place what a tensor looks at."""
        x = raw["x"]
        if aten.name in ("detach", "requires_grad", "rename"):
            return x
        bound = {name: self.ledger.refer(given) for name, given in raw.items()}
        with torch._C._DisableTorchDispatch():  # noqa: SLF001
            aten.call(raw)
        self.ledger.moved(x)
        x_now = self.ledger.standin(x)
        index = self.ledger.add(x.shape, x.dtype)
        self.ledger.emit(aten.name, bound, (index,), aten)
        self.ledger.settle(x_now, index)
        return x

    def _by_kernel(self, aten: Aten, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Ask torch's own kernel for the shapes."""
        result, copies = _kernels.run(aten, args, kwargs, self.draws.of)
        bound = self._bound(aten, args, kwargs)
        outputs: list[int] = []

        def dressed(value: Any) -> Any:
            if isinstance(value, Tensor):
                source = copies.source(value) if aten.aliases else None
                if source is None:
                    made = self.ledger.made(value.shape, value.dtype)
                elif _same_look(source, value):
                    return source if self._whole else self._again(source)
                else:
                    of = self.ledger.standin(source)
                    offset = of.storage_offset() + value.storage_offset()
                    made = self.ledger.view(of, value.shape, value.stride(), offset, value.dtype)
                outputs.append(made.index)
                return made
            return type(value)(map(dressed, value)) if type(value) in (list, tuple) else value

        wrapped = dressed(result)
        if outputs:
            self.ledger.emit(aten.name, bound, tuple(outputs), aten)
        return wrapped


def _is_random(aten: Aten, args: tuple[Any, ...]) -> bool:
    return aten.name in _RANDOM or (aten.name in _DROPOUTS and args[2] is True)


def _is_large(
    aten: Aten, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
) -> bool:
    """Whether computing an op on constants would cost too much."""
    if tensors:
        dense = (t.numel() for t in tensors if t.layout is torch.strided)
        return not aten.aliases and sum(dense) > COMPUTE
    size = aten.bind(args, kwargs).get("size")
    return isinstance(size, (list, tuple)) and math.prod(size) > COMPUTE


def _same_look(source: Tensor, result: Tensor) -> bool:
    """Whether a kernel for the meta device has returned its argument."""
    same = source.shape == result.shape and source.stride() == result.stride()
    return same and source.dtype is result.dtype and result.storage_offset() == 0


def _emptied(value: Any) -> Any:
    """Tensors for a kernel's ``out=``, to be resized by it."""
    if isinstance(value, Tensor):
        return torch.empty(0, dtype=value.dtype, device=CPU)
    return type(value)(map(_emptied, value))


def _collect(values: Iterable[Any], found: list[Tensor]) -> None:
    """Tensors among ``values`` and in lists of them, added to ``found``."""
    for value in values:
        kind = type(value)
        if kind is Standin:
            found.append(value)
        elif kind in _PLAIN:  # isinstance(value, Tensor) is slow where the answer is no
            continue
        elif kind is list or kind is tuple:
            if value and type(value[0]) is not int:
                _collect(value, found)
        elif isinstance(value, Tensor):
            found.append(value)
