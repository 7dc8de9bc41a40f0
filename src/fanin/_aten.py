"""What an op's schema says: the names of its arguments, their defaults, what it writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

# One op under several names that take the same arguments.
_ALIASES = {
    "absolute": "abs", "clip": "clamp", "concat": "cat", "concatenate": "cat", "divide": "div",
    "multiply": "mul", "negative": "neg", "subtract": "sub", "true_divide": "div",
    "greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "not_equal": "ne",
    "special_expit": "sigmoid", "special_erf": "erf", "special_softmax": "softmax",
    "special_log_softmax": "log_softmax", "special_expm1": "expm1", "special_exp2": "exp2",
    "special_log1p": "log1p", "special_logsumexp": "logsumexp", "special_sinc": "sinc",
    "linalg_matmul": "matmul", "_unsafe_view": "view", "_reshape_alias": "view",
    "_reshape_copy": "reshape", "unsafe_chunk": "chunk", "unsafe_split": "split",
    "unsafe_split_with_sizes": "split_with_sizes", "_softmax": "softmax",
    "_log_softmax": "log_softmax", "_safe_softmax": "softmax", "_local_scalar_dense": "item",
    "_to_copy": "to", "_unsafe_index": "index", "_unsafe_index_put": "index_put",
    "_index_put_impl": "index_put", "_copy_from": "copy",
    "__and__": "bitwise_and", "__iand__": "bitwise_and", "__or__": "bitwise_or",
    "__ior__": "bitwise_or", "__xor__": "bitwise_xor", "__ixor__": "bitwise_xor",
    "__lshift__": "bitwise_left_shift", "__ilshift__": "bitwise_left_shift",
    "__rshift__": "bitwise_right_shift", "__irshift__": "bitwise_right_shift",
}  # fmt: skip
# They change what a tensor looks at, not the numbers there.
_GEOMETRIC = frozenset(
    ("t_", "transpose_", "swapaxes_", "swapdims_", "squeeze_", "unsqueeze_", "as_strided_",
     "resize_", "resize_as_", "set_", "detach_", "requires_grad_", "rename_")
)  # fmt: skip


@dataclass(frozen=True, eq=False, slots=True)
class Aten:
    """An overload of an op.

    Args:
        func: what to call.
        name: without namespace ``aten``, overload and trailing underscore.
        names: of its arguments in order; ``self`` and ``input`` are ``x``.
        defaults: of the arguments that have one, by name.
        keywords: names that may not be given by position, as the schema calls them.
        written: names of the arguments that it writes.
        outs: those of them that it does not read.
        geometric: it changes the shape of a tensor in place.
        returns: whether it has results.
        aliases: its results may share memory with its arguments.
    """

    func: Any
    name: str
    names: tuple[str, ...]
    defaults: dict[str, Any]
    keywords: frozenset[str]
    written: tuple[str, ...]
    outs: frozenset[str]
    geometric: bool
    returns: bool
    aliases: bool

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Every argument by name, defaults included."""
        bound = self.defaults | dict(zip(self.names, args, strict=False))
        if kwargs:
            bound.update(kwargs)
            for name in ("self", "input"):
                if name in bound:
                    bound["x"] = bound.pop(name)
        return bound

    def call(self, bound: dict[str, Any]) -> Any:
        """The real op on bound arguments."""
        args = [bound[n] for n in self.names if n not in self.keywords]
        return self.func(*args, **{n: bound[n] for n in self.names if n in self.keywords})


_ALIKE = ("fanin::dropout",)  # of `fanin.nn`: to what is asked here, ATen's op


def _name(name: str) -> str:
    """The op's name without what makes it in-place.

    >>> _name("relu_"), _name("__iand__"), _name("concat")
    ('relu', 'bitwise_and', 'cat')
    """
    plain = name if name.endswith("__") else name.removesuffix("_")
    return _ALIASES.get(plain, plain)


def _described(func: Any) -> Aten:
    schema = func._schema  # noqa: SLF001 - an operator's schema has no public door
    space, name = schema.name.split("::")
    arguments = schema.arguments
    if name in ("max", "min") and func._overloadname == "other":  # noqa: SLF001
        name += "imum"
    called = {"self": "x", "input": "x"}
    written = tuple(
        called.get(a.name, a.name) for a in arguments if a.alias_info and a.alias_info.is_write
    )
    return Aten(
        func,
        _name(name) if space == "aten" or schema.name in _ALIKE else f"{space}.{name}",
        tuple(called.get(a.name, a.name) for a in arguments),
        {
            called.get(a.name, a.name): a.default_value if a.has_default_value() else None
            for a in arguments
        },
        frozenset(a.name for a in arguments if a.kwarg_only),
        written,
        frozenset(a.name for a in arguments if a.is_out),
        name in _GEOMETRIC,
        bool(schema.returns),
        not written and any(r.alias_info for r in schema.returns),
    )


class _Table(dict[Any, Aten]):
    def __missing__(self, func: Any) -> Aten:
        found = self[func] = _described(func)
        return found


ATEN: Callable[[Any], Aten] = _Table().__getitem__


@cache
def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
