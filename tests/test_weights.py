"""Moments of parameters as they are and as a plan would draw them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import fanin
from fanin._moments.domain import Abstract, average
from fanin._moments.strata import same, shares
from fanin._weights import of_model, of_plan, of_tensor
from fanin.distributions import Constant, DeltaOrthogonal, LooksLinear, TruncatedNormal


def by_segment(x: Abstract):
    """Second moment of each segment."""
    return x.q[tuple(slice(n) for n in x.mean.shape)]


def planned(module, **laws):
    plan = fanin.plan(module, scheme="torch")
    for name, law in laws.items():
        plan = plan.replace(name.replace("__", "."), law, "of this test")
    return plan


def test_of_plan_is_what_the_plan_draws():
    module = nn.Linear(300, 200)
    plan = planned(module, weight=TruncatedNormal(0.5, 2.0), bias=Constant(0.25))
    found = of_plan(plan)
    plan.fill_(module)
    for name, tensor in module.named_parameters():
        n = tensor.numel()
        # 5 standard errors of a mean square; a constant has none
        bound = 5 * float(tensor.detach().square().std()) / n**0.5 + 1e-7
        assert abs(found[name].second_moment - float(tensor.detach().square().mean())) < bound
        assert found[name].shape == tuple(tensor.shape)
    assert found["bias"].average_mean == 0.25


@pytest.mark.parametrize(
    "shape", [(24, 16, 3), (16, 8, 3, 5), (12, 12, 1, 3), (9, 9, 2, 2), (12, 8, 3, 3, 3)]
)
def test_delta_orthogonal_is_all_in_its_centre(shape):
    """Planned, and read from the numbers: the same segments, the same mean squares."""
    assert math.prod(shape[:2]) > 64  # fewer numbers are kept as they are
    kinds = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
    module = kinds[len(shape)](shape[1], shape[0], shape[2:], bias=False)
    plan = planned(module, weight=DeltaOrthogonal(1.5))
    drawn = of_plan(plan)["weight"]
    plan.fill_(module)
    seen = of_model(module)["weight"]
    assert drawn.dims == seen.dims
    assert drawn.second_moment == pytest.approx(
        float(module.weight.detach().square().mean()), rel=1e-5
    )
    assert np.allclose(by_segment(drawn), by_segment(seen), rtol=1e-5)
    assert np.count_nonzero(by_segment(drawn)) == 1


def test_packed_parts_are_segments():
    module = nn.MultiheadAttention(64, 4)
    plan = fanin.plan(module, scheme="kaiming")
    row = plan["in_proj_weight"]
    found = of_plan(plan)["in_proj_weight"]
    plan.fill_(module)
    weight = module.in_proj_weight.detach()
    assert found.second_moment == pytest.approx(
        float(weight.square().mean()), abs=5 * float(weight.square().std()) / weight.numel() ** 0.5
    )
    assert found.shape == row.shape


def test_tied_names_share_their_moments():
    module = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50, bias=False))
    module[1].weight = module[0].weight
    found = of_model(module)
    assert found["0.weight"] is found["1.weight"]
    drawn = of_plan(fanin.plan(module))
    assert drawn["0.weight"] is drawn["1.weight"]


def test_meta_and_unwanted_are_left_out():
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, device="meta"), nn.BatchNorm1d(2))
    found = of_model(module, but=("0.bias",))
    assert set(found) == {
        "0.weight", "2.weight", "2.bias", "2.running_mean", "2.running_var", "2.num_batches_tracked"
    }  # fmt: skip


def test_chance_is_not_taken_for_correlation():
    """Independent elements have pair moments of 0, exactly; a common offset and repeated rows show."""
    torch.manual_seed(0)
    x = torch.randn(400, 300)
    plain = of_tensor(x)
    assert plain.q[1, 0] == plain.q[0, 1] == plain.q[1, 1] == 0.0
    assert plain.average_mean == 0.0
    assert of_tensor(x + 0.5).q[1, 1] == pytest.approx(0.25, rel=0.05)
    repeated = of_tensor(x[:1].expand(400, 300).contiguous())
    assert repeated.q[1, 0] == pytest.approx(repeated.q[0, 0], rel=1e-4)  # sums of float32
    assert abs(repeated.q[0, 1]) < 5 * 2**0.5 / 300  # one row's pairs


def test_large_tensors_are_read_in_part_but_measured_whole():
    x = torch.zeros(4096, 64)
    x[1::2] = 2.0  # every second row: a part that skips rows would see one kind alone
    found = of_tensor(x)
    assert found.second_moment == pytest.approx(2.0)
    assert found.shape == (4096, 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_dtypes(dtype):
    torch.manual_seed(0)
    x = torch.randn(64, 64, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
    wanted = float(x.abs().double().square().mean())
    assert of_tensor(x).second_moment == pytest.approx(wanted, rel=1e-3)


def test_small_and_integer_tensors_are_known():
    x = torch.arange(6).reshape(2, 3)
    found = of_tensor(x)
    assert np.array_equal(found.known, x.numpy())
    assert found.average_mean == pytest.approx(2.5)


def test_segments_average_to_the_whole():
    found = of_plan(planned(nn.Conv1d(4, 4, 5, bias=False), weight=DeltaOrthogonal()))["weight"]
    assert average(by_segment(found), [shares(a) for a in found.atoms]) == pytest.approx(
        found.second_moment
    )
    assert same(found.atoms[-1]).sum() == pytest.approx(1.0)


MIRRORED = [
    (LooksLinear(1.3), (80, 60)),
    (LooksLinear(1.3, inputs=False), (80, 30)),
    (LooksLinear(1.3, outputs=False), (30, 80)),
    (LooksLinear(1.3), (24, 16, 3, 3)),
    (LooksLinear(1.3, centre=True), (24, 16, 3, 3)),
    (LooksLinear(1.3, inputs=False, centre=True), (24, 9, 3)),
]


@pytest.mark.parametrize(("law", "shape"), MIRRORED, ids=str)
def test_mirror_images_are_anticorrelated(law, shape):
    """Planned, and read from the numbers; the other half's same element is the negative."""
    kinds = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d}
    module = kinds[len(shape)](shape[1], shape[0], *([shape[2:]] if shape[2:] else []), bias=False)
    plan = planned(module, weight=law)
    drawn = of_plan(plan)["weight"]
    plan.fill_(module)
    seen = of_model(module)["weight"]
    assert drawn.dims == seen.dims
    assert np.allclose(drawn.q, seen.q, rtol=1e-4)
    assert drawn.second_moment == pytest.approx(law.std_for(shape) ** 2)
    assert drawn.q.min() == pytest.approx(-drawn.q.max())
