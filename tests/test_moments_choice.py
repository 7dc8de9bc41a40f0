"""Comparisons, choices, masks and tensors made from nothing, against torch."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import tape
from fanin._moments import registry, softmax
from fanin._moments.domain import Abstract, full, measured, scaled, shifted
from monte_carlo import Case as AnyCase
from monte_carlo import check_backward, check_forward
from tensors import correlated, stratified

Case = partial(AnyCase, draws=100)

X = correlated(4, 9, mean=0.3)
Y = correlated(4, 9, mean=-0.2, scale=1.5)
S = stratified(9, 6, dim=0)
SHARE = shifted(scaled(correlated(4, 9), 0.1), 0.5).plain()
KNOWN = measured(np.random.default_rng(0).random((4, 9)) < 0.4)
ROW = measured(np.arange(9) < 4)
SQUARE = correlated(2, 6, 6, mean=0.2)

OPS = sorted(
    op for op, rule in registry.FORWARD.items() if rule.function.__module__.endswith("choice")
)
# a jump and its correlations share 80 x 80 points
TWO = {"rtol": 0.02, "grad_rtol": 0.05}


def truth(op, **args):
    """A comparison has no gradient; its output is 0 or 1."""

    def call(**given):
        return getattr(torch.ops.aten, op)(*given.values()).double()

    return Case(
        op,
        args,
        call=call,
        backward=False,
        label="number" if "other" in args and not isinstance(args["other"], Abstract) else "",
    )


def filled(op, given, call, rtol=0.01):
    return Case(op, given, call=call, backward=False, rtol=rtol, draws=100)


LIKE = {"x": X}
CASES = [
    *(truth(op, x=X, other=Y) for op in ("gt", "ge", "lt", "le", "greater", "greater_equal", "less", "less_equal", "eq", "ne", "not_equal", "isclose")),
    *(truth(op, x=S, other=0.2) for op in ("gt", "ge", "lt", "le", "eq", "ne")),
    *(truth(op, x=X) for op in ("isnan", "isinf", "isneginf", "isposinf", "isfinite", "logical_not")),
    Case("where", {"condition": KNOWN, "x": X, "other": Y}),
    Case("where", {"condition": KNOWN, "x": X, "other": 0.5}, label="number"),
    Case("masked_fill", {"x": X, "mask": KNOWN, "value": 0.7}),
    Case("masked_fill", {"x": X, "mask": ROW, "value": 0.0}, label="row"),
    Case("clamp", {"x": X, "min": -0.5, "max": 0.8}),
    Case("clip", {"x": X, "min": None, "max": 0.8}),
    Case("clamp", {"x": X, "min": Y, "max": None}, label="tensor", **TWO),
    Case("clip", {"x": X, "min": None, "max": Y}, label="tensor", **TWO),
    Case("heaviside", {"x": X, "values": full((), 0.25, 0.5)}, backward=False),
    Case("tril", {"x": SQUARE, "diagonal": 0}),
    Case("triu", {"x": SQUARE, "diagonal": 1}),
    *(filled(op, {"size": (3, 5)}, lambda size: torch.zeros(size)) for op in ("zeros", "empty", "empty_strided")),
    *(filled(op, LIKE, lambda x: torch.zeros_like(x)) for op in ("zeros_like", "new_zeros", "zero", "empty_like", "new_empty", "new_empty_strided")),
    filled("ones", {"size": (3, 5)}, lambda size: torch.ones(size)),
    *(filled(op, LIKE, lambda x: torch.ones_like(x)) for op in ("ones_like", "new_ones")),
    filled("full", {"size": (3, 5), "fill_value": 0.3}, lambda size, fill_value: torch.full(size, fill_value)),
    *(filled(op, {"x": X, "fill_value": -2.0}, lambda x, fill_value: torch.full_like(x, fill_value)) for op in ("full_like", "new_full")),
    filled("scalar_tensor", {"s": 0.3}, lambda s: torch.tensor(s)),
    filled("arange", {"start": 1, "end": 8, "step": 2}, lambda **k: torch.arange(1, 8, 2)),
    filled("range", {"start": 1, "end": 7, "step": 2}, lambda **k: torch.arange(1, 8, 2)),
    filled("linspace", {"start": -1.0, "end": 2.0, "steps": 7}, lambda **k: torch.linspace(-1, 2, 7)),
    filled("eye", {"n": 4, "m": 5}, lambda n, m: torch.eye(n, m)),
    *(filled(op, LIKE, lambda x: torch.rand_like(x)) for op in ("rand", "rand_like")),
    *(filled(op, LIKE, lambda x: torch.randn_like(x)) for op in ("randn", "randn_like")),
    *(filled(op, {"x": X, "low": 2, "high": 7}, lambda x, low, high: torch.randint(low, high, x.shape)) for op in ("randint", "randint_like")),
    filled("randperm", {"n": 6}, torch.randperm),
    Case("normal", {"mean": X, "std": 0.5}, call=lambda mean, std: mean + std * torch.randn_like(mean)),
    filled("bernoulli", {"x": X, "p": 0.3}, lambda x, p: torch.bernoulli(torch.full_like(x, p))),
    Case("bernoulli", {"x": SHARE}, call=lambda x: torch.bernoulli(x.clamp(0, 1)), backward=False, label="shares"),
    Case("fill", {"x": X, "value": 0.5}, backward=False),
    Case("fill", {"x": X, "value": full((), 0.7, 0.3)}, label="tensor", call=lambda x, value: value.expand(x.shape)),
    Case("copy", {"x": X, "src": correlated(9, mean=0.1)}, call=lambda x, src: src.expand(x.shape)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case):
    check_forward(case)


@pytest.mark.parametrize("case", [c for c in CASES if c.backward], ids=str)
def test_backward(case):
    check_backward(case)


def test_every_rule_has_a_case():
    assert {c.op for c in CASES} | set(LOGIC) >= set(OPS)
    assert set(OPS) <= set(registry.BACKWARD)


LOGIC = (
    "logical_and",
    "logical_or",
    "logical_xor",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "__and__",
    "__or__",
    "__xor__",
    "bitwise_not",
)


@pytest.mark.parametrize("op", LOGIC)
def test_logic_of_independent_truth_values(op):
    def pattern(f, x, y):
        a = f("gt", x=x, other=0.2)
        both = f(op, x=a) if op == "bitwise_not" else f(op, x=a, other=f("lt", x=y, other=0.4))
        return f("mul", x=both, other=1.0)

    tape.check(pattern, {"x": X, "y": Y}, backward=False)


@pytest.mark.parametrize("op", LOGIC[:3])
def test_logic_of_known_truth_values(op):
    out = registry.FORWARD[op](op=op, x=KNOWN, other=ROW)
    assert (out.known == getattr(np, op)(KNOWN.known, ROW.known)).all()


CHOSEN = {
    "relu": lambda f, x: f("where", condition=f("gt", x=x, other=0.0), x=x, other=f("mul", x=x, other=0.1)),
    "elu": lambda f, x: f("where", condition=f("gt", x=x, other=0.0), x=x, other=f("expm1", x=x)),
    "gate": lambda f, x: f("mul", x=x, other=f("clamp", x=x, min=0.0, max=1.0)),
    "filled": lambda f, x: f("masked_fill", x=x, mask=f("lt", x=x, other=-0.5), value=-0.5),
    "band": lambda f, x: f("where", condition=f("logical_and", x=f("gt", x=x, other=-1.0), other=f("lt", x=x, other=1.0)), x=x, other=f("mul", x=x, other=0.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOSEN)
def test_choices_by_the_tensor_itself_are_functions_of_it(name):
    tape.check(CHOSEN[name], {"x": X})


def test_a_choice_by_another_tensor():
    """A random condition links both branches where their means differ."""

    def pattern(f, c, x, y):
        return f("where", condition=f("gt", x=c, other=0.1), x=x, other=y)

    tape.check(
        pattern,
        {"c": Y, "x": shifted(X, 1.0).plain(), "y": S.with_(dims=X.dims, q=X.q, mean=X.mean)},
        backward=False,
    )


def masked(op, x, mask):
    value = float(np.finfo(np.float32).min)
    if op == "masked_fill":
        return registry.FORWARD[op](x=x, mask=measured(~mask), value=value)
    return registry.FORWARD[op](condition=measured(mask), x=x, other=full((), value**2, value))


@pytest.mark.parametrize("op", ["masked_fill", "where"])
def test_a_large_negative_number_marks_what_is_not_allowed(op):
    mask = np.tril(np.ones((6, 6), bool))
    out = masked(op, SQUARE, mask)
    assert out.second_moment == pytest.approx(SQUARE.second_moment)
    assert (np.broadcast_to(out.allowed, SQUARE.shape) == mask).all()
    again = masked(op, out, mask[::-1])
    assert (np.broadcast_to(again.allowed, SQUARE.shape) == (mask & mask[::-1])).all()
    weights = softmax.attention_weights(out)
    assert weights.average_mean == pytest.approx(1 / 6)
    assert weights.q[0, 0, 0] == pytest.approx(1 / 6)  # the first query sees one of six keys
