"""What products are called as einsums: a label an axis for each operand and for the result."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

Label = tuple[str, ...]
Labels = tuple[Label, Label, Label]


@lru_cache(maxsize=256)
def matmul_labels(rank_a: int, rank_b: int) -> Labels:
    """Of torch.matmul: vectors lose their axis, batch axes count from the right.

    >>> matmul_labels(3, 1)
    (('b0', 'i', 'c'), ('c',), ('b0', 'i'))
    """
    batch_a, batch_b = (
        tuple(f"b{i}" for i in range(rank - 3, -1, -1)) for rank in (rank_a, rank_b)
    )
    batch = max(batch_a, batch_b, key=len)
    of_a = (*batch_a, "i", "c") if rank_a > 1 else ("c",)
    of_b = (*batch_b, "c", "j") if rank_b > 1 else ("c",)
    rows, columns = ("i",) * (rank_a > 1), ("j",) * (rank_b > 1)
    return of_a, of_b, (*batch, *rows, *columns)


@lru_cache(maxsize=256)
def inner_labels(rank_a: int, rank_b: int) -> Labels:
    """Of torch.inner: the last axes meet; a scalar multiplies."""
    of_a, of_b = tuple(f"a{i}" for i in range(rank_a)), tuple(f"b{i}" for i in range(rank_b))
    if not (of_a and of_b):
        return of_a, of_b, (*of_a, *of_b)
    return (*of_a[:-1], "c"), (*of_b[:-1], "c"), (*of_a[:-1], *of_b[:-1])


def outer_labels() -> Labels:
    """Of torch.outer."""
    return ("i",), ("j",), ("i", "j")


@lru_cache(maxsize=256)
def kron_labels(rank_a: int, rank_b: int) -> Labels:
    """Of torch.kron: each axis of the result is an axis of a over one of b; the last ones are paired."""
    rank = max(rank_a, rank_b)
    of_a = tuple(f"a{i}" for i in range(rank - rank_a, rank))
    of_b = tuple(f"b{i}" for i in range(rank - rank_b, rank))
    return of_a, of_b, tuple(x for i in range(rank) for x in (f"a{i}", f"b{i}") if x in of_a + of_b)


@lru_cache(maxsize=256)
def tensordot_labels(
    rank_a: int, rank_b: int, dims_a: tuple[int, ...], dims_b: tuple[int, ...]
) -> Labels:
    """Of torch.tensordot: ``dims_a`` of one meet ``dims_b`` of the other, in order."""
    of_a = [f"a{i}" for i in range(rank_a)]
    of_b = [f"b{i}" for i in range(rank_b)]
    for i, (p, q) in enumerate(zip(dims_a, dims_b, strict=True)):
        of_a[p], of_b[q] = f"c{i}", f"c{i}"
    out = [x for x in (*of_a, *of_b) if not x.startswith("c")]
    return tuple(of_a), tuple(of_b), tuple(out)


@lru_cache(maxsize=1024)
def parsed(equation: str, ranks: tuple[int, ...]) -> tuple[tuple[Label, ...], Label]:
    """The operands' labels and the result's, of an einsum equation; an ellipsis written out.

    >>> parsed("...ij,jk", (3, 2))
    ((('...0', 'i', 'j'), ('j', 'k')), ('...0', 'i', 'k'))
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    hidden = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    most = max([0, *(n for n, term in zip(hidden, terms, strict=True) if "..." in term)])
    of = tuple(_written_out(term, most, n) for term, n in zip(terms, hidden, strict=True))
    if arrow:
        return of, _written_out(right, most, most)
    plain = [x for term in terms for x in term if x != "."]
    once = sorted(x for x in set(plain) if plain.count(x) == 1)
    return of, (*(f"...{i}" for i in range(most)), *once)


def _written_out(term: str, most: int, own: int) -> Label:
    """The ellipsis' axes count from the right, as broadcasting has it."""
    before, dots, after = term.partition("...")
    middle = [f"...{i}" for i in range(most - own, most)] if dots else []
    return (*before, *middle, *after)


def summed_early(of: Sequence[Label], out: Label, done: int) -> Label:
    """Labels of the product of the operands up to ``done`` that a later one or the result needs."""
    later = {x for term in of[done + 1 :] for x in term} | set(out)
    return tuple(x for x in dict.fromkeys(x for term in of[: done + 1] for x in term) if x in later)
