"""``GLOB=Normal(0.02)`` on the command line -> an override, without running any code."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence

from ._errors import FaninError, TargetError, one_of
from .distributions import DISTRIBUTIONS, Distribution
from .initializers import INITIALIZERS, Initializer

EXPECTED = (
    "--override must be GLOB=Name(numbers), such as 'token=Normal(0.02)' or '*.bias=Constant(0)'"
)


def parse_overrides(texts: Sequence[str]) -> dict[str, Distribution | Initializer]:
    """Overrides by glob, in order.

    Args:
        texts: each a glob over FQNs, ``=``, and a distribution or initializer as Python would
            call it, with literal arguments.

    Raises:
        TargetError: not of that form, an unknown name, or arguments that it does not take.

    >>> parse_overrides(["token=Normal(0.02)"])
    {'token': Normal(std=0.02, mean=0.0)}
    """
    return dict(map(_parse, texts))


def _parse(text: str) -> tuple[str, Distribution | Initializer]:
    glob, equals, call = text.partition("=")
    try:
        tree = ast.parse(call.strip(), mode="eval").body
    except SyntaxError:
        tree = None
    if not (glob and equals and isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name)):
        raise TargetError(f"{EXPECTED}; got {text!r}.")
    kinds: dict[str, Callable[..., Distribution | Initializer]] = {**DISTRIBUTIONS, **INITIALIZERS}
    try:
        kind = kinds[one_of("the distribution or initializer", tree.func.id, kinds)]
        arguments = [ast.literal_eval(a) for a in tree.args]
        named = {k.arg: ast.literal_eval(k.value) for k in tree.keywords if k.arg}
        return glob, kind(*arguments, **named)
    except (FaninError, TypeError, ValueError) as error:
        raise TargetError(f"--override {text!r}: {error}") from error
