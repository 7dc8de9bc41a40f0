"""`fan_of` against what the modules really compute: under 1/sqrt(fan) the variance is kept."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import fanin
from fanin import Fan, InvalidValueError, ModelError, UncoveredParameterError, fan_of

# Circular padding removes borders, where a unit sums fewer terms than its fan says.
CIRCULAR = {"padding_mode": "circular"}
MODULES = {
    "linear": (nn.Linear(96, 40), (64, 96)),
    "conv1d": (nn.Conv1d(8, 12, 5, padding=2, **CIRCULAR), (16, 8, 64)),
    "conv2d": (nn.Conv2d(8, 12, 3, padding=1, **CIRCULAR), (8, 8, 16, 16)),
    "conv2d stride 2": (nn.Conv2d(8, 12, 4, stride=2, padding=1, **CIRCULAR), (8, 8, 32, 32)),
    "conv2d stride 3, 2": (
        nn.Conv2d(6, 8, (3, 4), stride=(3, 2), padding=(0, 1), **CIRCULAR),
        (8, 6, 30, 32),
    ),
    "conv2d dilated": (nn.Conv2d(8, 12, 3, padding=2, dilation=2, **CIRCULAR), (8, 8, 16, 16)),
    "conv2d grouped": (nn.Conv2d(16, 32, 3, padding=1, groups=4, **CIRCULAR), (8, 16, 16, 16)),
    "conv2d depthwise": (nn.Conv2d(32, 32, 3, padding=1, groups=32, **CIRCULAR), (16, 32, 16, 16)),
    "conv2d grouped stride 2": (
        nn.Conv2d(16, 32, 2, stride=2, groups=4, **CIRCULAR),
        (8, 16, 32, 32),
    ),
    "conv3d": (nn.Conv3d(4, 6, 3, padding=1, **CIRCULAR), (4, 4, 8, 8, 8)),
    "conv 1x1": (nn.Conv2d(32, 16, 1), (8, 32, 12, 12)),
    "transposed, kernel = stride": (nn.ConvTranspose2d(16, 8, 2, stride=2), (8, 16, 16, 16)),
    "transposed 1d": (nn.ConvTranspose1d(16, 12, 3, stride=3), (16, 16, 40)),
    "transposed grouped": (nn.ConvTranspose2d(16, 8, 2, stride=2, groups=4), (8, 16, 16, 16)),
    "transposed 3d": (nn.ConvTranspose3d(8, 6, 2, stride=2), (4, 8, 8, 8, 8)),
    "bilinear": (nn.Bilinear(24, 16, 32), (256, 24)),
}


@pytest.mark.parametrize("name", MODULES)
def test_exact_fans_keep_the_variance(name):
    module, shape = MODULES[name]
    fan = fan_of(module)
    forward, backward = [], []
    for seed in range(12):
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(shape, generator=g, requires_grad=True)
        extra = [torch.randn(shape[0], 16, generator=g)] if isinstance(module, nn.Bilinear) else []
        with torch.no_grad():
            module.weight.normal_(generator=g)
            module.bias.zero_()
        y = module(x, *extra)
        gy = torch.randn(y.shape, generator=g)
        (gx,) = torch.autograd.grad(y, x, gy)
        forward.append((y.var() / x.var()).item() / fan.fan_in)
        backward.append((gx.var() / gy.var()).item() / fan.fan_out)
    for ratios in (forward, backward):
        r = torch.tensor(ratios)
        error = float(r.std()) / len(r) ** 0.5
        # 4 standard errors of the mean over seeds, and never looser than 10 %.
        assert abs(float(r.mean()) - 1) < min(4 * error + 1e-3, 0.1), (name, r.mean(), error)


@pytest.mark.parametrize("stride", [1, 2])
def test_transposed_interior(stride):
    """Overlapping kernels: count inside the border, where the sum is complete."""
    module = nn.ConvTranspose2d(32, 8, 4, stride=stride, bias=False)
    fan = fan_of(module)
    assert fan == Fan(32 * 16 / stride**2, 8 * 16)
    ratios = []
    for seed in range(8):
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            module.weight.normal_(generator=g)
        y = module(torch.randn(8, 32, 16, 16, generator=g))[..., 6:-6, 6:-6]
        ratios.append(y.var().item() / fan.fan_in)
    r = torch.tensor(ratios)
    assert abs(float(r.mean()) - 1) < 4 * float(r.std()) / 8**0.5 + 1e-3


@pytest.mark.parametrize(
    ("module", "name", "expected"),
    [
        (nn.Embedding(50, 16), "weight", Fan(1, 16)),
        (nn.EmbeddingBag(50, 16), "weight", Fan(1, 16)),
        (nn.LSTM(5, 7), "weight_ih_l0", dict.fromkeys("ifgo", Fan(5, 7))),
        (
            nn.LSTM(5, 7, 2, bidirectional=True),
            "weight_ih_l1_reverse",
            dict.fromkeys("ifgo", Fan(14, 7)),
        ),
        (nn.LSTM(5, 7, proj_size=3), "weight_hh_l0", dict.fromkeys("ifgo", Fan(3, 7))),
        (nn.LSTM(5, 7, proj_size=3), "weight_hr_l0", Fan(7, 3)),
        (nn.GRU(5, 7), "weight_hh_l0", dict.fromkeys("rzn", Fan(7, 7))),
        (nn.RNN(5, 7), "weight_ih_l0", Fan(5, 7)),
        (nn.LSTMCell(5, 7), "weight_ih", dict.fromkeys("ifgo", Fan(5, 7))),
        (nn.GRUCell(5, 7), "weight_hh", dict.fromkeys("rzn", Fan(7, 7))),
        (nn.RNNCell(5, 7), "weight_hh", Fan(7, 7)),
        (nn.MultiheadAttention(16, 4), "in_proj_weight", dict.fromkeys("qkv", Fan(16, 16))),
        (nn.MultiheadAttention(16, 4, kdim=5, vdim=6), "k_proj_weight", Fan(5, 16)),
        (nn.MultiheadAttention(16, 4, kdim=5, vdim=6), "v_proj_weight", Fan(6, 16)),
        (nn.MultiheadAttention(16, 4), "out_proj.weight", Fan(16, 16)),
        (nn.TransformerEncoderLayer(16, 4, 64), "linear2.weight", Fan(64, 16)),
        (
            nn.TransformerEncoderLayer(16, 4, 64),
            "self_attn.in_proj_weight",
            dict.fromkeys("qkv", Fan(16, 16)),
        ),
        (nn.LayerNorm(8), "weight", Fan(1, 1)),
        (nn.PReLU(), "weight", Fan(1, 1)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else str(v)[:24],
)
def test_fans_of(module, name, expected):
    assert fan_of(module, name) == expected


def test_torch_convention_is_the_shape():
    module = nn.Conv2d(16, 32, 3, groups=4)
    theirs = torch.nn.init._calculate_fan_in_and_fan_out(module.weight)
    assert fan_of(module, convention="torch") == Fan(*theirs)


def test_every_weight_bearing_torch_module_is_known():
    """Whatever torch.nn offers with parameters: each of them has a spec, none is 'free'."""
    made = []
    for name in dir(nn):
        kind = getattr(nn, name)
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)) or name.startswith(
            ("Lazy", "Module")
        ):
            continue
        for args in ((), (8,), (8, 8), (8, 8, 3), (8, 2, 16), (2, 8), (8, 20, [5, 10])):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    module = kind(*args)
            except (
                TypeError,
                ValueError,
                AssertionError,
                NotImplementedError,
                RuntimeError,
                IndexError,
            ):
                continue
            if any(True for _ in module.parameters()):
                made.append(name)
                assert all(r.role != "free" for r in fanin.plan(module)), name
                break
    assert {
        "Linear",
        "Conv3d",
        "ConvTranspose1d",
        "LSTM",
        "GRUCell",
        "Bilinear",
        "Transformer",
        "PReLU",
    } <= set(made)
    assert {"SyncBatchNorm", "AdaptiveLogSoftmaxWithLoss", "RMSNorm", "EmbeddingBag"} <= set(made)


def test_errors_say_what_there_is():
    with pytest.raises(InvalidValueError, match="weight_ih_l0"):
        fan_of(nn.LSTM(3, 4))
    with pytest.raises(InvalidValueError, match="is a bias: it has no fans"):
        fan_of(nn.Linear(3, 4), "bias")
    with pytest.raises(
        InvalidValueError, match="convention must be one of exact, torch; got 'torhc'"
    ):
        fan_of(nn.Linear(3, 4), convention="torhc")
    with pytest.raises(ModelError, match="lazy"):
        fan_of(nn.LazyLinear(4))

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(3, 4))

    with pytest.raises(UncoveredParameterError, match="register_module"):
        fan_of(Own())
    assert fan_of(Own(), convention="torch") == Fan(4, 3)
