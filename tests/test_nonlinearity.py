"""Names, modules and callables become one value; the caller's objects stay as they were."""

from __future__ import annotations

import copy
import functools
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fanin import _activations, _gains
from fanin._activations import NOT_ELEMENTWISE, names, nonlinearity
from fanin._errors import InvalidValueError
from fanin._nonlinearity import (
    as_nonlinearity,
    depth_scales,
    edge_of_chaos,
    gain,
    register_nonlinearity,
)

# name -> (module, the name's parameter)
MODULES = {
    "Threshold": (nn.Threshold(0.1, -0.3), ("threshold", (0.1, -0.3))),
    "ReLU": (nn.ReLU(), ("relu", None)),
    "RReLU": (nn.RReLU(0.1, 0.4), ("rrelu", (0.1, 0.4))),
    "Hardtanh": (nn.Hardtanh(-2.0, 1.5), ("hardtanh", (-2.0, 1.5))),
    "ReLU6": (nn.ReLU6(), ("relu6", None)),
    "Sigmoid": (nn.Sigmoid(), ("sigmoid", None)),
    "Hardsigmoid": (nn.Hardsigmoid(), ("hardsigmoid", None)),
    "Tanh": (nn.Tanh(), ("tanh", None)),
    "SiLU": (nn.SiLU(), ("silu", None)),
    "Mish": (nn.Mish(), ("mish", None)),
    "Hardswish": (nn.Hardswish(), ("hardswish", None)),
    "ELU": (nn.ELU(0.5), ("elu", 0.5)),
    "CELU": (nn.CELU(0.5), ("celu", 0.5)),
    "SELU": (nn.SELU(), ("selu", None)),
    "GLU": (nn.GLU(), ("glu", None)),
    "GELU": (nn.GELU(approximate="tanh"), ("gelu", "tanh")),
    "Hardshrink": (nn.Hardshrink(0.2), ("hardshrink", 0.2)),
    "LeakyReLU": (nn.LeakyReLU(0.2), ("leaky_relu", 0.2)),
    "LogSigmoid": (nn.LogSigmoid(), ("logsigmoid", None)),
    "Softplus": (nn.Softplus(2.0, 10.0), ("softplus", (2.0, 10.0))),
    "Softshrink": (nn.Softshrink(0.2), ("softshrink", 0.2)),
    "PReLU": (nn.PReLU(init=0.5), ("prelu", 0.5)),
    "Softsign": (nn.Softsign(), ("softsign", None)),
    "Tanhshrink": (nn.Tanhshrink(), ("tanhshrink", None)),
}
REFUSED = {
    "MultiheadAttention": nn.MultiheadAttention(4, 1),
    "Softmin": nn.Softmin(dim=-1),
    "Softmax": nn.Softmax(dim=-1),
    "Softmax2d": nn.Softmax2d(),
    "LogSoftmax": nn.LogSoftmax(dim=-1),
}


def agree(a: object, b: object, rel: float = 1e-12) -> None:
    for criterion in ("forward", "backward"):
        assert gain(a, criterion=criterion) == pytest.approx(gain(b, criterion=criterion), rel=rel)


# names and modules ---------------------------------------------------------------------------


def test_every_activation_of_torch_is_decided():
    assert {*MODULES, *REFUSED} == set(nn.modules.activation.__all__)


@pytest.mark.parametrize("kind", MODULES)
def test_a_module_is_its_name_with_its_parameters(kind):
    module, (name, param) = MODULES[kind]
    assert as_nonlinearity(module) is nonlinearity(name, param)


@pytest.mark.parametrize("kind", [k for k in MODULES if k not in ("GLU", "RReLU")])
def test_a_module_computes_what_its_row_says(kind):
    module, _ = MODULES[kind]
    nl = as_nonlinearity(module)
    x = torch.linspace(-6.01, 6.02, 500, dtype=torch.float64)
    y = copy.deepcopy(module).double()(x)
    np.testing.assert_allclose(nl.f(x.numpy()), y.detach().numpy(), rtol=1e-13, atol=4e-15)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_elementwise_has_no_gain(kind):
    with pytest.raises(InvalidValueError, match="not elementwise|cannot be evaluated"):
        gain(REFUSED[kind])


