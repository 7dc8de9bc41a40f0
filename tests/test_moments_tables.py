"""The tables' arithmetic against loops and einsum; what is kept of a tensor stays true of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanin._moments import axes, conv, gaussian, pointwise
from fanin._moments.alignment import contraction
from fanin._moments.domain import Abstract, full, measured, once, scaled, shifted
from fanin._moments.lines import Line, composed
from fanin._moments.registry import FORWARD
from fanin._moments.taps import Taps, unfolding
from tensors import correlated, stratified

ROUNDING = 1e-12

numbers = st.floats(-4.0, 4.0, allow_nan=False)


def snapshot(x: Abstract) -> tuple[bytes, bytes, object]:
    return x.q.tobytes(), x.mean.tobytes(), x.dims


# lines --------------------------------------------------------------------------------------------


@given(numbers, numbers, numbers, numbers, numbers)
def test_lines_in_a_row_are_one_line(a: float, b: float, c: float, d: float, z: float) -> None:
    f, g = Line(a, b), Line(c, d)
    both = composed(f, g)
    assert isinstance(both, Line)
    assert both(np.array(z)) == pytest.approx(float(f(g(np.array(z)))), abs=1e-12, rel=ROUNDING)


@pytest.mark.parametrize("x", [correlated(4, 9, mean=0.3), stratified(9, 6, dim=0)])
def test_a_line_needs_no_quadrature_and_gives_what_it_would(x: Abstract) -> None:
    line, curve = gaussian.pointwise(x, Line(-1.7)), gaussian.pointwise(x, lambda z: -1.7 * z)
    np.testing.assert_allclose(line.q, curve.q, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(line.mean, curve.mean, rtol=1e-9, atol=1e-12)
    assert line.noise == pytest.approx(curve.noise)


def test_a_chain_of_lines_stays_a_line_and_a_curve_ends_it() -> None:
    x = correlated(4, 9, mean=0.3)
    y = FORWARD["neg"](x=shifted(scaled(x, 2.0), 1.0))
    assert y.chain == (x, Line(-2.0, -1.0))
    assert not isinstance(gaussian.pointwise(y, np.tanh).chain[1], Line)


# functions that are read off a table ---------------------------------------------------------------


def test_a_table_of_a_function_is_that_of_linear_interpolation() -> None:
    fast = pointwise.tabulated(np.tanh)
    z = np.random.default_rng(0).uniform(-9.0, 9.0, 4000)
    z[:4] = (-9.0, 9.0, 0.0, -0.0)
    wanted = np.interp(z, pointwise.GRID, np.tanh(pointwise.GRID))
    np.testing.assert_allclose(fast(z), wanted, rtol=0, atol=1e-13)


def test_a_table_ends_and_the_function_goes_on() -> None:
    fast = pointwise.tabulated(np.square)
    z = np.array([[-12.0, 9.0 + 1e-9, 0.5], [30.0, -9.0001, np.nan]])
    with np.errstate(invalid="ignore"):  # as the rules have it
        np.testing.assert_allclose(fast(z), z * z, rtol=1e-6)


# pairs of numbers ----------------------------------------------------------------------------------


@given(st.lists(st.integers(2, 5), min_size=1, max_size=4), st.integers(0, 99), st.booleans())
@settings(max_examples=30, deadline=None)
def test_measured_pairs_are_means_over_all_of_them(
    shape: list[int], seed: int, imaginary: bool
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) + 0.3
    x = x + 1j * rng.normal(size=shape) if imaginary else x
    q = measured(x).q
    places = list(np.ndindex(*shape))
    for which in np.ndindex(q.shape):
        pairs = [
            (x[i] * x[j].conj()).real
            for i, j in itertools.product(places, places)
            if all((a != b) == bool(w) for a, b, w in zip(i, j, which, strict=True))
        ]
        assert q[which] == pytest.approx(np.mean(pairs), rel=1e-9, abs=1e-12)


# plans ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["ij", "ji", "i", "j", "kij", "jik", ""])
def test_a_contraction_is_einsum_with_classes_weighed_by_their_pairs(out: str) -> None:
    rng = np.random.default_rng(0)
    sizes = {"i": 3, "k": 4, "j": 5}
    a, b = (rng.normal(size=(2,) * 2) for _ in range(2))
    dims = {label: ((n,),) for label, n in sizes.items()}
    plan = contraction(
        (dims["i"], dims["k"]), ("i", "k"), (dims["k"], dims["j"]), ("k", "j"), tuple(out)
    )
    weighed = [np.array([n, n * (n - 1.0)]) for label, n in sizes.items() if label not in out]
    names = [label for label in sizes if label not in out]
    wanted = np.einsum(",".join(["ik", "kj", *names]) + "->" + out, a, b, *weighed)
    np.testing.assert_allclose(plan.q.product(a, b), wanted, rtol=ROUNDING)


@pytest.mark.parametrize(
    ("taps", "same"),
    [
        (Taps(9, 9, 1), True),
        (Taps(9, 5, 1, stride=2), True),
        (Taps(9, 9, 1, transposed=True), True),
        (Taps(9, 11, 1, pad=1), False),
        (Taps(5, 9, 1, stride=2, transposed=True), False),
        (Taps(9, 7, 3), False),
    ],
)
def test_one_tap_that_always_reads_leaves_tables_alone(taps: Taps, same: bool) -> None:
    x = full((2, 3, taps.size), 1.7, 0.4)
    plan = unfolding(x.dims[2], taps)
    assert plan.same == same
    assert not same or (np.array_equal(plan.pairs, np.eye(2)) and not plan.taps)
    wide = conv.unfolded(x, 2, [taps])
    assert wide.shape == (2, 3, taps.out, taps.kernel)
    assert (wide.q is x.q) == same


def test_tensors_that_meet_are_what_they_are_on_common_axes() -> None:
    a, b = stratified(9, 6, dim=0), correlated(9, 6, mean=0.2)
    for x, y in ((a, b), (b, a), (a, a), (a, full((6,), 2.0, 0.5))):
        dims, (qx, mx), (qy, my) = axes.met(x, y)
        wide = axes.aligned([x, y])
        assert all(w.dims == dims for w in wide)
        for (q, mean), w in zip(((qx, mx), (qy, my)), wide, strict=True):
            np.testing.assert_array_equal(np.broadcast_to(q, w.q.shape), w.q)
            np.testing.assert_array_equal(np.broadcast_to(mean, w.mean.shape), w.mean)


# what is kept --------------------------------------------------------------------------------------


def test_what_is_kept_of_a_tensor_is_by_tensor_and_arguments() -> None:
    calls = []

    @once
    def product(x: Abstract, factor: float) -> float:
        calls.append(factor)
        return x.second_moment * factor

    x = full((4, 8), 2.0)
    assert [product(x, 1.0), product(x, 3.0), product(x, 1.0)] == [2.0, 6.0, 2.0]
    assert calls == [1.0, 3.0]
    y = x.with_(q=x.q * 5.0)
    assert product(y, 1.0) == 10.0
    assert product(scaled(x, 2.0), 1.0) == 8.0
    assert product(x, 1.0) == 2.0


def test_a_convolution_keeps_nothing_that_another_could_be_given() -> None:
    x, weight = correlated(2, 3, 7, mean=0.2), full((4, 3, 3), 0.3, 0.1)
    before = snapshot(x), snapshot(weight)
    shapes = [
        conv.geometry((7,), (3,), ((s,), (p,), (1,), (0,)), 1, False)
        for s in (1, 2)
        for p in (0, 1)
    ]
    first = [conv.convolved(x, weight, None, shape) for shape in shapes]
    fresh = [conv.convolved(x.with_(), weight.with_(), None, shape) for shape in shapes]
    for out, shape in zip(first, shapes, strict=True):
        conv.convolved_backward(out.plain(), x, weight, None, shape)
    again = [conv.convolved(x, weight, None, shape) for shape in shapes]
    assert (snapshot(x), snapshot(weight)) == before
    assert list(map(snapshot, first)) == list(map(snapshot, fresh)) == list(map(snapshot, again))
    assert len(set(map(snapshot, first))) == len(shapes)
