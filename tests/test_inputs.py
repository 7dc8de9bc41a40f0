from __future__ import annotations

from collections import UserDict, namedtuple

from fanin import Inputs
from fanin._inputs import as_inputs


def test_forms():
    point = namedtuple("point", "x y")(1, 2)
    for given, args, kwargs in [
        (5, (5,), {}),
        ((1, 2), (1, 2), {}),
        ({"a": 1}, (), {"a": 1}),
        (UserDict(a=1), (), {"a": 1}),
        ([1, 2], ([1, 2],), {}),
        (point, (point,), {}),
        (Inputs(1, b=2), (1,), {"b": 2}),
    ]:
        made = as_inputs(given)
        assert (made.args, made.kwargs) == (args, kwargs)


def test_prints():
    assert repr(Inputs(1, mask=None)) == "Inputs(1, mask=None)"
