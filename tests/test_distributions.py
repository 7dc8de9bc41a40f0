"""Distributions: against scipy, mpmath and torch's own draws; and as values."""

from __future__ import annotations

import itertools
import json
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import strategies
from fanin import FaninError
from fanin import distributions as module
from fanin._errors import InvalidValueError
from fanin.distributions import (
    DISTRIBUTIONS,
    BoundedNormal,
    Constant,
    DeltaOrthogonal,
    Dirac,
    Distribution,
    Identity,
    Normal,
    Orthogonal,
    Sparse,
    TruncatedNormal,
    Uniform,
    distribution_from_dict,
)

INF = math.inf
U = np.array([1e-12, 1e-6, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1 - 1e-6])

# Ours, and the same law in scipy, whose truncnorm has the std of far tails to about 1e-8 only;
# `test_normal` holds ours to 1e-12 of mpmath.
TWINS = {
    "normal": (Normal(0.02, 1.5), stats.norm(1.5, 0.02)),
    "uniform": (Uniform(-0.3, 0.1), stats.uniform(-0.3, 0.4)),
    "truncated 3": (TruncatedNormal(0.02), stats.truncnorm(-3, 3, 0, 0.02)),
    "truncated 2": (TruncatedNormal(2.0, 2.0, -1.0), stats.truncnorm(-2, 2, -1.0, 2.0)),
    "truncated .5": (TruncatedNormal(1.0, 0.5), stats.truncnorm(-0.5, 0.5)),
    "bounded": (BoundedNormal(0.1, 0.5, -1.0, 2.0), stats.truncnorm(-2.2, 3.8, 0.1, 0.5)),
    "one-sided": (BoundedNormal(0.0, 1.0, 1.0, INF), stats.truncnorm(1, INF)),
    "right tail": (BoundedNormal(0.0, 2.0, 40.0, INF), stats.truncnorm(20, INF, 0, 2)),
    "left tail": (BoundedNormal(0.0, 1.0, -8.0, -6.0), stats.truncnorm(-8, -6)),
}
twins = pytest.mark.parametrize(("ours", "theirs"), TWINS.values(), ids=TWINS.keys())


@twins
def test_moments_agree_with_scipy(ours, theirs):
    assert ours.mean == pytest.approx(theirs.mean(), rel=1e-10, abs=1e-15)
    assert ours.std == pytest.approx(theirs.std(), rel=1e-8)
    assert ours.variance == pytest.approx(theirs.var(), rel=1e-8)
    assert ours.second_moment == pytest.approx(theirs.var() + theirs.mean() ** 2, rel=1e-8)
    assert ours.support == pytest.approx(theirs.support(), rel=1e-14)


@twins
def test_cdf_and_ppf_agree_with_scipy(ours, theirs):
    np.testing.assert_allclose(ours.ppf(U), theirs.ppf(U), rtol=1e-10, atol=1e-10 * ours.std)
    x = theirs.ppf(U)
    np.testing.assert_allclose(ours.cdf(x), theirs.cdf(x), rtol=1e-9, atol=1e-12)


def test_everything_is_registered_and_has_a_strategy():
    # Kept draws nothing: it has tests of its own.
    assert set(DISTRIBUTIONS) == set(strategies.LAWS) | {"Kept"}
    assert set(DISTRIBUTIONS) <= set(module.__all__)
    assert all(issubclass(cls, Distribution) for cls in DISTRIBUTIONS.values())


# accuracy where naive formulas fail -------------------------------------------------------------


@pytest.mark.parametrize("cut", [1e-6, 1e-4, 1e-2, 0.3, 1.0, 2.0, 3.0, 6.0, 12.0, 40.0])
def test_truncated_std_against_mpmath(cut):
    with mpmath.workdps(80):
        c = mpmath.mpf(cut)
        variance = 1 - 2 * c * mpmath.npdf(c) / mpmath.erf(c / mpmath.sqrt(2))
        expected = float(mpmath.sqrt(variance) * mpmath.mpf(0.02))
    assert TruncatedNormal(0.02, cut).std == pytest.approx(expected, rel=1e-13)
    assert TruncatedNormal.with_std(0.02, cut).std == pytest.approx(0.02, rel=1e-15)


def test_with_std_keeps_the_other_arguments():
    made = TruncatedNormal.with_std(0.5, cut=1.5, mean=-2.0)
    assert (made.cut, made.mean, made.std) == (1.5, -2.0, pytest.approx(0.5, rel=1e-15))


