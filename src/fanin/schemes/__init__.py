"""Schemes: one small file each, an ordered tuple of rules with its source."""

from __future__ import annotations

from .._errors import InvalidValueError, one_of
from .._recipes import Scheme
from . import auto, cs336, edge_of_chaos, gpt2, kaiming, orthogonal, torch, xavier

_MODULES = (torch, kaiming, xavier, orthogonal, edge_of_chaos, cs336, gpt2)
_OBJECTIVES = (auto.FORWARD, auto.BACKWARD, auto.EDGE_OF_CHAOS, auto.ISOMETRY)

SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme for scheme in (auto.SCHEME, *(m.SCHEME for m in _MODULES), *_OBJECTIVES)
}


def scheme_named(scheme: str | Scheme) -> Scheme:
    """The scheme itself, or the registered one of that name.

    Raises:
        InvalidValueError: unknown name; the message lists the known ones and the closest.
    """
    return scheme if isinstance(scheme, Scheme) else SCHEMES[one_of("scheme", scheme, SCHEMES)]


def register_scheme(scheme: Scheme) -> Scheme:
    """Make your own scheme known by its name.

    Raises:
        InvalidValueError: the name is taken.

    Example:
        >>> import fanin
        >>> from fanin.schemes import Scheme, SCHEMES, register_scheme
        >>> mine = register_scheme(Scheme("mine", "kaiming without embeddings", "-", SCHEMES["kaiming"].rules))
        >>> SCHEMES.pop("mine") is mine
        True
    """
    if scheme.name in SCHEMES:
        raise InvalidValueError(
            f"a scheme named {scheme.name!r} exists already; give yours another name."
        )
    SCHEMES[scheme.name] = scheme
    return scheme


__all__ = ["SCHEMES", "Scheme", "register_scheme", "scheme_named"]