def test_prelu_learns():
    module = nn.PReLU(3)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.0, 0.5, -1.0]))
    # the mean over channels of (1 + a^2) / 2
    assert gain(module) == pytest.approx(math.sqrt(2 / (1 + 1.25 / 3)), rel=1e-12)
    assert gain(nn.PReLU(3, device="meta")) == gain("prelu", 0.25)
    with torch.no_grad():
        module.weight[1] = math.nan
    with pytest.raises(InvalidValueError, match="finite"):
        gain(module)


def test_rrelu_counts_as_in_eval_mode():
    module = nn.RReLU()
    assert gain(module.train()) == gain(module.eval()) == gain("leaky_relu", 11 / 48)


def test_dropout_in_either_mode():
    assert gain(nn.Dropout(0.5).eval()) == gain(nn.Identity()) == 1.0
    assert gain(nn.Dropout(0.0)) == 1.0
    assert gain(nn.Dropout2d(0.36)) == pytest.approx(0.8, rel=1e-15)
    after_relu = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
    assert gain(after_relu) == pytest.approx(1.0, rel=1e-14)
    assert gain(after_relu.eval()) == gain("relu")
    with pytest.raises(InvalidValueError, match="nothing passes"):
        gain(nn.Dropout(1.0))
    with pytest.raises(InvalidValueError, match=r"dropout before relu.*eval"):
        gain(nn.Sequential(nn.Dropout(0.1), nn.ReLU()))
    with pytest.raises(InvalidValueError, match="eval mode"):
        gain(nn.AlphaDropout(0.5))
    assert gain(nn.AlphaDropout(0.5).eval()) == pytest.approx(1.0, rel=1e-12)


def test_sequences_compose():
    assert as_nonlinearity(nn.Sequential()) is nonlinearity("linear")
    assert as_nonlinearity(
        nn.Sequential(nn.Identity(), nn.Tanh(), nn.Sequential(nn.Identity()))
    ) is nonlinearity("tanh")
    both = nn.Sequential(nn.Softplus(), nn.Tanh(), nn.LeakyReLU(0.3))
    agree(both, lambda x: torch.tanh(functional.softplus(x)))
    shifted = nn.Sequential(nn.Tanh(), nn.Softshrink(0.25))
    assert as_nonlinearity(shifted).kinks == pytest.approx(
        (-math.atanh(0.25), math.atanh(0.25)), rel=1e-12
    )
    agree(shifted, lambda x: functional.softshrink(torch.tanh(x), 0.25))
    with pytest.raises(InvalidValueError, match="two halves"):
        gain(nn.Sequential(nn.Tanh(), nn.GLU()))
    with pytest.raises(InvalidValueError, match="softmax is not elementwise"):
        gain(nn.Sequential(nn.Tanh(), nn.Softmax(dim=-1)))


# torch's functions ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [n for n in names() if hasattr(functional, n) or hasattr(torch, n)]
)
def test_torchs_functions_are_known_by_name(name):
    homes = [h for h in (functional, torch, torch.special, torch.Tensor) if hasattr(h, name)]
    for home in homes:
        assert as_nonlinearity(getattr(home, name)) is nonlinearity(name)


def test_a_torch_function_takes_a_parameter():
    assert gain(functional.leaky_relu, 0.2) == gain("leaky_relu", 0.2)
    assert gain(functional.gelu, "tanh") == gain("gelu", "tanh")


@pytest.mark.parametrize("name", NOT_ELEMENTWISE[:3])
def test_torchs_softmax_is_refused_by_name(name):
    with pytest.raises(InvalidValueError, match=f"{name} is not elementwise"):
        gain(getattr(functional, name))


# callables -----------------------------------------------------------------------------------

CALLABLES = {
    "relu": lambda x: x * (x > 0),
    "relu6": lambda x: x.clamp(0, 6),
    "relu_squared": lambda x: functional.relu(x, inplace=True).square(),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "elu": lambda x: torch.where(x > 0, x, torch.expm1(x)),
    "hardtanh": lambda x: x.clamp(-1, 1),
    "softsign": lambda x: x / (1 + x.abs()),
    "hardshrink": lambda x: x * (x.abs() > 0.5),
    "softshrink": lambda x: x.sign() * (x.abs() - 0.5).relu(),
    "hardswish": lambda x: x * (x + 3).clamp(0, 6) / 6,
    "tanh": lambda x: 2 * torch.sigmoid(2 * x) - 1,
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "silu": lambda x: x * torch.sigmoid(x),
    "mish": lambda x: x * torch.tanh(functional.softplus(x)),
    "gelu": lambda x: x * torch.special.ndtr(x),
    "erf": lambda x: torch.erf(x) * 1.0,
    "sin": lambda x: torch.sin(x) * 1.0,
    "linear": lambda x: x.clone(),
}


