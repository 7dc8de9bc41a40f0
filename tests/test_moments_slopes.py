"""Ops that autograd runs in a forward pass: g f'(x) against torch, and a model that differentiates itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fanin._capture import capture
from fanin._check import propagated
from fanin._inputs import as_inputs
from fanin._moments import registry, slopes
from fanin._moments.domain import Abstract, constant, full, scaled, shifted
from fanin._moments.gaussian import pointwise
from monte_carlo import Case, check_backward, check_forward
from tensors import correlated, stratified

G, X = correlated(3, 5, 4, mean=0.2), correlated(3, 5, 4, mean=0.3)
Y = scaled(X, 0.3).plain()  # a result of tanh is small
NUMBERS = {
    "gelu_backward": {"approximate": "none"}, "softplus_backward": {"beta": 2.0, "threshold": 20.0},
    "threshold_backward": {"threshold": 0.2}, "leaky_relu_backward": {"negative_slope": 0.2, "self_is_result": False},
    "hardtanh_backward": {"min_val": -0.5, "max_val": 1.0}, "hardshrink_backward": {"lambd": 0.4},
    "softshrink_backward": {"lambd": 0.4},
}  # fmt: skip
JUMPS = ("threshold_backward", "leaky_relu_backward", "hardtanh_backward", "hardshrink_backward",
         "softshrink_backward", "hardsigmoid_backward")  # fmt: skip
ELU = {"alpha": 0.7, "scale": 1.1, "input_scale": 0.9}


def log_sigmoid_backward(grad_output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """With the buffer that the forward op leaves behind."""
    return torch.ops.aten.log_sigmoid_backward(grad_output, x, torch.exp(-x.detach().abs()))


def composed(f: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """g f'(x) by autograd, for ops that torch cannot differentiate itself."""

    def slope(grad_output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.clone().requires_grad_()
            return torch.autograd.grad(f(x), x, grad_output, create_graph=True)[0]

    return slope


COMPOSED = {
    "log_sigmoid_backward": log_sigmoid_backward,
    "silu_backward": composed(torch.nn.functional.silu),
    "mish_backward": composed(lambda x: x * torch.tanh(torch.nn.functional.softplus(x))),
    "hardsigmoid_backward": composed(lambda x: (x / 6 + 0.5).clamp(0, 1)),
}


def case(op: str) -> Case:
    grad = "grad_out" if op == "hardshrink_backward" else "grad_output"
    of, x = ("output", Y) if op in ("tanh_backward", "sigmoid_backward") else ("x", X)
    rtol = 0.02 if op in JUMPS else 0.01
    return Case(op, {grad: G, of: x, **NUMBERS.get(op, {})}, rtol=rtol, call=COMPOSED.get(op))


CASES = [
    *(case(op) for op in slopes.SLOPES if op != "elu_backward"),
    Case("elu_backward", {"grad_output": G, "self_or_result": X, "is_result": False, **ELU}),
    Case("elu_backward", {"grad_output": G, "self_or_result": Y, "is_result": True, **ELU}, label="result"),
    Case("tanh_backward", {"grad_output": correlated(7, 4), "output": scaled(stratified(7, 4), 0.3).plain()}, label="strata"),
    Case("gelu_backward", {"grad_output": G, "x": X, "approximate": "tanh"}, label="tanh"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case):
    check_forward(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward(case):
    check_backward(case)


def test_every_rule_has_a_case():
    assert set(slopes.SLOPES) == {c.op for c in CASES}


def test_the_slope_of_a_result_is_a_function_of_the_argument():
    """1 - tanh(x)^2 with tanh's own chain: one function of a Gaussian x, exact where tanh saturates."""
    x = full((50,), 4.0)
    rule = registry.FORWARD["tanh_backward"]
    y = rule(grad_output=constant((50,), 1.0), output=pointwise(x, np.tanh))
    z = 2 * np.random.default_rng(0).standard_normal(1_000_000)
    slope = 1 - np.tanh(z) ** 2
    spread = (slope**2).std() / 1000
    assert y.second_moment == pytest.approx((slope**2).mean(), abs=5 * spread)


class Differentiated(torch.nn.Module):
    """d/dx of a network's output, as physics-informed ones have it."""

    def __init__(self, stop: bool = False):
        super().__init__()
        self.first, self.second = torch.nn.Linear(64, 256), torch.nn.Linear(256, 128, bias=False)
        self.stop = stop

    def forward(self, x):
        x = x.detach().requires_grad_()
        y = self.second(torch.tanh(self.first(x)))
        y = y.detach() * y if self.stop else y * y
        return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def test_a_model_that_differentiates_itself():
    """Gradients of its parameters pass through what autograd had kept; 64 samples, 5 draws of weights."""
    squares: dict[str, list[float]] = {}
    for seed in range(5):
        torch.manual_seed(seed)
        model, x = Differentiated(), torch.randn(64, 64)
        signals = propagated(model, capture(model, as_inputs(x)))
        assert not signals.failures
        assert not signals.uncovered
        assert not signals.drawn
        out = model(x)
        cotangent = torch.randn(8, *out.shape)
        for g in cotangent:
            for name, p in model.named_parameters():
                found = torch.autograd.grad(out, p, g, retain_graph=True)[0].square().mean().item()
                squares.setdefault(name, []).append(found)
        predicted = {n: signals.grads[i].second_moment for n, i in signals.graph.parameters.items()}
    for name, found in squares.items():
        assert predicted[name] == pytest.approx(np.mean(found), rel=0.25), name


def test_a_stopped_gradient_shares_none():
    x = full((3, 4), 1.0)
    assert registry.BACKWARD["detach"](grad=x, x=x) == {}


@pytest.mark.parametrize("op", ["randn_like", "zeros_like", "rand", "bernoulli", "eye", "new_full"])
def test_what_is_made_from_nothing_has_no_gradient(op):
    x: Abstract = full((3, 4), 1.0)
    assert registry.BACKWARD[op](grad=x, x=x, op=op, size=(3, 4), fill_value=2.0) == {}


def test_an_angle_of_zero():
    """Sin of a constant 0 that carries noise: no division by E sin^2 = 0."""
    x = constant((3, 4), 0.0)
    x.noise = 0.1
    y = registry.FORWARD["sin"](x=shifted(x, 0.0), op="sin")
    assert y.second_moment == 0.0
    assert y.noise == 0.0