def test_jax_and_keras_constant():
    assert TruncatedNormal(1.0, 2.0).std == pytest.approx(0.87962566103423978, rel=1e-15)


@pytest.mark.parametrize("sigmas", [5.0, 20.0, 38.0, 1e3, 1e6])
def test_mean_above_a_far_bound_is_small_and_exact(sigmas):
    """A bound at 0, its parent ``sigmas`` below: mean 1/s - 2/s^3 + ..., though both terms are near s."""
    law = BoundedNormal(-sigmas, 1.0, 0.0, INF)
    with mpmath.workdps(60):
        s = mpmath.mpf(sigmas)
        # D = 1/m - s by the continued fraction's tail, m Mills' ratio; at 60 digits nothing is lost.
        if sigmas < 1e4:
            mills = (
                mpmath.sqrt(mpmath.pi / 2) * mpmath.exp(s * s / 2) * mpmath.erfc(s / mpmath.sqrt(2))
            )
            expected = float(1 / mills - s)
        else:
            expected = float(1 / s - 2 / s**3)
    assert law.mean == pytest.approx(expected, rel=1e-12)
    assert law.ppf(0.5) == pytest.approx(math.log(2) / sigmas, rel=2 / sigmas**2)
    assert law.ppf(1e-12) == pytest.approx(1e-12 / sigmas, rel=2 / sigmas**2)


@given(strategies.continuous, st.floats(1e-12, 1 - 1e-12))
def test_cdf_undoes_ppf(law, u):
    x = law.ppf(u)
    assert law.support[0] <= x <= law.support[1]
    # A last-bit change of x, or of where the support begins, moves the cdf by density * eps * size.
    size = max(map(abs, (x, *filter(math.isfinite, law.support), getattr(law, "mu", law.mean))))
    lower, upper = law.cdf([x - 4e-16 * size, x + 4e-16 * size])
    assert lower - 1e-12 <= u <= upper + 1e-12


@given(strategies.elementwise, st.lists(st.floats(0, 1), min_size=2))
def test_ppf_rises(law, us):
    x = law.ppf(sorted(us))
    assert all(
        a <= b or math.isclose(a, b, rel_tol=1e-15) for a, b in itertools.pairwise(x.tolist())
    )


@given(strategies.elementwise)
def test_ends(law):
    low, high = law.support
    assert law.ppf([0.0, 1.0]).tolist() == pytest.approx([low, high], rel=1e-15)
    assert law.cdf(high) == 1.0
    assert law.cdf([-INF, INF]).tolist() == [0.0, 1.0]
    assert math.isnan(law.cdf(math.nan))
    assert (
        low <= law.mean <= high or law.mean == pytest.approx(low) or law.mean == pytest.approx(high)
    )


@given(strategies.elementwise, strategies.positives(1e-3, 1e3), st.floats(0.001, 0.999))
def test_scaled_scales_the_values(law, factor, u):
    scaled = law.scaled(factor)
    size = abs(law.ppf(u)) + abs(getattr(law, "mu", law.mean)) + law.std
    assert scaled.ppf(u) == pytest.approx(factor * law.ppf(u), rel=1e-9, abs=1e-9 * factor * size)
    assert scaled.std == pytest.approx(factor * law.std, rel=1e-6)


@given(strategies.distributions)
def test_scaled_by_zero_leaves_nothing_but_zero(law):
    scaled = law.scaled(0.0)
    kernel = isinstance(law, (Dirac, DeltaOrthogonal)) or getattr(law, "centre", False)
    shape = (8, 8, 3) if kernel else (8, 8)
    if isinstance(law, Dirac):
        shape = (8 * law.groups, 8, 3)
    assert (scaled.std_for(shape), scaled.mean_for(shape)) == (0.0, 0.0)


# as values ---------------------------------------------------------------------------------------


@given(strategies.distributions)
def test_json_both_ways(law):
    data = json.loads(json.dumps(law.to_dict(), allow_nan=False))
    assert data["kind"] == type(law).__name__
    assert distribution_from_dict(data) == law
    assert type(law).from_dict(data) == law
    assert Distribution.from_dict(data) == law
    assert hash(distribution_from_dict(data)) == hash(law)
    assert eval(repr(law), {**vars(module), "inf": INF}) == law


@given(strategies.distributions)
def test_frozen(law):
    with pytest.raises(AttributeError):
        law.std = 1.0
    with pytest.raises(AttributeError):
        law.gain = 1.0


