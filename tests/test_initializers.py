"""Initializers: their formulas, torch's own draws, and what they are for: variance kept."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from torch import nn

import strategies
from fanin import initializers as module
from fanin._errors import InvalidValueError
from fanin._fans import MODES, Fan, shape_fan
from fanin._gains import gain as gain_of
from fanin.distributions import Constant, Normal, Orthogonal, TruncatedNormal, Uniform
from fanin.initializers import (
    FAMILIES,
    INITIALIZERS,
    CS336Embedding,
    CS336Linear,
    Fixed,
    Initializer,
    KaimingNormal,
    KaimingUniform,
    LecunNormal,
    LecunUniform,
    OrthogonalInit,
    TorchDefault,
    VarianceScaling,
    XavierNormal,
    XavierUniform,
    initializer_from_dict,
)

FAN = Fan(300, 100)
SHAPE = (100, 300)
DEFAULTS = {
    name: cls(Normal(0.02)) if cls is Fixed else cls() for name, cls in INITIALIZERS.items()
}
every = pytest.mark.parametrize("initializer", DEFAULTS.values(), ids=DEFAULTS.keys())

# The realised std of one element of a (100, 300) weight at gain 1, by hand.
CUT_3 = 0.98657839255809
STDS = {
    "VarianceScaling": math.sqrt(1 / 300),
    "KaimingNormal": math.sqrt(2 / 300),
    "KaimingUniform": math.sqrt(2 / 300),
    "XavierNormal": math.sqrt(2 / 400),
    "XavierUniform": math.sqrt(2 / 400),
    "LecunNormal": math.sqrt(1 / 300),
    "LecunUniform": math.sqrt(1 / 300),
    "TorchDefault": math.sqrt(1 / 900),
    "CS336Linear": math.sqrt(2 / 400) * CUT_3,
    "CS336Embedding": CUT_3,
    "OrthogonalInit": math.sqrt(1 / 300),
    "Fixed": 0.02,
}


def test_everything_is_registered_and_has_a_strategy():
    assert set(INITIALIZERS) == set(STDS) == set(strategies.INITIALIZERS_BY_NAME)
    assert set(INITIALIZERS) <= set(module.__all__)
    assert all(issubclass(cls, Initializer) for cls in INITIALIZERS.values())


@every
def test_std(initializer):
    law = initializer(FAN)
    assert law.std_for(SHAPE) == pytest.approx(STDS[type(initializer).__name__], rel=1e-12)
    assert law.mean_for(SHAPE) == 0.0


@every
def test_gain_multiplies_the_std(initializer):
    assert initializer(FAN, 0.0).std_for(SHAPE) == 0.0
    for gain in (0.25, math.sqrt(2), 7.0):
        assert initializer(FAN, gain).std_for(SHAPE) == pytest.approx(
            gain * initializer(FAN).std_for(SHAPE), rel=1e-12
        )


@every
@pytest.mark.parametrize("gain", [-1.0, math.nan, math.inf, "relu"])
def test_bad_gain(initializer, gain):
    with pytest.raises(InvalidValueError, match="gain must be a finite number >= 0"):
        initializer(FAN, gain)


@every
def test_an_empty_weight_gets_zeros_not_a_division(initializer):
    law = initializer(Fan(0, 0))
    assert law == Constant(0.0) or isinstance(initializer, (CS336Embedding, Fixed))
    assert math.isfinite(law.std_for((0, 0)))


@given(strategies.initializers, strategies.fans)
def test_any_fan_gives_a_finite_std(initializer, fan):
    if not isinstance(initializer, Fixed):
        assert 0.0 <= initializer(fan).std_for((4, 4)) < math.inf


@given(strategies.initializers)
def test_json_both_ways(initializer):
    data = json.loads(json.dumps(initializer.to_dict(), allow_nan=False))
    assert initializer_from_dict(data) == initializer
    assert type(initializer).from_dict(data) == initializer
    assert Initializer.from_dict(data) == initializer
    assert hash(initializer_from_dict(data)) == hash(initializer)
    names = {**vars(module), **vars(strategies), "inf": math.inf}
    assert eval(repr(initializer), names) == initializer


# variance scaling, of which the others are cases ---------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_variance_scaling_realises_its_std(mode, family):
    law = VarianceScaling(2.0, mode, family)(FAN, 1.5)
    assert law.std_for(SHAPE) == pytest.approx(1.5 * math.sqrt(2 / FAN.by_mode(mode)), rel=1e-13)
    kinds = {
        "normal": Normal,
        "uniform": Uniform,
        "truncated_normal": TruncatedNormal,
        "orthogonal": Orthogonal,
    }
    assert type(law) is kinds[family]


def test_variance_scaling_is_cut_where_jax_cuts():
    law = VarianceScaling(1.0, "fan_in", "truncated_normal")(Fan(4, 4))
    assert (law.cut, law.sigma) == (2.0, pytest.approx(0.5 / 0.87962566103423978, rel=1e-15))
    assert VarianceScaling(1.0, "fan_in", "truncated_normal", cut=3.0)(Fan(4, 4)).cut == 3.0


@pytest.mark.parametrize(
    ("named", "scaling"),
    [
        (KaimingNormal("fan_out"), VarianceScaling(2.0, "fan_out", "normal")),
        (KaimingUniform(), VarianceScaling(2.0, "fan_in", "uniform")),
        (XavierNormal(), VarianceScaling(1.0, "fan_avg", "normal")),
        (XavierUniform(), VarianceScaling(1.0, "fan_avg", "uniform")),
        (LecunNormal(), VarianceScaling(1.0, "fan_in", "normal")),
        (LecunUniform(), VarianceScaling(1.0, "fan_in", "uniform")),
        (TorchDefault(), VarianceScaling(1 / 3, "fan_in", "uniform")),
        (OrthogonalInit("fan_out"), VarianceScaling(1.0, "fan_out", "orthogonal")),
        (KaimingUniform(a=math.sqrt(5)), TorchDefault()),
    ],
    ids=repr,
)
def test_named_initializers_are_cases_of_it(named, scaling):
    mine, general = named(FAN, 1.2), scaling(FAN, 1.2)
    assert type(mine) is type(general)
    assert vars(mine) == pytest.approx(vars(general), rel=1e-12)


# kaiming's own gain --------------------------------------------------------------------------------


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh", "gelu", "silu", "selu", "linear"])
@pytest.mark.parametrize("cls", [KaimingNormal, KaimingUniform])
def test_kaiming_takes_the_exact_forward_gain(cls, nonlinearity):
    law = cls("fan_out", nonlinearity)(FAN, 0.5)
    assert law.std == pytest.approx(
        0.5 * gain_of(nonlinearity, criterion="forward") / 10, rel=1e-12
    )


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.2, 1.0, math.sqrt(5)])
@pytest.mark.parametrize("nonlinearity", ["leaky_relu", "prelu"])
def test_kaiming_slope(nonlinearity, slope):
    law = KaimingNormal(nonlinearity=nonlinearity, a=slope)(Fan(50, 1))
    assert law.std == pytest.approx(math.sqrt(2 / (1 + slope**2) / 50), rel=1e-12)


# against torch.nn.init -----------------------------------------------------------------------------

TORCH = {
    "kaiming_normal": (
        KaimingNormal("fan_out"),
        lambda w: nn.init.kaiming_normal_(w, 0.0, "fan_out"),
    ),
    "kaiming_uniform": (KaimingUniform(a=0.3), lambda w: nn.init.kaiming_uniform_(w, 0.3)),
    "xavier_normal": (XavierNormal(), lambda w: nn.init.xavier_normal_(w, 1.5)),
    "xavier_uniform": (XavierUniform(), lambda w: nn.init.xavier_uniform_(w, 1.5)),
    "orthogonal": (OrthogonalInit("fan_in"), lambda w: nn.init.orthogonal_(w, 1.5)),
}


@pytest.mark.parametrize("name", TORCH)
def test_spread_agrees_with_torch(name):
    """The mean of n squares has relative standard error sqrt((kurtosis - 1) / n) <= sqrt(2 / n); 5 of them."""
    initializer, draw = TORCH[name]
    shape = (60, 120, 3) if name != "orthogonal" else (120, 360)
    w = draw(torch.empty(shape)).double()
    law = initializer(shape_fan(shape), 1.5 if name[0] in "xo" else 1.0)
    tolerance = 1e-6 if name == "orthogonal" else 5 * math.sqrt(2 / w.numel())
    assert w.square().mean().item() == pytest.approx(law.std_for(shape) ** 2, rel=tolerance)
    if isinstance(law, Uniform):
        bound = (
            w.abs().max().item()
        )  # the largest of n lies within ln(1e9) / n of the bound but once in 1e9
        assert law.high * (1 - math.log(1e9) / w.numel()) <= bound <= law.high * (1 + 1e-6)


@pytest.mark.parametrize(
    "layer", [nn.Linear(300, 200), nn.Conv2d(8, 200, 5)], ids=["linear", "conv"]
)
def test_torch_default_is_what_layers_do(layer):
    law = TorchDefault()(shape_fan(tuple(layer.weight.shape)))
    bound = layer.weight.detach().abs().max().item()
    assert law.high * (1 - math.log(1e9) / layer.weight.numel()) <= bound <= law.high * (1 + 1e-6)


def test_cs336_keeps_its_assignment_s_convention():
    assert CS336Linear()(FAN) == TruncatedNormal(math.sqrt(2 / 400), 3.0)
    assert CS336Embedding()(Fan(1, 512)) == TruncatedNormal(1.0, 3.0)


# what they are for ---------------------------------------------------------------------------------


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh", "gelu"])
def test_kaiming_keeps_the_variance_of_preactivations(nonlinearity):
    """Var(W f(z)) = 1 for z ~ N(0, 1), over 256 draws of 16 outputs each that share one f(z).

    Given f(z) the outputs are independent normals of variance |f(z)|^2 / n g^2, so the mean square
    of the 4096 has relative variance at most 2/4096 + (E f^4 / (E f^2)^2 - 1) / (256 n), n = 500.
    """
    f = {"relu": torch.relu, "tanh": torch.tanh, "gelu": nn.functional.gelu}[nonlinearity]
    z = torch.randn(256, 500, dtype=torch.float64)
    std = KaimingNormal(nonlinearity=nonlinearity)(Fan(500, 16)).std
    w = torch.randn(256, 16, 500, dtype=torch.float64) * std
    y = torch.einsum("boi,bi->bo", w, f(z))
    kurtosis = (f(z) ** 4).mean() / (f(z) ** 2).mean() ** 2
    error = math.sqrt(2 / y.numel() + (kurtosis.item() - 1) / z.numel())
    assert y.square().mean().item() == pytest.approx(1.0, abs=5 * error)


# errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: VarianceScaling(mode="fan_ni"),
            "mode must be one of .* got 'fan_ni'. Did you mean 'fan_in'",
        ),
        (
            lambda: VarianceScaling(distribution="gaussian"),
            "distribution must be one of normal, uniform",
        ),
        (lambda: VarianceScaling(-1.0), "scale must be a finite number >= 0"),
        (lambda: VarianceScaling(cut=0.0), "cut"),
        (lambda: KaimingNormal("fan"), "mode"),
        (lambda: KaimingUniform(nonlinearity="rleu"), "relu"),
        (lambda: KaimingNormal(a=math.nan), "a must be a finite number"),
        (
            lambda: KaimingNormal(nonlinearity="tanh", a=0.1),
            "a is the slope of leaky_relu or prelu",
        ),
        (lambda: OrthogonalInit("out"), "mode"),
        (lambda: Fixed(0.02), r"Fixed takes a distribution such as Normal\(0.02\); got 0.02"),
        (lambda: Fixed(XavierNormal()), "Fixed takes a distribution"),
        (lambda: initializer_from_dict({"kind": "KaimingNorml"}), "Did you mean 'KaimingNormal'"),
        (
            lambda: initializer_from_dict({"kind": "XavierNormal", "gain": 2}),
            "XavierNormal takes no arguments; got 'gain'",
        ),
        (
            lambda: initializer_from_dict({"kind": "Fixed", "distribution": {"kind": "Norml"}}),
            "Did you mean 'Normal'",
        ),
        (lambda: initializer_from_dict({"kind": "Fixed"}), "Fixed needs distribution"),
        (lambda: initializer_from_dict(None), "an initializer is a mapping with a 'kind'"),
        (lambda: KaimingNormal.from_dict({"kind": "XavierNormal"}), "expected a KaimingNormal"),
    ],
)
def test_bad_input_says_what_was_wrong(make, words):
    with pytest.raises(InvalidValueError, match=words):
        make()


@every
def test_frozen(initializer):
    with pytest.raises(AttributeError):
        initializer.mode = "fan_out"


def test_str_is_short():
    assert str(KaimingNormal()) == "KaimingNormal(mode=fan_in, nonlinearity=leaky_relu, a=0)"
    assert str(Fixed(Normal(0.02))) == "Fixed(distribution=Normal(std=0.02))"
    assert str(LecunUniform()) == "LecunUniform()"