@pytest.mark.parametrize("name", CALLABLES)
def test_a_callable_is_worth_as_much_as_the_name(name):
    found, known = as_nonlinearity(CALLABLES[name]), nonlinearity(name)
    agree(found, known, rel=1e-12)
    np.testing.assert_allclose(found.kinks, known.kinks, atol=2e-5)
    assert (found.homogeneous, found.odd, found.saturating, found.jumps) == (
        known.homogeneous,
        known.odd,
        known.saturating,
        known.jumps,
    )
    for c in (-0.3, 0.4, 0.97):
        mine, theirs = (_gains.c_map(nl, c, 1.3, 0.1, q=1.7) for nl in (found, known))
        assert mine == pytest.approx(theirs, rel=1e-10, abs=1e-11)


def test_partials_methods_and_bound_modules_work():
    agree(
        functools.partial(functional.leaky_relu, negative_slope=0.2),
        nonlinearity("leaky_relu", 0.2),
    )
    agree(nn.ELU(0.5).forward, nonlinearity("elu", 0.5))
    agree(torch.Tensor.arctan, lambda x: torch.atan(x))


def test_a_function_that_rounds_to_float32_ends_and_is_as_good_as_its_rounding():
    rounded = lambda x: torch.nn.functional.silu(x.float())  # noqa: E731
    for criterion in ("forward", "backward"):
        # errors of 6e-8 a value average out
        assert gain(rounded, criterion=criterion) == pytest.approx(
            gain("silu", criterion=criterion), rel=1e-7
        )
    assert depth_scales(rounded, 2.0, 0.1).c == pytest.approx(
        depth_scales("silu", 2.0, 0.1).c, rel=1e-5
    )


def test_a_constant_and_a_sign_have_no_gradient():
    for f in (torch.sign, lambda x: torch.ones_like(x), lambda x: (x > 0.3).double()):
        assert gain(f) > 0
        with pytest.raises(InvalidValueError, match="no gradient passes"):
            gain(f, criterion="backward")
    assert as_nonlinearity(lambda x: (x > 0.3).double()).kinks == (0.3,)