@pytest.mark.parametrize(
    ("law", "text"),
    [
        (Normal(0.025503), "Normal(std=0.0255)"),
        (Normal(1, 2), "Normal(std=1, mean=2)"),
        (TruncatedNormal(0.02), "TruncatedNormal(sigma=0.02, cut=3)"),
        (BoundedNormal(0, 1, -INF, 2), "BoundedNormal(mean=0, std=1, low=-inf, high=2)"),
        (Uniform(-1 / 3, 1 / 3), "Uniform(low=-0.3333, high=0.3333)"),
        (Sparse(0.1), "Sparse(sparsity=0.1, std=0.01)"),
        (Dirac(2), "Dirac(groups=2, gain=1)"),
    ],
    ids=str,
)
def test_str(law, text):
    assert str(law) == text


def test_scalars_give_floats_and_arrays_give_arrays():
    law = TruncatedNormal(0.02)
    assert type(law.cdf(0.0)) is float
    assert type(law.ppf(np.float64(0.5))) is float
    for x in ([0.0, 0.01], (0.0, 0.01), np.array([0.0, 0.01]), torch.tensor([0.0, 0.01])):
        assert law.cdf(x).dtype == np.float64
        assert law.cdf(x).shape == (2,)
    assert law.ppf(np.full((2, 3), 0.5)).shape == (2, 3)
    assert law.ppf(np.zeros((0, 3))).shape == (0, 3)
    assert law.cdf([]).shape == (0,)


# degenerate, and wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("law", "at"),
    [
        (Constant(2.0), 2.0),
        (Normal(0.0, 2.0), 2.0),
        (Uniform(2.0, 2.0), 2.0),
        (TruncatedNormal(0.0, 3.0, 2.0), 2.0),
        (BoundedNormal(2.0, 0.0, -5.0, 5.0), 2.0),
        (BoundedNormal(9.0, 0.0, -5.0, 2.0), 2.0),
        (BoundedNormal(0.0, 1.0, 2.0, 2.0), 2.0),
        (BoundedNormal(0.0, 1e-308, 2.0, INF), 2.0),
        (Sparse(1.0, 0.5), 0.0),
        (Sparse(0.5, 0.0), 0.0),
    ],
    ids=repr,
)
def test_all_mass_at_one_point(law, at):
    assert (law.mean, law.std, law.support) == (at, 0.0, (at, at))
    assert law.ppf([0.0, 0.3, 1.0]).tolist() == [at] * 3
    below, above = math.nextafter(at, -INF), math.nextafter(at, INF)
    assert law.cdf([below, at, above]).tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Constant(math.nan), "value must be a finite number; got nan"),
        (lambda: Constant("one"), "got 'one'"),
        (lambda: Constant(True), "got True"),
        (lambda: Normal(-0.1), "std must be a finite number >= 0; got -0.1"),
        (lambda: Normal(math.nan), "std"),
        (lambda: Normal(INF), "std"),
        (lambda: Normal(1.0, INF), "mean"),
        (lambda: Uniform(1.0, 0.0), "low must not exceed high; got low=1, high=0"),
        (lambda: Uniform(-INF, 0.0), "low"),
        (lambda: Uniform(-1.7e308, 1.7e308), "high - low"),
        (lambda: TruncatedNormal(0.02, 0.0), "cut .in sigmas. must be a finite number > 0"),
        (lambda: TruncatedNormal(0.02, -1.0), "cut"),
        (lambda: TruncatedNormal(0.02, INF), "cut"),
        (lambda: TruncatedNormal(-1.0), "sigma"),
        (lambda: TruncatedNormal.with_std(-1.0), "std"),
        (lambda: TruncatedNormal.with_std(1.0, cut=0.0), "cut"),
        (lambda: BoundedNormal(0.0, 1.0, 2.0, 1.0), "low must not exceed high"),
        (lambda: BoundedNormal(0.0, 1.0, math.nan, 1.0), "low"),
        (lambda: BoundedNormal(0.0, 1.0, INF, INF), "low"),
        (lambda: BoundedNormal(0.0, 1.0, -INF, -INF), "high"),
        (lambda: BoundedNormal(0.0, -1.0, 0.0, 1.0), "std"),
        (lambda: Sparse(1.5), "sparsity is the share of zeros, at most 1; got 1.5"),
        (lambda: Sparse(-0.1), "sparsity"),
        (lambda: Sparse(0.1, math.nan), "std"),
        (lambda: Orthogonal(math.nan), "gain"),
        (lambda: DeltaOrthogonal(INF), "gain"),
        (lambda: Identity(math.nan), "gain"),
        (lambda: Dirac(0), "groups"),
        (lambda: Dirac(1.5), "groups must be a whole number; got 1.5"),
        (lambda: Dirac(1, math.nan), "gain"),
        (lambda: Normal(1.0).scaled(-1.0), "factor must be a finite number >= 0; got -1"),
        (lambda: Normal(1.0).ppf(1.5), r"probabilities in \[0, 1\]; got 1.5"),
        (lambda: Normal(1.0).ppf([0.5, math.nan]), "got nan"),
        (lambda: Normal(1.0).cdf("half"), "x must be a number or an array of numbers; got 'half'"),
        (lambda: Orthogonal().cdf(0.0), r"Orthogonal\(gain=1\) has no cdf .* std_for\(shape\)"),
        (lambda: Dirac().ppf(0.5), r"has no ppf .* std_for\(shape\)"),
        (lambda: Orthogonal().std_for((3,)), r"2 or more dimensions; got shape \(3,\)"),
        (lambda: DeltaOrthogonal().std_for((3, 3)), r"3 to 5 dimensions; got shape \(3, 3\)"),
        (lambda: Identity().std_for((3, 3, 3)), "2 dimensions"),
        (lambda: Sparse(0.5).std_for((3,)), "2 dimensions"),
        (lambda: Dirac(2).mean_for((3, 3, 3)), "divisible by groups"),
        (lambda: distribution_from_dict({"kind": "Norml", "std": 1.0}), "Did you mean 'Normal'"),
        (lambda: distribution_from_dict({"std": 1.0}), "a mapping with a 'kind'"),
        (lambda: distribution_from_dict("Normal"), "got 'Normal'"),
        (lambda: distribution_from_dict({"kind": "Normal"}), "Normal needs std; got nothing"),
        (
            lambda: distribution_from_dict({"kind": "Normal", "std": 1, "meen": 0}),
            "'meen' too. Did you mean 'mean'",
        ),
        (lambda: distribution_from_dict({"kind": "Normal", "std": "inf"}), "std"),
        (lambda: distribution_from_dict({"kind": ["Normal"]}), "kind must be one of"),
        (
            lambda: Normal.from_dict({"kind": "Constant", "value": 1.0}),
            "expected a Normal; got the kind 'Constant'",
        ),
    ],
)
def test_bad_input_says_what_was_wrong(make, words):
    with pytest.raises(InvalidValueError, match=words) as caught:
        make()
    assert isinstance(caught.value, (FaninError, ValueError))


