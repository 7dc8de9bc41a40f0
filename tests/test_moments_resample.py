"""Resizing: every mode and argument against torch's own matrix; reading anywhere against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exactly import check_linear
from fanin._moments import registry, resample
from fanin._moments.domain import full, measured
from fanin._moments.registry import FORWARD
from monte_carlo import Case, check_backward, check_forward
from tensors import correlated, stratified

LINE = stratified(1, 2, 6, dim=2)
IMAGE = correlated(1, 2, 4, 5, mean=0.5)
CUBE = correlated(1, 1, 2, 3, 2)


def plain(output_size, **more):
    return dict(output_size=output_size, **more)


LINEAR = [
    Case("upsample_nearest1d", dict(x=LINE, **plain([12]), scales=None)),
    Case("upsample_nearest1d", dict(x=LINE, **plain([4]), scales=None), label="down"),
    Case("upsample_nearest2d", dict(x=IMAGE, **plain([8, 5]), scales_h=None, scales_w=None)),
    Case(
        "upsample_nearest2d",
        dict(x=IMAGE, **plain([6, 9]), scales_h=1.6, scales_w=1.8),
        label="scales",
    ),
    Case(
        "upsample_nearest3d",
        dict(x=CUBE, **plain([4, 3, 3]), scales_d=None, scales_h=None, scales_w=None),
    ),
    Case("_upsample_nearest_exact1d", dict(x=LINE, **plain([9]), scales=None)),
    Case("_upsample_nearest_exact2d", dict(x=IMAGE, **plain([2, 7]), scales_h=None, scales_w=None)),
    Case(
        "_upsample_nearest_exact3d",
        dict(x=CUBE, **plain([3, 6, 2]), scales_d=None, scales_h=None, scales_w=None),
    ),
    Case("upsample_linear1d", dict(x=LINE, **plain([11]), align_corners=False, scales=None)),
    Case(
        "upsample_linear1d",
        dict(x=LINE, **plain([4]), align_corners=True, scales=None),
        label="aligned",
    ),
    Case(
        "upsample_bilinear2d",
        dict(x=IMAGE, **plain([8, 10]), align_corners=False, scales_h=2.0, scales_w=2.0),
    ),
    Case(
        "upsample_bilinear2d",
        {"x": IMAGE, "output_size": None, "align_corners": False, "scale_factors": [1.5, 1.3]},
        label="factors",
    ),
    Case(
        "upsample_bilinear2d",
        dict(x=IMAGE, **plain([2, 3]), align_corners=True, scales_h=None, scales_w=None),
        label="down",
    ),
    Case(
        "upsample_trilinear3d",
        dict(
            x=CUBE,
            **plain([3, 5, 4]),
            align_corners=False,
            scales_d=None,
            scales_h=None,
            scales_w=None,
        ),
    ),
    Case(
        "upsample_bicubic2d",
        dict(x=IMAGE, **plain([7, 5]), align_corners=False, scales_h=None, scales_w=None),
    ),
    Case(
        "upsample_bicubic2d",
        dict(x=IMAGE, **plain([7, 9]), align_corners=True, scales_h=None, scales_w=None),
        label="aligned",
    ),
    Case(
        "_upsample_bilinear2d_aa",
        dict(x=IMAGE, **plain([2, 3]), align_corners=False, scales_h=None, scales_w=None),
    ),
    Case(
        "_upsample_bicubic2d_aa",
        dict(x=IMAGE, **plain([3, 8]), align_corners=False, scales_h=None, scales_w=None),
    ),
    Case(
        "_upsample_lanczos2d_aa",
        dict(x=IMAGE, **plain([2, 3]), align_corners=False, scales_h=None, scales_w=None),
    ),
    Case(
        "affine_grid_generator",
        {"theta": correlated(2, 2, 3), "size": [2, 1, 3, 4], "align_corners": False},
    ),
    Case(
        "affine_grid_generator",
        {"theta": correlated(1, 3, 4), "size": [1, 1, 2, 3, 2], "align_corners": True},
        label="volume",
    ),
    Case(
        "cudnn_affine_grid_generator",
        {"theta": correlated(2, 2, 3), "size": [2, 1, 3, 4]},
        call=lambda theta, size: torch.ops.aten.affine_grid_generator(theta, size, False),
    ),
]


@pytest.mark.parametrize("case", LINEAR, ids=str)
def test_linear(case):
    # torch's antialiased and affine coordinates are rounded to float32.
    check_linear(case, rtol=1e-5 if "affine" in case.op or "aa" in case.op else 1e-9)


def sampling(mode, padding):
    """Coordinates drawn anew: one for each row and column, uniform over the image."""

    def call(x, grid, **given):
        k = grid.shape[-1]
        axes = [torch.rand(n, dtype=grid.dtype) * 2 - 1 for n in grid.shape[1:-1]]
        mesh = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1).expand(grid.shape)
        sampler = torch.ops.aten.grid_sampler_3d if k == 3 else torch.ops.aten.grid_sampler_2d
        return sampler(x, grid - grid.detach() + mesh, mode, padding, True)

    return call


UNIFORM = full((2, 6, 7, 2), 1 / 3)
PIXELS = full((2, 3, 9, 8), 1.0)
ANYWHERE = [
    *(
        Case(
            op,
            {
                "x": PIXELS,
                "grid": UNIFORM,
                "interpolation_mode": 0,
                "padding_mode": 1,
                "align_corners": True,
            },
            call=sampling(0, 1),
            rtol=0.05,
            grad_rtol=0.15,
        )
        for op in ("grid_sampler", "grid_sampler_2d", "_grid_sampler_2d_cpu_fallback")
    ),
    Case(
        "grid_sampler",
        {
            "x": correlated(2, 3, 9, 8),
            "grid": UNIFORM,
            "interpolation_mode": 0,
            "padding_mode": 1,
            "align_corners": True,
        },
        call=sampling(0, 1),
        label="correlated",
        rtol=0.05,
        grad_rtol=0.15,
    ),
    Case(
        "grid_sampler",
        {
            "x": PIXELS,
            "grid": UNIFORM,
            "interpolation_mode": 1,
            "padding_mode": 1,
            "align_corners": True,
        },
        call=sampling(1, 1),
        label="nearest",
        rtol=0.03,
        backward=False,
    ),
    Case(
        "grid_sampler",
        {
            "x": PIXELS,
            "grid": UNIFORM,
            "interpolation_mode": 2,
            "padding_mode": 1,
            "align_corners": True,
        },
        call=sampling(2, 1),
        label="cubic",
        rtol=0.15,
        backward=False,
    ),
    Case(
        "cudnn_grid_sampler",
        {"x": PIXELS, "grid": UNIFORM},
        call=sampling(0, 1),
        rtol=0.4,
        backward=False,
    ),
    Case(
        "grid_sampler_3d",
        {
            "x": full((1, 2, 5, 4, 5), 1.0),
            "grid": full((1, 3, 4, 4, 3), 1 / 3),
            "interpolation_mode": 0,
            "padding_mode": 1,
            "align_corners": True,
        },
        call=sampling(0, 1),
        rtol=0.08,
        grad_rtol=0.2,
    ),
]


@pytest.mark.parametrize("case", ANYWHERE, ids=str)
def test_sampled(case):
    torch.manual_seed(0)
    check_forward(case)


@pytest.mark.parametrize("case", [c for c in ANYWHERE if c.backward], ids=str)
def test_gradient_of_sampled(case):
    torch.manual_seed(0)
    check_backward(case)


def test_zeros_beyond_the_image_are_counted():
    """Of coordinates that are uniform on [-2, 2] a quarter lies inside."""
    grid = (
        torch.rand(2, 40, 40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        * 4
        - 2
    )
    known = measured(grid.numpy())
    out = FORWARD["grid_sampler"](
        x=PIXELS, grid=known, interpolation_mode=1, padding_mode=0, shapes=[(2, 3, 40, 40)]
    )
    assert out.second_moment == pytest.approx(0.25, abs=0.02)
    unknown = FORWARD["grid_sampler"](
        x=PIXELS,
        grid=full((2, 5, 5, 2), 1.0),
        padding_mode=0,
        interpolation_mode=1,
        shapes=[(2, 3, 5, 5)],
    )
    assert unknown.second_moment == pytest.approx(0.6827**2, abs=1e-3)


def test_pixels_repeated_a_whole_number_of_times_stay_apart_without_loss():
    up = FORWARD["upsample_nearest2d"](
        x=IMAGE, op="upsample_nearest2d", output_size=[8, 10], shapes=[(1, 2, 8, 10)]
    )
    assert up.dims[2:] == (((4,), (2,)), ((5,), (2,)))
    assert np.isclose(up.second_moment, IMAGE.second_moment)


def test_every_rule_has_a_case():
    ops = {case.op for case in [*LINEAR, *ANYWHERE]}
    for table in (registry.FORWARD, registry.BACKWARD):
        assert {op for op, r in table.items() if r.function.__module__ == resample.__name__} == ops
