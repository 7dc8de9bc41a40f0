from __future__ import annotations

import math

import pytest

from fanin._errors import InvalidValueError, MissingExtraError, closest, finite, one_of


def test_one_of_names_all_and_the_closest():
    with pytest.raises(
        InvalidValueError,
        match=r"mode must be one of fan_in, fan_out; got 'fan_ni'\. Did you mean 'fan_in'\?",
    ):
        one_of("mode", "fan_ni", ["fan_in", "fan_out"])
    assert one_of("mode", "fan_in", ["fan_in"]) == "fan_in"


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, "x", "1", 10**400, None, True, [1]]
)
def test_finite_refuses(value):
    with pytest.raises(InvalidValueError, match="std must be a finite number >= 0"):
        finite("std", value, least=0)


def test_finite_bounds():
    assert finite("std", 0, least=0) == 0.0
    with pytest.raises(InvalidValueError, match="cut must be a finite number > 0; got 0"):
        finite("cut", 0, above=0)
    with pytest.raises(InvalidValueError):
        finite("std", -1e-300, least=0)


def test_closest_is_silent_for_a_stranger():
    assert closest("zzz", ["fan_in"]) == ""


def test_missing_extra_names_the_pip_line():
    assert "pip install 'fanin[plot]'" in str(MissingExtraError("a figure", "matplotlib", "plot"))
