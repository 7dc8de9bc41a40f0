from __future__ import annotations

import math

import pytest
import torch

from fanin import Fan, InvalidValueError
from fanin._fans import MODES, Layout, exact_fan, shape_fan


def test_modes():
    fan = Fan(100, 400)
    assert [fan.by_mode(m) for m in MODES] == [100, 400, 250, 200]
    with pytest.raises(InvalidValueError, match="Did you mean 'fan_in'"):
        fan.by_mode("fan_ni")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1, "a"])
def test_a_fan_is_finite_and_not_negative(bad):
    with pytest.raises(InvalidValueError, match="fan_in"):
        Fan(bad, 1)


def test_a_fan_is_a_value():
    assert Fan(1, 2) == Fan(1.0, 2.0)
    assert hash(Fan(1, 2)) == hash(Fan(1.0, 2.0))
    assert Fan.from_dict(Fan(1, 2).to_dict()) == Fan(1, 2)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (8, 2, 3, 3), (8, 2, 1, 2, 3)])
def test_shape_fan_is_what_torch_computes(shape):
    theirs = torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
    assert shape_fan(shape) == Fan(*theirs)


def test_shape_fan_needs_two_dimensions():
    with pytest.raises(InvalidValueError, match=r"got shape \(3,\)"):
        shape_fan((3,))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_transposed_mirrors_the_convolution(groups, stride):
    forward = exact_fan(Layout(8, 16, (3, 3), (stride, stride), groups))
    mirror = exact_fan(Layout(16, 8, (3, 3), (stride, stride), groups, transposed=True))
    assert (forward.fan_in, forward.fan_out) == (mirror.fan_out, mirror.fan_in)
