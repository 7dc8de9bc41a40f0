from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from fanin import InitPlan, Packed, PlanError, Row
from fanin._errors import InvalidValueError
from fanin.distributions import Constant, Normal, Orthogonal, TruncatedNormal, Uniform
from fanin.initializers import KaimingNormal


def row(name, distribution=None, shape=(64, 32), **more):
    distribution = distribution or Normal(0.1)
    fields = {
        "name": name, "aliases": (), "shape": shape, "dtype": "float32", "role": "linear", "fan_in": 32.0,
        "fan_out": 64.0, "nonlinearity": "relu", "branch_depth": 0, "distribution": distribution,
        "std": distribution.std_for(shape), "reasons": ("first",), "packed": (),
    }  # fmt: skip
    return Row(**{**fields, **more})


def packed(name, start, stop, distribution):
    return Packed(
        name, 0, start, stop, 32.0, 32.0, distribution, distribution.std_for((stop - start, 32))
    )


@pytest.fixture
def plan():
    q, k = packed("q", 0, 32, Normal(0.1)), packed("k", 32, 64, Normal(0.3))
    return InitPlan(
        (
            row("h.0.mlp.weight"),
            row(
                "h.0.mlp.bias",
                Constant(0.0),
                (64,),
                role="bias",
                fan_in=None,
                fan_out=None,
                nonlinearity=None,
            ),
            row("h.1.mlp.weight", TruncatedNormal(0.02), aliases=("head.weight",)),
            row("h.1.attn", Normal(0.1), packed=(q, k), std=math.sqrt((0.01 + 0.09) / 2)),
            row("h.2.weight", Orthogonal(1.0)),
            row("h.3.weight", Uniform(-0.1, 0.3)),
        ),
        "auto",
        notes=("a note",),
    )


def test_is_a_sequence(plan):
    assert len(plan) == 6
    assert [r.name for r in plan] == list(plan.names)
    assert plan[0] is plan["h.0.mlp.weight"]
    assert plan["head.weight"].name == "h.1.mlp.weight"
    assert "head.weight" in plan
    assert "nothing" not in plan
    with pytest.raises(KeyError, match=r"h\.0\.mlp\.weight"):
        plan["h.0.mlp.wieght"]


def test_is_a_value(plan):
    assert plan == replace(plan)
    assert hash(plan) == hash(replace(plan))
    assert plan != plan.scaled("h.2.weight", 2, "why")


def test_names_are_unique():
    with pytest.raises(PlanError, match="names a twice"):
        InitPlan((row("a"), row("b", aliases=("a",))))


def test_json_both_ways(plan):
    again = InitPlan.from_json(plan.to_json())
    assert again == plan
    assert again.hash() == plan.hash()
    assert json.loads(plan.to_json())["format"] == "fanin-plan-1"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": "fanin-plan-1"}', '{"format": "other"}']
)
def test_unreadable_json_is_a_plan_error(text):
    with pytest.raises(PlanError):
        InitPlan.from_json(text)


def test_damaged_rows_are_a_plan_error(plan):
    for break_it in (
        lambda d: d["rows"][0].pop("shape"),
        lambda d: d["rows"][0].__setitem__("distribution", {"kind": "Normall", "std": 1}),
        lambda d: d["rows"][0].__setitem__("distribution", {"kind": "Normal", "std": -1}),
        lambda d: d["rows"][0].__setitem__("colour", "red"),
        lambda d: d.__setitem__("rng", "fanin-0"),
    ):
        data = plan.to_dict()
        break_it(data)
        with pytest.raises(PlanError):
            InitPlan.from_dict(data)


def test_hash_counts_values_and_not_words(plan):
    assert replace(plan, notes=()).hash() == plan.hash()
    reworded = replace(plan, rows=tuple(replace(r, reasons=("other",)) for r in plan))
    assert reworded.hash() == plan.hash()
    assert plan.scaled("h.2.weight", 2.0, "why").hash() != plan.hash()


def test_select_by_glob(plan):
    part = plan.select("h.*.mlp.*")
    assert part.names == ("h.0.mlp.weight", "h.0.mlp.bias", "h.1.mlp.weight")
    assert part.partial
    with pytest.raises(PlanError, match=r"'h\.9\.\*' matches no parameter"):
        plan.select("h.9.*")


def test_replace_carries_its_reason(plan):
    new = plan.replace("h.0.mlp.weight", Normal(0.5), "because")
    assert new["h.0.mlp.weight"].distribution == Normal(0.5)
    assert new["h.0.mlp.weight"].std == 0.5
    assert new["h.0.mlp.weight"].reasons == ("first", "because")
    assert new["h.2.weight"] == plan["h.2.weight"]
    assert plan["h.0.mlp.weight"].std == 0.1


def test_replace_with_an_initializer_uses_the_rows_fan(plan):
    new = plan.replace("h.0.mlp.weight", KaimingNormal(nonlinearity="relu"), "he")
    assert new["h.0.mlp.weight"].std == pytest.approx(math.sqrt(2 / 32), rel=1e-12)
    with pytest.raises(PlanError, match=r"h\.0\.mlp\.bias .* has no fans"):
        plan.replace("h.0.mlp.bias", KaimingNormal(), "he")
    with pytest.raises(PlanError, match="expected a distribution"):
        plan.replace("h.0.mlp.bias", 0.5, "no")


def test_scaled(plan):
    new = plan.scaled("h.*", 0.5, "half")
    for old, made in zip(plan, new, strict=True):
        assert made.std == pytest.approx(old.std / 2, rel=1e-12)
        assert made.reasons[-1] == "x0.5: half"
    assert new["h.1.attn"].packed[1].std == pytest.approx(0.15)
    with pytest.raises(InvalidValueError, match="factor"):
        plan.scaled("h.*", math.nan, "no")


def test_constant_slices_stay(plan):
    table = row(
        "emb", Normal(1.0), packed=(Packed("padding", 0, 0, 1, None, None, Constant(0.0), 0.0),)
    )
    new = InitPlan((table,)).replace("emb", Normal(0.02), "small")
    assert new["emb"].packed[0].distribution == Constant(0.0)
    assert new["emb"].std == pytest.approx(0.02 * math.sqrt(63 / 64))


def test_std_of_a_mixture_is_the_std_of_its_elements():
    parts = (packed("a", 0, 16, Constant(1.0)), packed("b", 16, 64, Normal(0.5)))
    new = InitPlan((row("w", Normal(0.5), packed=parts),)).scaled("w", 1.0, "recount")
    # E[x^2] - E[x]^2 with a quarter of the elements at 1 and the rest of std .5
    assert new["w"].std == pytest.approx(math.sqrt(0.25 + 0.75 * 0.25 - 0.25**2))


def test_diff(plan):
    other = plan.scaled("h.2.weight", 3.0, "more")
    other = replace(other, rows=(*other.rows[1:], row("new")))
    diff = plan.diff(other)
    assert [r.name for r in diff.removed] == ["h.0.mlp.weight"]
    assert [r.name for r in diff.added] == ["new"]
    assert [a.name for a, _ in diff.changed] == ["h.2.weight"]
    assert "x3: more" in str(diff)
    assert not plan.diff(plan)
    assert str(plan.diff(plan)) == "the plans write the same values"
    json.dumps(diff.to_dict())


def test_prints(plan):
    assert all(len(line) <= 80 for line in str(plan).splitlines())
    for r in plan:
        assert r.name in plan._repr_html_()
