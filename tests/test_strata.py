"""Atoms and segments: the tables of index pairs against pairs that are listed one by one."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import strategies  # noqa: F401 - its profile
from fanin._moments import rearrangement, strata

segments = st.integers(1, 4)
atoms = st.lists(segments, min_size=1, max_size=3).map(tuple)
axes = st.lists(atoms.filter(lambda a: sum(a) > 1), max_size=2).map(tuple)
small = st.sampled_from((2, 3, 4, 6))


def listed(atom):
    """The class of every ordered pair of indices."""
    segment = np.repeat(np.arange(len(atom)), atom)
    n = segment.size
    return strata.classes(segment[:, None], segment[None], np.eye(n, dtype=bool), len(atom))


def listed_dim(dim):
    """The flat class of every ordered pair of indices of an axis, atoms' classes row-major."""
    out = np.zeros((1, 1), int)
    for atom in dim:
        table = listed(atom)
        n = len(strata.pairs(atom))
        out = (out[:, None, :, None] * n + table[None, :, None, :]).reshape(
            len(out) * len(table), len(out) * len(table)
        )
    return out


@settings(max_examples=30)
@given(atoms)
def test_pairs_count_the_listed_pairs(atom):
    assert (
        strata.pairs(atom).tolist()
        == np.bincount(listed(atom).ravel(), minlength=len(strata.pairs(atom))).tolist()
    )


@settings(max_examples=30)
@given(atoms)
def test_sides_are_segments_of_the_listed_pairs(atom):
    segment = np.repeat(np.arange(len(atom)), atom)
    table = listed(atom)
    assert (strata.left(atom)[table] == segment[:, None]).all()
    assert (strata.right(atom)[table] == segment[None]).all()


@settings(max_examples=30)
@given(atoms)
def test_averages_over_single_indices(atom):
    assert strata.shares(atom).sum() == pytest.approx(1.0)
    assert strata.same(atom).sum() == pytest.approx(1.0)


@settings(max_examples=30)
@given(atoms, st.data())
def test_union_has_all_boundaries(a, data):
    n = sum(a)
    cuts = data.draw(st.sets(st.integers(1, n), max_size=3)) | {n}
    b = tuple(np.diff([0, *sorted(cuts)]).tolist())
    joint = strata.union(a, b)
    assert sum(joint) == n
    assert set(np.cumsum(joint)) == set(np.cumsum(a)) | set(np.cumsum(b))


@settings(max_examples=30)
@given(axes, st.lists(small, max_size=3))
def test_refinement_refines_both(dim, lengths):
    other = tuple((n,) for n in lengths)
    if strata.size(dim) != strata.size(other):
        return
    finer = strata.refinement(dim, other)
    if finer is None:
        return
    assert strata.size(finer) == strata.size(dim)
    for coarse in (dim, other):
        # Pairs that are one class on the finer atoms are one class on the coarser ones.
        before, after = listed_dim(coarse), listed_dim(finer)
        for c in np.unique(after):
            assert len(np.unique(before[after == c])) == 1


@settings(max_examples=30)
@given(axes)
def test_spread_reads_the_coarser_class(dim):
    total = strata.size(dim)
    for inner in (2, 3):
        finer = (
            strata.refinement(dim, (*strata.whole(total // inner), *strata.whole(inner)))
            if total % inner == 0
            else None
        )
        if finer is None:
            continue
        of_pairs, of_segments = strata.spread(dim, finer)
        flat = np.zeros((), int)
        for index, atom in zip(of_pairs, dim, strict=True):
            flat = np.add.outer(flat * len(strata.pairs(atom)), index)
        counts = [len(strata.pairs(a)) for a in finer]
        # Orders of axes agree: those of the finer atoms, one after the other.
        table = flat.reshape(counts)
        new = listed_dim(finer)
        assert (table.reshape(-1)[new] == listed_dim(dim)).all()
        assert sum(i.ndim for i in of_segments) == len(finer)


@settings(max_examples=30)
@given(atoms, small)
def test_merged_averages_over_pairs(a, n):
    atom, matrix, means = strata.merged(a, (n,))
    assert atom == tuple(p * n for p in a)
    assert matrix.sum(axis=1) == pytest.approx(1.0)
    assert means.sum(axis=1) == pytest.approx(1.0)
    before, after = listed_dim((a, (n,))), listed(atom)
    weights = np.zeros(matrix.shape)
    np.add.at(weights, (after.ravel(), before.ravel()), 1.0)
    there = weights.sum(axis=1) > 0
    np.testing.assert_allclose(
        matrix[there],
        (weights / np.maximum(weights.sum(axis=1, keepdims=True), 1))[there],
        atol=1e-12,
    )


@settings(max_examples=30)
@given(atoms, st.data())
def test_coarsening_averages_over_pairs(atom, data):
    ends = data.draw(st.sets(st.integers(1, len(atom)), max_size=2)) | {len(atom)}
    groups = tuple(np.diff([0, *sorted(ends)]).tolist())
    coarse, matrix, means = strata.coarsening(atom, groups)
    assert sum(coarse) == sum(atom)
    weights = np.zeros(matrix.shape)
    np.add.at(weights, (listed(coarse).ravel(), listed(atom).ravel()), 1.0)
    there = weights.sum(axis=1) > 0
    np.testing.assert_allclose(
        matrix[there],
        (weights / np.maximum(weights.sum(axis=1, keepdims=True), 1))[there],
        atol=1e-12,
    )
    np.testing.assert_allclose(means @ np.ones(len(atom)), 1.0)


@settings(max_examples=30)
@given(axes, st.data())
def test_cutting_keeps_the_positions_asked_for(dim, data):
    n = strata.size(dim)
    step = data.draw(st.integers(1, 3))
    start = data.draw(st.integers(0, n - 1))
    stop = data.draw(st.integers(start + 1, n))
    fit, picks = rearrangement.cutting(dim, start, stop, step)
    assert strata.size(fit) == n
    kept = [sum(a if p is None else p.atom) for a, p in zip(fit, picks, strict=True)]
    assert math.prod(kept) == len(range(start, stop, step))


@settings(max_examples=30)
@given(axes, st.lists(small, max_size=3))
def test_reshaping_deals_out_all_atoms(dim, lengths):
    if math.prod(lengths) != strata.size(dim):
        return
    blocks, coarse, finer, new = rearrangement.reshaping((dim,), tuple(lengths))
    assert [strata.size(d) for d in new] == lengths
    for parts in (blocks, coarse, finer):
        assert math.prod(map(strata.size, parts)) == strata.size(dim)


def test_a_common_tail_is_what_all_axes_can_be_written_with():
    heads, one_head, other = ((12,), (64,)), ((64,),), ((40,),)
    assert rearrangement.common_tail((heads, one_head)) == ((64,),)
    assert rearrangement.common_tail((heads, other)) == ()
    assert rearrangement.with_tail(one_head, ((64,),)) == ((1,), (64,))
    assert rearrangement.with_tail(((128,),), ((64,),)) == ((2,), (64,))
    assert rearrangement.with_tail(other, ((64,),)) is None


@pytest.mark.parametrize("module", [strata, rearrangement])
def test_examples(module):
    assert doctest.testmod(module).failed == 0
