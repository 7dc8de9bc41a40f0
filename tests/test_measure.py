"""`Bench` against float64 arithmetic written out here, over shapes, layouts, dtypes and sizes."""

from __future__ import annotations

import math

import pytest
import torch

from fanin import _measure
from fanin._measure import Bench, Wanted


def measured(value, wanted=Wanted(), bench=None):
    bench = bench or Bench()
    sums = bench.forward(value, wanted)
    bench.finish()
    return sums


def figures(sums):
    """(rms, mean, cosine) as the report computes them."""
    s = sums.named
    scale, b = s.get("scale", 1.0), round(s["samples"])
    rms = scale * math.sqrt(s["squares"] / sums.n)
    cosine = (s["cosines"] - b) / (b * (b - 1)) if b > 1 else None
    return rms, scale * s["total"] / sums.m, cosine


def reference(value):
    x = value.detach().double().reshape(len(value), -1)
    size = x.abs().max()
    rms = float(size * (x / size).square().mean().sqrt())
    unit = x / size
    unit = unit / unit.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    off = cosines[~torch.eye(len(x), dtype=torch.bool)]
    return rms, float(x.mean()), float(off.mean()) if len(off) else None


LAYOUTS = {
    "matrix": lambda x: x(16, 40),
    "image": lambda x: x(4, 6, 5, 7),
    "channels_last": lambda x: x(4, 6, 5, 7).contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x(12, 8, 5).transpose(0, 1),
    "heads": lambda x: x(4, 9, 3, 8).transpose(1, 2),
    "every_other": lambda x: x(8, 30)[:, ::2],
    "one_feature": lambda x: x(9),
    "one_sample": lambda x: x(1, 50),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_all_layouts_and_dtypes(layout, dtype):
    generator = torch.Generator().manual_seed(3)
    value = LAYOUTS[layout](
        lambda *shape: (torch.randn(*shape, generator=generator) + 0.3).to(dtype)
    )
    rms, mean, cosine = figures(measured(value))
    expected = reference(value)
    assert rms == pytest.approx(expected[0], rel=1e-5)  # float32 sums of some hundred terms
    assert mean == pytest.approx(expected[1], abs=1e-5 * expected[0])
    if expected[2] is None:
        assert cosine is None
    else:
        assert cosine == pytest.approx(expected[2], abs=1e-5)


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-20, 1e-3, 1e15, 1e25, 1e37])
def test_float32_is_true_over_its_whole_range(size):
    value = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)) * size
    assert figures(measured(value)) == pytest.approx(reference(value), rel=1e-5, abs=1e-6 * size)


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1.0, 1e200, 1e300])
def test_float64_is_true_over_its_whole_range(size):
    value = (
        torch.randn(16, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * size
    )
    rms, mean, cosine = figures(measured(value))
    expected = reference(value)
    assert rms == pytest.approx(expected[0], rel=1e-12)
    assert mean == pytest.approx(expected[1], rel=1e-9)
    assert cosine == pytest.approx(expected[2], abs=1e-12)


def test_cosine_near_one_keeps_its_distance_from_one():
    """1 - c = d^2 (1 - 1/B) / (1 + d^2) for a common vector plus noise of relative size d."""
    generator = torch.Generator().manual_seed(1)
    common = torch.randn(1, 4096, generator=generator)
    value = common + 1e-4 * torch.randn(16, 4096, generator=generator)
    _, _, cosine = figures(measured(value))
    assert 1 - cosine == pytest.approx(1 - reference(value)[2], rel=1e-6)
    assert 1 - cosine == pytest.approx(
        1e-8, rel=0.1
    )  # 4096 x 16 draws: 0.6 % of noise, mean removed


def test_samples_of_zeros_are_left_out_of_the_cosine():
    value = torch.randn(6, 20)
    value[2] = 0
    keep = value[[0, 1, 3, 4, 5]]
    assert figures(measured(value))[2] == pytest.approx(reference(keep)[2], abs=1e-6)


def test_masked_elements_count_for_nothing():
    value = torch.randn(4, 10)
    hidden = torch.zeros_like(value, dtype=torch.bool)
    hidden[:, 6:] = True
    sums = measured(value.masked_fill(hidden, -math.inf), Wanted(masked=True))
    assert sums.named["masked"] == hidden.sum()
    assert sums.named["squares"] == pytest.approx(float(value[:, :6].square().sum()), rel=1e-5)


@pytest.mark.parametrize("shape", [(8, 24, 5, 5), (8, 24, 64, 64)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_dead_channels_are_found_whole_or_sampled(shape, channels_last):
    value = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).relu_()
    value[:, [0, 5, 23]] = 0
    if channels_last:
        value = value.contiguous(memory_format=torch.channels_last)
    for positive in (True, False):
        named = measured(value, Wanted(units=1, positive=positive)).named
        assert (named["units"], named["alive"]) == (24, 21)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated(dtype):
    value = torch.tensor([[0.0, 0.96, 0.98, -1.0], [0.5, -0.98, 0.1, 0.2]], dtype=dtype)
    assert measured(value, Wanted(range=(-1.0, 1.0))).named["saturated"] == pytest.approx(3 / 8)
    shifted = (value + 1) / 2
    assert measured(shifted, Wanted(range=(0.0, 1.0))).named["saturated"] == pytest.approx(3 / 8)


def test_large_tensors_are_sampled():
    """Rms from all elements; mean and cosine from about `CAP`: within 5 standard errors."""
    generator = torch.Generator().manual_seed(2)
    value = torch.randn(16, 32, 32, 32, generator=generator) + torch.randn(
        1, 32, 32, 32, generator=generator
    )
    sums = measured(value)
    rms, mean, cosine = figures(sums)
    expected = reference(value)
    assert _measure.CAP / 4 < sums.m <= _measure.CAP < sums.n
    assert rms == pytest.approx(expected[0], rel=1e-5)
    features = sums.m / 16
    assert abs(mean - expected[1]) < 5 / math.sqrt(features)
    assert abs(cosine - expected[2]) < 5 / math.sqrt(features)


def test_many_shapes_one_after_the_other_are_all_complete():
    """More shapes than slabs, and more tensors of one shape than a slab holds."""
    bench, generator = Bench(), torch.Generator().manual_seed(0)
    values = [torch.randn(4, f, generator=generator) for f in range(1, 50) for _ in range(2)]
    values += [torch.randn(64, 512, generator=generator) for _ in range(11)]
    sums = [bench.forward(v, Wanted()) for v in values]
    bench.finish()
    for one, value in zip(sums, values, strict=True):
        assert figures(one)[0] == pytest.approx(reference(value)[0], rel=1e-5)


def test_a_tensor_written_afterwards_was_measured_before():
    bench, value = Bench(), torch.ones(4, 8)
    sums = bench.forward(value, Wanted())
    value.zero_()
    bench.finish()
    assert figures(sums)[0] == pytest.approx(1.0)


def test_numbers_that_are_none():
    for number, test in ((math.nan, math.isnan), (math.inf, math.isinf), (-math.inf, math.isinf)):
        for dtype in (torch.float32, torch.float64):
            value = torch.tensor([[1.0, number], [1.0, 2.0]], dtype=dtype)
            assert test(measured(value).named["squares"])


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_gradients(size):
    grad = torch.randn(8, 6, 4, generator=torch.Generator().manual_seed(0)).transpose(0, 2) * size
    sums = Bench().backward(grad)
    expected = float(grad.double().square().mean().sqrt())
    assert math.sqrt(sums.named["squares"] / sums.n) == pytest.approx(expected, rel=1e-5)