@pytest.mark.parametrize(
    "name",
    [n for n, law in strategies.LAWS.items() if issubclass(DISTRIBUTIONS[n], module.Elementwise)],
)
def test_elementwise_laws_do_not_depend_on_the_shape(name):
    law = {
        "Constant": Constant(1),
        "Normal": Normal(1),
        "Uniform": Uniform(0, 1),
        "TruncatedNormal": TruncatedNormal(1),
    }.get(name, BoundedNormal(0, 1, 0, 1))
    for shape in ((), (0,), (3,), (2, 3, 4)):
        assert (law.mean_for(shape), law.std_for(shape)) == (law.mean, law.std)


# against torch's draws -----------------------------------------------------------------------------


def spread(tensor):
    """(mean, std) over all elements, in float64."""
    x = tensor.double()
    return x.mean().item(), math.sqrt((x - x.mean()).square().mean().item())


SHAPES = [(6, 6), (5, 12), (12, 5), (8, 4, 3), (4, 8, 3, 3), (1, 7), (7, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonal_mean_of_squares_is_exact(shape):
    w = torch.nn.init.orthogonal_(torch.empty(shape, dtype=torch.float64), gain=1.7)
    law = Orthogonal(1.7)
    assert law.std_for(shape) == pytest.approx(math.sqrt(w.square().mean()), rel=1e-12)
    assert law.mean_for(shape) == 0.0
    assert Orthogonal(-1.7).std_for(shape) == law.std_for(shape)


@pytest.mark.parametrize("shape", [(4, 8, 3), (8, 4, 3, 5), (4, 4, 2, 2), (3, 2, 1, 3, 3)])
def test_delta_orthogonal_mean_of_squares_is_exact(shape):
    w = torch.zeros(shape, dtype=torch.float64)
    w[(..., *(k // 2 for k in shape[2:]))] = torch.nn.init.orthogonal_(
        torch.empty(shape[:2], dtype=torch.float64), 1.3
    )
    assert DeltaOrthogonal(1.3).std_for(shape) == pytest.approx(
        math.sqrt(w.square().mean()), rel=1e-12
    )
    assert DeltaOrthogonal(1.3).mean_for(shape) == 0.0


@pytest.mark.parametrize("shape", [(4, 4), (4, 9), (9, 4), (1, 1)])
def test_identity_is_torch_s_eye(shape):
    mean, std = spread(torch.nn.init.eye_(torch.empty(shape, dtype=torch.float64)) * 1.3)
    assert Identity(1.3).mean_for(shape) == pytest.approx(mean)
    assert Identity(1.3).std_for(shape) == pytest.approx(std)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("shape", [(4, 8, 3), (8, 4, 3, 5), (8, 1, 3, 3, 3), (12, 2, 2)])
def test_dirac_is_torch_s_dirac(shape, groups):
    mean, std = spread(torch.nn.init.dirac_(torch.empty(shape, dtype=torch.float64), groups) * 1.3)
    assert Dirac(groups, 1.3).mean_for(shape) == pytest.approx(mean)
    assert Dirac(groups, 1.3).std_for(shape) == pytest.approx(std)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("rows", [1, 7, 10, 100])
def test_sparse_counts_zeros_as_torch(sparsity, rows):
    law = Sparse(sparsity, 0.3)
    w = torch.nn.init.sparse_(torch.empty(rows, 400), sparsity, 0.3)
    zeros = (w == 0).sum(0)
    assert set(zeros.tolist()) == {law.zeros_of(rows)}
    alive = rows - law.zeros_of(rows)
    assert law.std_for((rows, 400)) == pytest.approx(0.3 * math.sqrt(alive / rows))
    # The mean of n squares of N(0, s^2) has relative standard error sqrt(2 / n); 5 of them.
    n = alive * 400
    if n:
        assert w.double().square().mean().item() == pytest.approx(
            law.std_for((rows, 400)) ** 2, rel=5 * math.sqrt(2 / n)
        )
    assert law.mean_for((rows, 400)) == 0.0


def test_sparse_law_is_a_mixture_with_an_atom():
    law = Sparse(0.4, 0.5)
    assert law.cdf([-1e-300, 0.0]) == pytest.approx([0.3, 0.7])
    assert law.ppf([0.3, 0.5, 0.7]).tolist() == [0.0, 0.0, 0.0]
    assert law.ppf(0.1) == pytest.approx(0.5 * stats.norm.ppf(0.1 / 0.6))
    assert law.ppf(0.9) == pytest.approx(-law.ppf(0.1))
    assert law.std == pytest.approx(0.5 * math.sqrt(0.6))
    assert law.support == (-INF, INF)


@pytest.mark.parametrize("law", [Orthogonal(), DeltaOrthogonal(), Identity(), Dirac()], ids=repr)
def test_matrix_wide_laws_have_no_elementwise_moments(law):
    assert law.mean is law.std is law.variance is law.second_moment is law.support is None


@pytest.mark.parametrize("law", [Orthogonal(), Identity(), Sparse(0.5)], ids=repr)
def test_empty_tensors_have_no_spread(law):
    assert law.std_for((0, 3)) == law.std_for((3, 0)) * 0.0 == law.mean_for((0, 3)) == 0.0
    assert DeltaOrthogonal().std_for((0, 3, 3)) == Dirac().std_for((3, 0, 3)) == 0.0


@pytest.mark.parametrize(
    ("mean", "std", "low", "high"),
    [(0.0, 1.0, -2.0, 2.0), (0.5, 1.0, -0.2, 1.5), (0.0, 1.0, 1.0, 3.0)],
)
def test_bounded_normal_is_what_torch_draws(mean, std, low, high):
    """Kolmogorov's bound: P(sup |F_n - F| > d) <= 2 exp(-2 n d^2) (Massart), d at 1e-9."""
    n = 20_000
    x = torch.nn.init.trunc_normal_(torch.empty(n, dtype=torch.float64), mean, std, low, high)
    distance = stats.kstest(x.numpy(), BoundedNormal(mean, std, low, high).cdf).statistic
    assert distance <= math.sqrt(math.log(2 / 1e-9) / (2 * n))


def test_kept_says_what_was_found_and_cannot_be_scaled():
    law = module.Kept(0.5, 0.1)
    assert (law.mean_for((3,)), law.std_for((3,))) == (0.5, 0.1)
    assert module.distribution_from_dict(law.to_dict()) == law
    assert law.scaled(1.0) is law
    with pytest.raises(InvalidValueError, match=r"plan\.replace"):
        law.scaled(2.0)
    with pytest.raises(InvalidValueError, match="sigma"):
        module.Kept(0.0, -1.0)
