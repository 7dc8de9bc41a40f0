"""Convolutions: taps are counted pair by pair, so rules are exact for independent tensors."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch

from fanin._moments import conv, registry
from fanin._moments.domain import concatenated, constant, full
from fanin._moments.taps import Taps, unfolding
from monte_carlo import Case as AnyCase
from monte_carlo import check_backward, check_forward
from tensors import correlated, stratified

Case = partial(AnyCase, draws=100)


def plain(x, weight, bias=None, **options):
    """A convolution with everything by default but what is given."""
    return {
        "x": x,
        "weight": weight,
        "bias": bias,
        "stride": [1],
        "padding": [0],
        "dilation": [1],
        "groups": 1,
        **options,
    }


def turned(x, weight, bias=None, **options):
    return plain(x, weight, bias, **{"output_padding": [0], **options})


def among_zeros(x, before, after, dim=2):
    """A kernel with taps of zeros before and after, on one axis."""
    shapes = [(*x.shape[:dim], n, *x.shape[dim + 1 :]) for n in (before, after)]
    pieces = [constant(shapes[0], 0.0), x, constant(shapes[1], 0.0)]
    return concatenated([p for p in pieces if p.shape[dim]], dim)


LINE, PLANE = correlated(2, 4, 11, mean=0.3), correlated(2, 3, 6, 7)
CASES = [
    Case("conv1d", plain(LINE, correlated(5, 4, 3), correlated(5))),
    Case("conv1d", plain(LINE, correlated(5, 4, 3), padding=[1]), label="padded"),
    Case("conv1d", plain(LINE, correlated(5, 4, 4), padding="same"), label="same"),
    Case("conv1d", plain(LINE, correlated(5, 4, 3), padding="valid"), label="valid"),
    Case("conv1d", plain(LINE, correlated(4, 1, 4), padding=[3], groups=4), label="causal-depthwise"),
    Case("conv1d", plain(LINE, correlated(6, 2, 3), stride=[2], dilation=[2], padding=[2], groups=2), label="all"),
    Case("conv1d", plain(LINE, correlated(3, 4, 11)), label="whole"),
    Case("conv1d", plain(correlated(4, 11), correlated(5, 4, 1)), label="unbatched"),
    Case("conv1d", plain(stratified(2, 4, 12, dim=2), correlated(5, 4, 3), padding=[1]), label="strata"),
    Case("conv1d", plain(stratified(2, 9, 7, dim=1), correlated(5, 9, 3), padding=[1]), label="split-channels"),
    Case("conv2d", plain(PLANE, correlated(4, 3, 3, 3), correlated(4), padding=[1])),
    Case("conv2d", plain(PLANE, correlated(4, 3, 3, 2), stride=[2, 1], padding=[0, 1], dilation=[1, 2]), label="uneven"),
    Case("conv2d", plain(PLANE, correlated(4, 3, 1, 1)), label="pointwise"),
    Case("conv2d", plain(PLANE, correlated(3, 1, 3, 3), padding="same", groups=3), label="depthwise"),
    Case("conv2d", plain(PLANE, correlated(4, 3, 3, 3), stride=[3, 3]), label="patches"),
    Case("conv2d", plain(PLANE, correlated(4, 3, 6, 7)), label="whole"),
    Case("conv3d", plain(correlated(2, 2, 3, 4, 5), correlated(3, 2, 2, 3, 2), correlated(3), stride=[1, 2, 1], padding=[1, 1, 0])),
    Case("conv_transpose1d", turned(LINE, correlated(4, 5, 3), correlated(5))),
    Case("conv_transpose1d", turned(LINE, correlated(4, 2, 4), stride=[2], padding=[1], groups=2), label="groups"),
    Case("conv_transpose1d", turned(LINE, correlated(4, 5, 3), stride=[3], padding=[2], dilation=[2], output_padding=[1]), label="all"),
    Case("conv_transpose1d", turned(LINE, correlated(4, 5, 2), stride=[3]), label="gaps"),
    Case("conv_transpose2d", turned(correlated(2, 3, 4, 5), correlated(3, 4, 4, 4), correlated(4), stride=[2, 2], padding=[1, 1])),
    Case("conv_transpose2d", turned(correlated(2, 3, 4, 5), correlated(3, 4, 2, 2), stride=[2, 2]), label="tiles"),
    Case("conv_transpose3d", turned(correlated(2, 2, 2, 3, 3), correlated(2, 3, 2, 2, 3), stride=[2, 1, 2], padding=[0, 1, 1], output_padding=[0, 0, 1])),
    Case("convolution", turned(LINE, correlated(5, 4, 3), padding=[1], transposed=False)),
    Case("convolution", turned(LINE, correlated(4, 5, 3), correlated(5), stride=[2], output_padding=[1], transposed=True), label="transposed"),
    Case("_convolution", {**turned(LINE, correlated(5, 4, 3), padding=[1], transposed=False),
                          "benchmark": False, "deterministic": False, "cudnn_enabled": True, "allow_tf32": True}),
    Case("conv1d", plain(LINE, among_zeros(correlated(5, 4, 1), 1, 1), padding=[1]), label="centre"),
    Case("conv1d", plain(LINE, among_zeros(correlated(5, 4, 2), 0, 3), stride=[2], dilation=[2], padding=[3]), label="first"),
    Case("conv2d", plain(PLANE, among_zeros(among_zeros(correlated(4, 3, 1, 1), 1, 1), 1, 1, 3), padding=[1]), label="centre"),
    Case("conv_transpose1d", turned(LINE, among_zeros(correlated(4, 5, 1), 2, 1), stride=[2], padding=[1]), label="third"),
    Case("conv_tbc", {"x": correlated(9, 2, 4), "weight": correlated(3, 4, 5), "bias": correlated(5), "pad": 1}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case):
    check_forward(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward(case):
    check_backward(case)


@pytest.mark.parametrize("table", [registry.FORWARD, registry.BACKWARD])
def test_every_rule_has_a_case(table):
    ops = {op for op, rule in table.items() if rule.function.__module__ == conv.__name__}
    assert ops == {case.op for case in CASES}


GEOMETRIES = [
    Taps(*t) for t in itertools.product((1, 6), (7,), (1, 3), (1, 2), (0, 2), (1, 2), (False, True))
]


@pytest.mark.parametrize("taps", GEOMETRIES, ids=str)
@pytest.mark.parametrize("segments", [1, 2])
def test_pairs_are_counted_exactly(taps, segments):
    """Against a loop over all pairs of (output, tap)."""
    atom = (taps.size,) if segments == 1 or taps.size < 3 else (2, taps.size - 2)
    plan = unfolding((atom,) if taps.size > 1 else (), taps)
    (positions,), reads = plan.positions, taps.reads()
    of_output = np.repeat(np.arange(len(positions)), positions)
    of_input = np.repeat(np.arange(len(atom)), atom)
    columns = len(atom) + len(atom) ** 2
    counted = np.zeros((len(positions) + len(positions) ** 2, 2, columns))
    for (p, k), (q, m) in itertools.product(np.ndindex(reads.shape), repeat=2):
        u, v = reads[p, k], reads[q, m]
        if u >= 0 and v >= 0:
            i, j, a, b = of_output[p], of_output[q], of_input[u], of_input[v]
            row = i if p == q else len(positions) + i * len(positions) + j
            column = a if u == v else len(atom) + a * len(atom) + b
            counted[row, int(k != m), column] += 1
    rows = np.zeros((counted.shape[0], 2))
    for p, q in itertools.product(range(taps.out), repeat=2):
        i, j = of_output[p], of_output[q]
        row = i if p == q else len(positions) + i * len(positions) + j
        rows[row] += [taps.kernel, taps.kernel * (taps.kernel - 1)]
    expected = counted / np.maximum(rows, 1e-300)[:, :, None]
    if taps.size == 1:
        expected = expected[:, :, :1]
    if taps.kernel == 1:
        expected = expected[:, :1]
    np.testing.assert_allclose(plan.pairs, expected.reshape(plan.pairs.shape), atol=1e-12)


def test_padding_takes_the_fraction_of_valid_taps():
    """A 3x3 kernel on 8x8 with padding 1: (22/24)^2 = .8403 of its taps are inside."""
    y = registry.FORWARD["conv2d"](
        op="conv2d", **plain(full((1, 16, 8, 8), 1.0), full((4, 16, 3, 3), 1 / 144), padding=[1])
    )
    assert y.second_moment == pytest.approx((22 / 24) ** 2)


def test_strata_of_positions_survive():
    """A sequence whose first third is twice as large stays so, and the kernel blurs the border."""
    x = stratified(2, 4, 12, dim=2)
    y = registry.FORWARD["conv1d"](op="conv1d", **plain(x, full((5, 4, 3), 0.1), padding=[1]))
    assert y.dims[2] == ((4, 8),)
    w = torch.nn.functional.conv1d
    rng = np.random.default_rng(0)
    from fanin._moments.domain import drawn

    real = []
    for _ in range(300):
        weight = torch.as_tensor(drawn(full((5, 4, 3), 0.1), rng))
        real.append(
            w(torch.as_tensor(drawn(x, rng)), weight, padding=1).square().mean((0, 1)).numpy()
        )
    found = np.mean(real, 0)
    # 300 draws of 2 * 5 numbers of which at least 5 are independent: 3 % standard error a position.
    assert y.q[0, 0, 0] == pytest.approx(found[:4].mean(), rel=0.1)
    assert y.q[0, 0, 1] == pytest.approx(found[4:].mean(), rel=0.1)


@pytest.mark.parametrize("shared", [0.0, 0.7, 1.0])
def test_a_channel_and_its_own_filter_are_large_together(shared):
    """relu(x) + relu(depthwise(relu(x))), ``shared`` the part of x that all positions of a channel have.

    60 draws of 512 channels; a tenth of those carry E y^2: 2 % of sampling error. As independent tensors
    the sum has 13 % less at shared = 1.
    """
    forward, rng = registry.FORWARD, torch.Generator().manual_seed(0)
    x = full((1, 512, 9, 9), 1.0)
    x.q = x.q.copy()
    x.q[0, :, :] = shared
    x.q[0, 0, 0] = 1.0
    size = full((512, 1, 3, 3), 0.2)
    a = forward["relu"](op="relu", x=x)
    y = forward["conv2d"](op="conv2d", **plain(a, size, padding=[1], groups=512))
    total = forward["add"](op="add", x=a, other=forward["relu"](op="relu", x=y), alpha=1.0)
    real = []
    for _ in range(60):
        common = torch.randn(1, 512, 1, 1, generator=rng) * shared**0.5
        z = (common + (1 - shared) ** 0.5 * torch.randn(1, 512, 9, 9, generator=rng)).relu()
        w = 0.2**0.5 * torch.randn(512, 1, 3, 3, generator=rng)
        out = z + torch.nn.functional.conv2d(z, w, padding=1, groups=512).relu()
        real.append(out.square().mean().item())
    assert total.second_moment == pytest.approx(np.mean(real), rel=0.05)
