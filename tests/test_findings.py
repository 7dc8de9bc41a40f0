"""Each rule on signals made for it: what it must see, and what it must not."""

from __future__ import annotations

import pytest

from fanin import InvalidValueError, Layer, Signal, SignalReport
from fanin._findings import RULES, Limits, find


def report(fields, n=20, op="linear", **more):
    """n layers whose signal's fields are functions of the layer's index."""
    layers = tuple(
        Layer(f"h.{i}", op, (8, 64), None, Signal(**{k: f(i) for k, f in fields.items()}))
        for i in range(n)
    )
    return SignalReport(layers, **more)


def codes(made, limits=None):
    return [f.code for f in find(made, limits)]


def test_a_level_signal_is_fine():
    assert (
        codes(
            report(
                {"act_rms": lambda i: 1.0, "grad_rms": lambda i: 0.1, "correlation": lambda i: 0.3}
            )
        )
        == []
    )


@pytest.mark.parametrize("field", ["act_rms", "grad_rms"])
@pytest.mark.parametrize(
    ("step", "code"), [(2.0, "FAN101"), (0.5, "FAN102"), (1.1, None), (0.9, None)]
)
def test_growth_over_the_whole_depth(field, step, code):
    """17 steps from the first three layers to the last three: 2^17 is beyond 1e3, 1.1^17 = 5 is not."""
    power = (lambda i: step**i) if field == "act_rms" else (lambda i: step ** (20 - i))
    found = codes(report({field: power}))
    assert found == ([code] if code else [])


def test_limits_can_be_set():
    made = report({"act_rms": lambda i: 1.1**i})
    assert codes(made, Limits(growth=2.0)) == ["FAN101"]
    with pytest.raises(InvalidValueError, match="growth"):
        Limits(growth=-1)


def test_infinite_numbers_explode():
    made = report({"act_rms": lambda i: 1.0 if i < 10 else float("inf")})
    assert "FAN101" in codes(made)


def test_collapse_needs_inputs_that_differ():
    fields = {"act_rms": lambda i: 1.0, "correlation": lambda i: 0.0 if i < 5 else 0.99999}
    assert codes(report(fields)) == ["FAN104"]
    assert codes(report(fields, inputs=Signal(correlation=0.99999))) == []


def test_dead_units():
    fields = {"act_rms": lambda i: 1.0, "dead": lambda i: 0.9 if i == 7 else 0.1}
    found = find(report(fields, op="relu"))
    assert [(f.code, f.where) for f in found] == [("FAN103", "h.7")]


def test_saturation():
    fields = {"act_rms": lambda i: 1.0, "saturated": lambda i: 0.8 if i > 3 else 0.0}
    found = find(report(fields, op="tanh"))
    assert [(f.code, f.where) for f in found] == [("FAN105", "h.4")]


def test_loss():
    level = {"act_rms": lambda i: 1.0}
    assert codes(report(level, loss=2.4, chance=2.3)) == []
    assert codes(report(level, loss=9.0, chance=2.3)) == ["FAN106"]
    assert codes(report(level, loss=9.0)) == []


def test_denormals():
    made = report({"act_rms": lambda i: 1.0, "grad_rms": lambda i: 1e-39}, n=2)
    assert codes(made) == ["FAN107"]
    assert codes(SignalReport(made.layers, dtype="float64")) == []


def test_every_finding_says_why_and_what_to_do():
    bad = report(
        {
            "act_rms": lambda i: 3.0**-i,
            "grad_rms": lambda i: 3.0 ** (i - 90),
            "correlation": lambda i: 1.0 - 10.0**-i,
            "dead": lambda i: 0.95,
            "saturated": lambda i: 0.95,
        },
        loss=50.0,
        chance=2.3,
    )
    found = find(bad)
    assert {f.code for f in found} >= {"FAN102", "FAN103", "FAN104", "FAN105", "FAN106", "FAN107"}
    assert all(f.message and f.why and f.fix for f in found)
    severities = [f.severity for f in found]
    assert severities == sorted(severities)  # errors first
    assert len(RULES) >= 7


def test_nothing_known_finds_nothing():
    assert find(SignalReport(())) == ()
    assert codes(report({"act_mean": lambda i: 0.0})) == []
