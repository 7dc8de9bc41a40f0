"""Moments of tensors: views, sums and joins against whole second-moment matrices, drawn ones against theirs."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from exactly import assert_same, averaged_on, every_class_sum, pair_classes, written_out
from fanin._moments import domain, rearrangement
from fanin._moments.domain import (
    MAX_ATOMS,
    MAX_NUMBERS,
    MAX_SEGMENTS,
    Abstract,
    added,
    aligned,
    averaged,
    coarsen,
    concatenated,
    constant,
    contracted,
    cut,
    drawn,
    expanded,
    fitted,
    full,
    limited,
    mean_over,
    measured,
    merge_dim,
    multiplied,
    permuted,
    reshaped,
    resized,
    scaled,
    shifted,
    summed,
    tidy,
    uniform,
)
from strategies import abstracts
from tensors import correlated, stratified


def same_tables(a: Abstract, b: Abstract) -> None:
    assert a.dims == b.dims
    np.testing.assert_allclose(a.q, b.q, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-9, atol=1e-9)


def merged(x: Abstract) -> Abstract:
    """One atom an axis, no segments: what `measured` makes."""
    for d in range(len(x.dims)):
        x = merge_dim(x, d)
    return uniform(x)


# making them --------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.lists(st.integers(1, 5), max_size=3), st.integers(0, 99))
def test_measured_numbers_by_hand(shape, seed):
    array = np.random.default_rng(seed).normal(0.5, 1.0, shape)
    x = measured(array)
    assert x.shape == tuple(shape)
    want = averaged_on(x.dims, array.ravel(), np.outer(array, array))
    np.testing.assert_allclose(x.q, want.q, atol=1e-9)
    np.testing.assert_allclose(x.mean, want.mean, atol=1e-9)


def test_measured_masks_say_what_is_allowed():
    mask = np.triu(np.full((4, 4), -np.inf), 1)
    x = measured(mask)
    assert (x.allowed == (mask == 0)).all()
    assert x.second_moment == 0.0


def test_large_arrays_are_read_in_part():
    x = measured(np.ones((3000, 2000)), limit=1 << 12)
    assert x.shape == (3000, 2000)
    assert x.second_moment == 1.0


def test_full_and_constant():
    x = full((3, 1, 4), 2.0, 0.5)
    assert x.shape == (3, 1, 4)
    assert (x.second_moment, x.average_mean, x.q[1, 1]) == (2.0, 0.5, 0.25)
    assert constant((5,), 3.0).variance == pytest.approx(0.0)
    assert "rms 1.414" in repr(full((2,), 2.0))
    assert average_of_nothing() == 0.0


def average_of_nothing() -> float:
    return measured(np.zeros((0, 3))).second_moment


# averages over everything -------------------------------------------------------------------------


@settings(max_examples=25)
@given(abstracts())
def test_averages_are_those_of_the_written_out_matrix(x):
    mean, matrix = written_out(x)
    assert x.second_moment == pytest.approx(np.diag(matrix).mean(), abs=1e-9)
    assert x.average_mean == pytest.approx(mean.mean(), abs=1e-9)
    assert x.squared_mean == pytest.approx(matrix.mean(), abs=1e-9)


def views(x: Abstract):
    yield permuted(x, range(len(x.dims))[::-1])
    yield reshaped(x, (math.prod(x.shape),))
    yield limited(x)
    yield merged(x)
    for d in range(len(x.dims)):
        yield merge_dim(x, d)


@settings(max_examples=25)
@given(abstracts())
def test_views_keep_every_average(x):
    for y in views(x):
        assert y.second_moment == pytest.approx(x.second_moment, abs=1e-9)
        assert y.average_mean == pytest.approx(x.average_mean, abs=1e-9)
        assert every_class_sum(y) == pytest.approx(every_class_sum(x), abs=1e-6)


# views --------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(abstracts(), st.randoms())
def test_permuted(x, random):
    order = list(range(len(x.dims)))
    random.shuffle(order)
    mean, matrix = written_out(x)
    places = np.arange(math.prod(x.shape)).reshape(x.shape).transpose(order).ravel()
    y = permuted(x, order)
    assert_same("permuted", y, mean[places], matrix[np.ix_(places, places)])
    same_tables(permuted(y, np.argsort(order)), x)


@settings(max_examples=25)
@given(abstracts())
def test_reshaped_and_back(x):
    flat = reshaped(x, (math.prod(x.shape),))
    assert_same("flat", flat, *written_out(x))
    same_tables(reshaped(flat, x.shape), x)


@settings(max_examples=25)
@given(abstracts(), st.data())
def test_reshaped_keeps_what_its_axes_can_tell(x, data):
    """On other axes the moments are those of the same elements, where atoms meet the new axes."""
    n = math.prod(x.shape)
    first = data.draw(st.sampled_from([k for k in range(1, n + 1) if n % k == 0]))
    y = reshaped(x, (first, n // first))
    assert y.shape == (first, n // first)
    assert y.second_moment == pytest.approx(x.second_moment, abs=1e-9)
    assert every_class_sum(y) == pytest.approx(every_class_sum(x), abs=1e-6)
    blocks, coarse, _, _ = rearrangement.reshaping(x.dims, y.shape)
    if blocks == coarse:
        assert_same("reshaped", y, *written_out(x))


@settings(max_examples=25)
@given(abstracts(), st.data())
def test_cut(x, data):
    assume(len(x.dims))
    d = data.draw(st.integers(0, len(x.dims) - 1))
    n = x.shape[d]
    start = data.draw(st.integers(0, n - 1))
    stop = data.draw(st.integers(start + 1, n))
    step = data.draw(st.integers(1, 3))
    y = cut(x, d, start, stop, step)
    # Positions of a segment are alike; those of an axis whose factors are cut through are averaged.
    whole = merge_dim(x, d) if len(y.dims[d]) <= 1 and len(x.dims[d]) > 1 else x
    mean, matrix = written_out(whole)
    index = (slice(None),) * d + (slice(start, stop, step),)
    places = np.arange(math.prod(x.shape)).reshape(x.shape)[index].ravel()
    assert y.shape == tuple(np.empty(x.shape)[index].shape)
    if y.dims[d] == cut(whole, d, start, stop, step).dims[d] and len(x.dims[d]) < 2:
        assert_same("cut", y, mean[places], matrix[np.ix_(places, places)])


@settings(max_examples=25)
@given(abstracts(rank=2), abstracts(rank=2), st.integers(0, 1))
def test_what_is_joined_comes_apart_again(a, b, dim):
    other = 1 - dim
    b = resized(b, other, a.shape[other])
    joint = concatenated([a, b], dim)
    assert joint.shape[dim] == a.shape[dim] + b.shape[dim]
    start = 0
    for part in (a, b):
        there = cut(joint, dim, start, start + part.shape[dim])
        start += part.shape[dim]
        assert there.second_moment == pytest.approx(part.second_moment, rel=1e-5, abs=1e-5)
        assert there.average_mean == pytest.approx(part.average_mean, rel=1e-5, abs=1e-5)
        assert every_class_sum(there) == pytest.approx(every_class_sum(part), rel=1e-4, abs=1e-3)


@settings(max_examples=25)
@given(abstracts(rank=2), abstracts(rank=2), st.integers(0, 1))
def test_joined_tensors_are_independent_of_each_other(a, b, dim):
    other = 1 - dim
    b = resized(b, other, a.shape[other])
    joint = concatenated([a, b], dim)
    (ma, fa), (mb, fb) = written_out(a), written_out(b)
    n, m = ma.size, mb.size
    whole = np.zeros((n + m, n + m))
    whole[:n, :n], whole[n:, n:], whole[:n, n:], whole[n:, :n] = (
        fa,
        fb,
        np.outer(ma, mb),
        np.outer(mb, ma),
    )
    places = np.concatenate(
        [np.arange(n).reshape(a.shape), n + np.arange(m).reshape(b.shape)], dim
    ).ravel()
    mean = np.concatenate([ma, mb])[places]
    # `tidy` joins segments that differ by less than 1e-6.
    assert_same("joined", joint, mean, whole[np.ix_(places, places)], rtol=1e-5)


@settings(max_examples=25)
@given(abstracts(rank=2))
def test_expanded_copies(x):
    wide = expanded(reshaped(x, (x.shape[0], 1, x.shape[1])), (3, x.shape[0], 2, x.shape[1]))
    mean, matrix = written_out(x)
    places = np.broadcast_to(
        np.arange(mean.size).reshape(x.shape[0], 1, x.shape[1]), wide.shape
    ).ravel()
    assert_same("expanded", wide, mean[places], matrix[np.ix_(places, places)])


@settings(max_examples=25)
@given(abstracts(), st.data())
def test_fitted_axes_say_the_same(x, data):
    finer = []
    for dim in x.dims:
        if (
            dim
            and sum(dim[-1]) % 2 == 0
            and all(n % 2 == 0 for n in dim[-1])
            and data.draw(st.booleans())
        ):
            half = tuple(n // 2 for n in dim[-1])
            finer.append((*dim[:-1], half, (2,)) if sum(half) > 1 else (*dim[:-1], (2,)))
        else:
            finer.append(dim)
    y = fitted(x, tuple(finer))
    assert_same("fitted", y, *written_out(x))
    for d in range(len(x.dims)):
        y = merge_dim(y, d) if len(y.dims[d]) != len(x.dims[d]) and len(x.dims[d]) < 2 else y
    assert y.second_moment == pytest.approx(x.second_moment, abs=1e-9)


@settings(max_examples=25)
@given(abstracts(), st.data())
def test_merged_and_coarsened_tables_are_averages(x, data):
    for d in range(len(x.dims)):
        assert_same("merged", merge_dim(x, d), *written_out(x))
    for axis, atom in enumerate(x.atoms):
        ends = data.draw(st.sets(st.integers(1, len(atom)), max_size=2)) | {len(atom)}
        groups = tuple(np.diff([0, *sorted(ends)]).tolist())
        assert_same("coarsened", coarsen(x, axis, groups), *written_out(x))
    assert_same("uniform", uniform(x), *written_out(x))


def test_known_numbers_and_masks_follow_views():
    ids = np.arange(12).reshape(3, 4)
    x = measured(ids).with_(allowed=ids > 1)
    assert (permuted(x, (1, 0)).known == ids.T).all()
    assert (reshaped(x, (2, 6)).known == ids.reshape(2, 6)).all()
    assert (cut(x, 1, 1, 4, 2).known == ids[:, 1:4:2]).all()
    assert (cut(x.with_(allowed=ids[:1] > 1), 1, 1, 4, 2).allowed == (ids[:1] > 1)[:, 1:4:2]).all()
    assert (cut(x.with_(allowed=ids[0] > 1), 0, 1, 2).allowed == (ids[:1] > 1)).all()
    assert (
        expanded(reshaped(x, (3, 1, 4)), (3, 2, 4)).known
        == np.broadcast_to(ids[:, None], (3, 2, 4))
    ).all()
    assert (concatenated([x, x], 0).known == np.concatenate([ids, ids])).all()


def test_large_broadcast_numbers_are_not_copied():
    wide = expanded(measured(np.arange(2000).reshape(1, 2000)), (2000, 2000))
    assert wide.known is not None
    assert reshaped(wide, (2000 * 2000,)).known is None


# budgets ------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(abstracts())
def test_tidy_loses_nothing_beyond_its_tolerance(x):
    y = tidy(x)
    scale = max(float(np.abs(x.q).max()), 1e-300)
    assert abs(y.second_moment - x.second_moment) <= 1e-6 * scale
    finest = (
        fitted(y, x.dims)
        if all(len(a) == len(b) for a, b in zip(x.dims, y.dims, strict=True))
        else x
    )
    (_, before), (_, after) = written_out(x), written_out(finest)
    assert np.abs(before - after).max() <= 4e-6 * scale


def test_tidy_joins_what_is_alike():
    x = full((2, 6), 1.0)
    split = fitted(x, (((2,),), ((1, 2, 3),)))
    assert tidy(split).dims == x.dims
    same_tables(tidy(split), x)


def test_tidy_keeps_what_differs_in_one_respect():
    base = full((4,), 1.0)
    apart = fitted(base, (((2, 2),),))
    correlated_half = apart.with_(q=apart.q + np.array([0, 0, 0.5, 0, 0, 0]))
    other_mean = apart.with_(mean=np.array([0.1, -0.1]))
    assert tidy(correlated_half).dims == apart.dims
    assert tidy(other_mean).dims == apart.dims


@settings(max_examples=25)
@given(abstracts(rank=2))
def test_limited_keeps_tables_small(x):
    for _ in range(3):
        x = expanded(reshaped(x, (1, *x.shape)), (2, *x.shape))
    y = limited(x)
    assert y.q.ndim <= MAX_ATOMS
    assert y.q.size <= MAX_NUMBERS
    assert y.second_moment == pytest.approx(x.second_moment, abs=1e-9)
    assert every_class_sum(y) == pytest.approx(every_class_sum(x), rel=1e-9, abs=1e-6)


def test_many_segments_become_few():
    parts = [full((1, 3), 1.0 + k * k) for k in range(40)]
    joint = concatenated(parts, 0)
    assert max(joint.mean.shape) <= MAX_SEGMENTS
    assert joint.second_moment == pytest.approx(np.mean([1.0 + k * k for k in range(40)]))


@settings(max_examples=25)
@given(abstracts(rank=2), abstracts(rank=2))
def test_aligned_tensors_say_the_same(a, b):
    for d in range(2):
        b = resized(b, d, a.shape[d])
    x, y = aligned([a, b])
    assert x.dims == y.dims
    for before, after in ((a, x), (b, y)):
        assert after.second_moment == pytest.approx(before.second_moment, abs=1e-9)
        assert every_class_sum(after) == pytest.approx(every_class_sum(before), abs=1e-6)


# sums and products --------------------------------------------------------------------------------


def on_written(a: Abstract, b: Abstract):
    (ma, fa), (mb, fb) = written_out(a), written_out(b)
    return ma, fa, mb, fb


@settings(max_examples=25)
@given(abstracts(rank=2), abstracts(rank=2), st.floats(-2, 2), st.floats(-2, 2))
def test_sums_and_products_of_independent_tensors(a, b, sa, sb):
    for d in range(2):
        b = resized(b, d, a.shape[d])
    ma, fa, mb, fb = on_written(a, b)
    # Where factors do not meet, products are taken of averages.
    assume(
        all(
            np.allclose(written_out(y)[1], f)
            for y, f in zip(aligned([a, b]), (fa, fb), strict=True)
        )
    )
    cross = np.outer(ma, mb)
    total = sa * sa * fa + sb * sb * fb + sa * sb * (cross + cross.T)
    assert_same("sum", added(a, b, sa, sb), sa * ma + sb * mb, total, rtol=1e-7)
    assert_same("product", multiplied(a, b), ma * mb, fa * fb, rtol=1e-7)


@settings(max_examples=25)
@given(abstracts(), st.floats(-3, 3))
def test_scaled_and_shifted(x, c):
    mean, matrix = written_out(x)
    assert_same("scaled", scaled(x, c), c * mean, c * c * matrix)
    assert_same("shifted", shifted(x, c), mean + c, matrix + c * np.add.outer(mean, mean) + c * c)
    base, f = shifted(scaled(x, 2.0), c).chain
    assert base is x
    assert f(np.array([1.0])) == pytest.approx(2.0 + c)


@settings(max_examples=25)
@given(abstracts(), st.data())
def test_sums_and_means_over_axes(x, data):
    assume(len(x.dims))
    dims = sorted(data.draw(st.sets(st.integers(0, len(x.dims) - 1), min_size=1)))
    mean, matrix = written_out(x)
    rows = np.arange(mean.size).reshape(x.shape)
    kept = [d for d in range(len(x.dims)) if d not in dims]
    rows = rows.transpose([*kept, *dims]).reshape(math.prod(x.shape[d] for d in kept), -1)
    m = np.zeros((len(rows), mean.size))
    m[np.arange(len(rows))[:, None], rows] = 1.0
    assert_same("sum", summed(x, dims), m @ mean, m @ matrix @ m.T)
    m /= rows.shape[1]
    assert_same("mean", averaged(x, dims), m @ mean, m @ matrix @ m.T)
    shape = tuple(1 if d in dims else n for d, n in enumerate(x.shape))
    assert averaged(x, dims, keep=True).shape == shape
    if x.uniform:
        wide = Abstract(x.dims, x.mean, mean_over(x, dims))
        back = np.repeat(np.arange(len(rows)), rows.shape[1])[np.argsort(rows.ravel())]
        np.testing.assert_allclose(
            written_out(wide)[1], (m @ matrix @ m.T)[np.ix_(back, back)], atol=1e-9
        )


def test_contracted_as_einsum():
    a, b = correlated(2, 3, 4, mean=0.5), stratified(4, 3, dim=0)
    out = contracted(a, ["b", "i", "j"], b, ["j", "i"], ["b", "j"])
    (ma, fa), (mb, fb) = written_out(a), written_out(b)
    fa, fb = fa.reshape(2, 3, 4, 2, 3, 4), fb.reshape(4, 3, 4, 3)
    mean = np.einsum("bij,ji->bj", ma.reshape(2, 3, 4), mb.reshape(4, 3)).ravel()
    matrix = np.einsum("bijckl,jilk->bjcl", fa, fb).reshape(8, 8)
    assert_same("contracted", out, mean, matrix)


# drawing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x",
    [
        correlated(3, 4, mean=1.0),
        stratified(5, 3, dim=0),
        reshaped(correlated(2, 3, 4), (2, 12)),
        concatenated([correlated(2, 1, 3, mean=1.0), correlated(2, 4, 3, scale=3.0)], 1),
        correlated(),
    ],
    ids=["correlated", "segments", "atoms", "class-token", "number"],
)
def test_drawn_tensors_have_the_stated_moments(x):
    """Every class within 5 standard errors of its own 4000 draws."""
    rng = np.random.default_rng(0)
    values = np.stack([drawn(x, rng).ravel() for _ in range(4000)])
    classes, count = pair_classes(x.dims)
    for c in range(count):
        if (classes == c).any():
            own = ((values @ (classes == c)) * values).sum(1) / (classes == c).sum()
            error = 5 * own.std() / math.sqrt(len(own)) + 1e-12
            assert abs(own.mean() - x.q.reshape(-1)[c]) <= error
    center = written_out(x)[0]
    assert (
        np.abs(values.mean(0) - center) <= 5 * values.std(0) / math.sqrt(len(values)) + 1e-12
    ).all()


@settings(max_examples=25)
@given(abstracts(rank=2))
def test_drawn_has_the_shape(x):
    assert drawn(x, np.random.default_rng(0)).shape == x.shape


def test_examples():
    assert doctest.testmod(domain).failed == 0