class Snake(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + torch.sin(self.a * x) ** 2 / self.a


def test_a_users_module_is_read_and_left_alone():
    module, seen = Snake().train(), []
    module.register_forward_hook(lambda *_: seen.append(1))
    module.register_forward_pre_hook(lambda *_: seen.append(1))
    before = copy.deepcopy(module.state_dict())
    torch.manual_seed(3)
    random.seed(3)
    state = torch.get_rng_state()
    # E (x + 1 - cos x)^2 with a = 1/2: E x^2 + 1 - 2 E cos + E cos^2
    exact = 1 + 1 - 2 * math.exp(-0.5) + (1 + math.exp(-2)) / 2
    assert gain(module) == pytest.approx(exact**-0.5, rel=1e-12)
    assert module.training
    assert module.a.grad is None
    assert module.a.dtype == torch.float32
    assert seen == []
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_gradients_may_be_off_around_us():
    with torch.no_grad():
        agree(CALLABLES["silu"], "silu")
    with torch.inference_mode():
        agree(CALLABLES["silu"], "silu")
        agree(Snake(), Snake())
    assert torch.is_grad_enabled()


def test_random_functions_are_refused_and_the_generator_kept():
    state = torch.get_rng_state()
    for f in (
        lambda x: x + torch.randn_like(x),
        lambda x: functional.dropout(x, 0.5),
        nn.FeatureAlphaDropout(0.5),
    ):
        with pytest.raises(InvalidValueError, match="random|cannot be evaluated"):
            gain(f)
    assert torch.equal(torch.get_rng_state(), state)


class NoCopy(nn.Module):
    def __deepcopy__(self, memo):
        raise RuntimeError("one of a kind")


@pytest.mark.parametrize(
    ("f", "says"),
    [
        (lambda x: x.softmax(-1), "depends on its neighbours"),
        (lambda x: x - x.mean(), "depends on its neighbours"),
        (lambda x: x.cumsum(0), "depends on its neighbours"),
        (lambda x: x / x.shape[0], "depends on its neighbours"),
        (lambda x: x.sum(), r"expected a real tensor of shape \[64\].*torch.float64 \[\]"),
        (lambda x: x[:3], r"got torch.float64 \[3\]"),
        (lambda x: (x, x), "got tuple"),
        (lambda x: x > 0, "got torch.bool"),
        (lambda x: x.to(torch.complex128), "got torch.complex128"),
        (lambda x: torch.log(x), r"not finite everywhere: f\(-?[\d.]+\) is nan"),
        (lambda x: x @ torch.ones(7), "cannot be evaluated on a float64 tensor"),
        (nn.LayerNorm(64), "depends on its neighbours|cannot be evaluated"),
        (nn.Linear(64, 64), "depends on its neighbours|cannot be evaluated"),
        (nn.MaxPool2d(2), "cannot be evaluated"),
        (NoCopy(), "cannot be copied"),
        (None, "expected a nonlinearity's name"),
        (3.0, "expected a nonlinearity's name"),
        (torch.ones(3), "expected a nonlinearity's name"),
        (["relu"], "expected a nonlinearity's name"),
    ],
)
def test_what_is_no_nonlinearity_is_refused_with_the_reason(f, says):
    with pytest.raises(InvalidValueError, match=says):
        gain(f)


def test_a_parameter_needs_a_name():
    with pytest.raises(InvalidValueError, match="param belongs to a name"):
        gain(nn.LeakyReLU(), 0.2)
    with pytest.raises(InvalidValueError, match="param belongs to a name"):
        gain(lambda x: x, 0.2)


# the public functions ------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_public_functions_are_the_cores_for_names(name):
    assert gain(name) == _gains.gain(name)
    assert depth_scales(name, 1.1, 0.2) == _gains.depth_scales(name, 1.1, 0.2)


def test_the_torch_criterion_reads_modules_too():
    assert gain(nn.LeakyReLU(0.2), criterion="torch") == nn.init.calculate_gain("leaky_relu", 0.2)
    assert gain(torch.tanh, criterion="torch") == 5 / 3
    assert gain("conv_transpose2d", criterion="torch") == 1.0
    with pytest.raises(InvalidValueError, match="Unsupported nonlinearity"):
        gain(nn.GELU(), criterion="torch")


def test_edges_and_depths_of_callables():
    f = CALLABLES["tanh"]
    assert edge_of_chaos(f) == pytest.approx(edge_of_chaos("tanh"), rel=1e-12)
    assert edge_of_chaos(f, sigma_b2=0.05) == pytest.approx(
        edge_of_chaos(nn.Tanh(), sigma_b2=0.05), rel=1e-11
    )
    assert depth_scales(f, 1.5, 0.1) == pytest.approx(depth_scales("tanh", 1.5, 0.1), rel=1e-9)


@pytest.fixture
def user_table(monkeypatch):
    monkeypatch.setattr(_activations, "_USER", {})


@pytest.mark.usefixtures("user_table")
def test_a_registered_name_works_everywhere_a_name_does():
    made = register_nonlinearity("snake_half", Snake())
    assert made.name == "snake_half"
    assert gain("snake_half") == gain(Snake())
    assert as_nonlinearity("snake_half") is made
    assert 0 < edge_of_chaos("snake_half", q=0.1)[0]
    with pytest.raises(InvalidValueError, match="already"):
        register_nonlinearity("relu", torch.tanh)
    with pytest.raises(InvalidValueError, match="not elementwise"):
        register_nonlinearity("mean", lambda x: x.mean())
    with pytest.raises(InvalidValueError, match="takes no parameter"):
        gain("snake_half", 0.1)
    register_nonlinearity("snake_half", torch.tanh)
    assert gain("snake_half") == gain("tanh")


def test_an_unregistered_name_is_unknown():
    with pytest.raises(InvalidValueError, match="nonlinearity must be one of"):
        gain("snake_half")
