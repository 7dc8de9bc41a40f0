from __future__ import annotations

import pytest

from fanin import TargetError
from fanin._override import parse_overrides
from fanin.distributions import DISTRIBUTIONS, Constant, Normal
from fanin.initializers import KaimingNormal


def test_in_order():
    given = [
        "*.bias=Constant(-1)",
        "token=Normal(0.02, mean=1e-3)",
        "w=KaimingNormal('fan_out', nonlinearity='relu')",
    ]
    assert list(parse_overrides(given).items()) == [
        ("*.bias", Constant(-1)),
        ("token", Normal(0.02, mean=1e-3)),
        ("w", KaimingNormal("fan_out", nonlinearity="relu")),
    ]


def test_every_distribution_reads_back():
    for law in (
        Constant(2.0),
        Normal(0.5, 1.0),
        DISTRIBUTIONS["TruncatedNormal"](0.1),
        DISTRIBUTIONS["Orthogonal"](2.0),
    ):
        assert parse_overrides([f"w={law!r}"]) == {"w": law}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("token", "must be GLOB=Name"),
        ("=Normal(1)", "must be GLOB=Name"),
        ("token=0.02", "must be GLOB=Name"),
        ("token=Normal(", "must be GLOB=Name"),
        ("token=Norml(1)", "Did you mean 'Normal'"),
        ("token=Normal(-1)", "std"),
        ("token=Normal()", "std"),
        ("token=Normal(1, 2, 3)", "argument"),
        ("token=Normal(__import__('os').getpid())", "malformed"),
        ("token=os.system('x')", "must be GLOB=Name"),
    ],
)
def test_errors(text, says):
    with pytest.raises(TargetError, match=says):
        parse_overrides([text])
