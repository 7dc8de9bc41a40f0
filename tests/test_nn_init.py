"""Blocks start through one plan: right scales, right roles, nothing left unwritten, nothing drawn twice."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from torch import nn

import fanin
from fanin import nn as fnn
from fanin._errors import InvalidValueError
from fanin.distributions import TruncatedNormal
from fanin.nn import _base
from fanin.schemes import SCHEMES
from nn_cases import CASES, DISTINCT, HEADS, B, D, T, normal, padded

CUT_STD = TruncatedNormal(1.0, 3.0).std  # what cutting at 3 sigma leaves of a std of one
SIGMAS = 5.0
WIDTH, LAYERS = 64, 3
# Objectives of `auto` need inputs; without them they are `auto`.
NAMES = [name for name in SCHEMES if ":" not in name]

MODELS = {
    "llama": lambda **c: fnn.TransformerLM(101, 32, WIDTH, LAYERS, 4, **c),
    "grouped": lambda **c: fnn.TransformerLM(101, 32, WIDTH, LAYERS, 4, kv_heads=2, qk_norm="rms", rope_layout="half", **c),
    "gpt2": lambda **c: fnn.TransformerLM.gpt2(101, 32, WIDTH, LAYERS, 4, **c),
    "encoder": lambda **c: fnn.TransformerEncoder(WIDTH, 4, num_layers=LAYERS, positions="learned", max_len=32, **c),
    "post-norm": lambda **c: fnn.TransformerEncoder(WIDTH, 4, num_layers=LAYERS, norm="post", activation="relu", positions="sinusoidal", max_len=32, **c),
    "swiglu encoder": lambda **c: fnn.TransformerEncoder(WIDTH, 4, num_layers=LAYERS, activation="swiglu", norm_layer="rms", positions="rope", max_len=32, **c),
}  # fmt: skip


def random_matrices(module: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in module.named_parameters() if p.dim() == 2}


# --- scales


def expected_std(name: str, p: torch.Tensor) -> float:
    """CS336: 1 for tables, Glorot's for the rest; the handout's sigma is that before the cut."""
    table = "embedding" in name or "positions" in name
    return CUT_STD * (1.0 if table else math.sqrt(2 / sum(p.shape)))


@pytest.mark.parametrize("name", MODELS)
def test_cs336(name):
    """The sample std of n numbers has a relative error of at most 1/sqrt(2 n): their tails are lighter than normal ones."""
    model = MODELS[name]()
    model.reset_parameters("cs336", seed=0)
    for key, p in model.named_parameters():
        if p.dim() == 1:
            assert torch.all(p == (0 if key.endswith("bias") else 1)), key
            continue
        tied = name == "gpt2" and key == "token_embeddings.weight"
        sigma = expected_std(key, p) / CUT_STD
        if tied and not math.isclose(p.std().item(), sigma, rel_tol=0.5):
            sigma = math.sqrt(2 / sum(p.shape))  # the head's rule, where it decides for the pair
        n = p.numel()
        assert p.std().item() == pytest.approx(CUT_STD * sigma, rel=SIGMAS / math.sqrt(2 * n)), key
        assert abs(p.mean().item()) <= SIGMAS * sigma / math.sqrt(n), key
        assert 2.5 * sigma < p.abs().max().item() <= 3 * sigma * (1 + 1e-6), key


@pytest.mark.parametrize("layers", [1, 2, 8])
@pytest.mark.parametrize("scheme", ["gpt2", "auto"])
@pytest.mark.parametrize("kind", ["LM", "encoder"])
def test_residual_projections_shrink_with_depth(kind, scheme, layers):
    """By 1/sqrt(2 layers): the sum of 2 layers branches has the variance of one."""

    def built(n: int) -> nn.Module:
        if kind == "LM":
            model = fnn.TransformerLM(101, 32, WIDTH, n, 4)
        else:
            model = fnn.TransformerEncoder(WIDTH, 4, num_layers=n)
        model.reset_parameters(scheme, seed=0)
        return model

    one, deep = (dict(built(n).named_parameters()) for n in (1, layers))
    for i in range(layers):
        for leaf in ("attn.output_proj.weight", "ffn.w2.weight"):
            wide, p = one[f"layers.0.{leaf}"], deep[f"layers.{i}.{leaf}"]
            # Two samples of n numbers each.
            tolerance = 2 * SIGMAS / math.sqrt(2 * p.numel())
            ratio = (p.square().mean() / wide.square().mean()).sqrt().item()
            assert ratio == pytest.approx(1 / math.sqrt(layers), rel=tolerance)
            if scheme == "gpt2":
                assert p.std().item() == pytest.approx(0.02 / math.sqrt(2 * layers), rel=tolerance)
        for leaf in ("attn.q_proj.weight", "attn.v_proj.weight", "ffn.w1.weight"):
            ratio = (deep[f"layers.{i}.{leaf}"].std() / one[f"layers.0.{leaf}"].std()).item()
            assert ratio == pytest.approx(1, rel=2 * SIGMAS / math.sqrt(2 * WIDTH**2))


def test_gpt2_starts_as_gpt2():
    model = MODELS["gpt2"]()
    for key, p in random_matrices(model).items():
        shrunk = key.endswith(("output_proj.weight", "w2.weight"))
        sigma = 0.02 / math.sqrt(2 * LAYERS) if shrunk else 0.02
        assert p.std().item() == pytest.approx(sigma, rel=SIGMAS / math.sqrt(2 * p.numel())), key


@pytest.mark.parametrize("scheme", NAMES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "post-norm"])
def test_layers_are_never_identical(name, scheme):
    """Nor alike: the correlation of two independent tensors of n numbers has a std of 1/sqrt(n)."""
    model = MODELS[name]()
    model.reset_parameters(scheme, seed=3)
    matrices = list(random_matrices(model).items())
    for i, (one, p) in enumerate(matrices):
        for other, q in matrices[:i]:
            if p.shape == q.shape:
                alike = torch.corrcoef(torch.stack((p.flatten(), q.flatten())))[0, 1].item()
                assert abs(alike) < SIGMAS / math.sqrt(p.numel()), (one, other)


# --- roles

ROLES = {
    "q_proj.weight": "q",
    "k_proj.weight": "k",
    "v_proj.weight": "v",
    "attn.output_proj.weight": "attn_out",
    "ffn.w1.weight": "ffn_in",
    "ffn.w2.weight": "ffn_out",
    "ffn.w3.weight": "ffn_in",
    "token_embeddings.weight": "embed",
    "positions.weight": "pos",
    "lm_head.weight": "head",
    "ln1.weight": "norm",
    "ln2.weight": "norm",
    "ln_final.weight": "norm",
    "q_norm.weight": "norm",
    "k_norm.weight": "norm",
    "ln1.bias": "norm_bias",
    "ln2.bias": "norm_bias",
    "ln_final.bias": "norm_bias",
    "proj.bias": "bias",
    "w1.bias": "bias",
    "w2.bias": "bias",
    "w3.bias": "bias",
}


@pytest.mark.parametrize("scheme", ["cs336", "gpt2", "auto"])
@pytest.mark.parametrize("name", MODELS)
def test_roles(name, scheme):
    model = MODELS[name]()
    gated = any(isinstance(m, fnn.SwiGLU) for m in model.modules())
    plan = fanin.plan(model, scheme=scheme)
    assert {r.name for r in plan} == {n for n, _ in model.named_parameters()}
    seen = set()
    for row in plan:
        suffix = next(s for s in sorted(ROLES, key=len, reverse=True) if row.name.endswith(s))
        role = "ffn_gate" if gated and suffix == "ffn.w1.weight" else ROLES[suffix]
        assert row.role == role, row.name
        seen.add(role)
        if len(row.shape) == 2 and role not in ("embed", "pos"):
            assert (row.fan_out, row.fan_in) == row.shape, row.name
    assert seen >= {"q", "k", "v", "attn_out", "ffn_in", "ffn_out", "norm"}


def test_every_role_alone():
    """Blocks by themselves declare them too, whatever stands around."""
    found = {}
    for make in (
        lambda: fnn.MultiHeadAttention(D, HEADS),
        lambda: fnn.SwiGLU(D),
        lambda: fnn.FeedForward(D),
        lambda: fnn.Embedding(9, D),
        lambda: fnn.LearnedPositions(D, 9),
        lambda: fnn.RMSNorm(D),
    ):
        block = make()
        outer = nn.Sequential(nn.ModuleDict({"whatever": block}))
        own = {r.name: r.role for r in fanin.plan(block, scheme="cs336")}
        inside = {r.name: r.role for r in fanin.plan(outer, scheme="cs336")}
        assert inside == {f"0.whatever.{n}": r for n, r in own.items()}
        found |= {(type(block).__name__, n): r for n, r in own.items() if n.endswith("weight")}
    assert found == {
        ("MultiHeadAttention", "q_proj.weight"): "q",
        ("MultiHeadAttention", "k_proj.weight"): "k",
        ("MultiHeadAttention", "v_proj.weight"): "v",
        ("MultiHeadAttention", "output_proj.weight"): "attn_out",
        ("SwiGLU", "w1.weight"): "ffn_gate",
        ("SwiGLU", "w2.weight"): "ffn_out",
        ("SwiGLU", "w3.weight"): "ffn_in",
        ("FeedForward", "w1.weight"): "ffn_in",
        ("FeedForward", "w2.weight"): "ffn_out",
        ("Embedding", "weight"): "embed",
        ("LearnedPositions", "weight"): "pos",
        ("RMSNorm", "weight"): "norm",
    }


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh", "silu"])
def test_the_nonlinearity_is_known(activation):
    row = fanin.plan(fnn.FeedForward(D, activation=activation), scheme="kaiming")["w1.weight"]
    assert row.nonlinearity == activation.removesuffix("_tanh")


# --- reproducible, complete, once


@pytest.mark.parametrize("name", DISTINCT)
def test_seeds(name):
    make = CASES[name].make

    def state(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return make().state_dict()

    one, again, other = state(1), state(1), state(2)
    assert all(torch.equal(one[k], again[k]) for k in one)
    random = [k for k in one if one[k].dim() == 2]
    assert all(not torch.equal(one[k], other[k]) for k in random)


@pytest.mark.parametrize("scheme", NAMES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "post-norm"])
def test_nothing_stays_unwritten(name, scheme):
    """Built on the meta device, given memory full of NaN, reset: as if built here; tables are back."""
    fresh = MODELS[name]()
    fresh.reset_parameters(scheme, seed=5)
    model = MODELS[name](device="meta")
    model.reset_parameters(scheme)  # no memory: nothing to write, no error
    assert all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(torch.nan)
    model.reset_parameters(scheme, seed=5)
    for key, p in model.named_parameters():
        assert torch.equal(p, fresh.get_parameter(key)), key
    for key, b in model.named_buffers():
        assert torch.equal(b, fresh.get_buffer(key)), key


@pytest.mark.parametrize("name", DISTINCT)
def test_nothing_stays_unwritten_in_any_block(name):
    block = CASES[name].make(device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for p in block.parameters():
            p.fill_(torch.nan)
    block.reset_parameters()
    assert all(torch.isfinite(p).all() for p in block.parameters())
    assert all(torch.isfinite(b).all() for b in block.buffers())


@pytest.mark.parametrize("name", DISTINCT)
def test_drawn_once(name, monkeypatch):
    """One plan for the whole, and none of torch's own starts before it."""
    plans = []
    real = _base.plan
    monkeypatch.setattr(_base, "plan", lambda m, **k: plans.append(m) or real(m, **k))
    for function in (
        "normal_",
        "uniform_",
        "kaiming_uniform_",
        "xavier_uniform_",
        "ones_",
        "zeros_",
    ):
        monkeypatch.setattr(torch.nn.init, function, None)
    block = CASES[name].make()
    assert plans == [block]


@pytest.mark.parametrize("scheme", NAMES)
def test_an_explicit_seed_leaves_the_generator_alone(scheme):
    block = fnn.TransformerBlock(D, HEADS)
    before = torch.get_rng_state()
    block.reset_parameters(scheme, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    twin = fnn.TransformerBlock(D, HEADS)
    fanin.plan(twin, scheme=scheme).fill_(twin, seed=4)
    for (_, p), (_, q) in zip(block.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_value_depends_on_its_name_alone():
    """A model with more layers starts with the same first ones; other names, other values."""
    short, long = (fnn.TransformerEncoder(D, HEADS, num_layers=n) for n in (1, 3))
    short.reset_parameters(seed=1)
    long.reset_parameters(seed=1)
    for key, p in short.named_parameters():
        assert torch.equal(p, long.get_parameter(key))


def test_init_of_the_block_is_followed():
    model = fnn.TransformerEncoder(D, HEADS, num_layers=1, init="gpt2")
    assert model.layers[0].ffn.w1.weight.std() < 0.03
    model.reset_parameters("cs336")
    assert model.layers[0].ffn.w1.weight.std() > 0.1
    with pytest.raises(fanin.FaninError, match="cs336"):
        model.reset_parameters("cs335")
    with pytest.raises(fanin.FaninError, match="cs336"):
        fnn.TransformerEncoder(D, HEADS, num_layers=1, init="cs335")


def test_blocks_of_ones_own():
    """A subclass starts by one plan over all of it, parameters of other modules included."""

    class Classifier(fnn.Block):
        init = "gpt2"

        def __init__(self) -> None:
            super().__init__()
            self.body = fnn.TransformerEncoder(D, HEADS, num_layers=2)
            self.head = nn.Linear(D, 200)

    model = Classifier()
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=SIGMAS / math.sqrt(2 * 3200))
    assert not model.head.bias.any()
    assert not torch.equal(model.body.layers[0].ffn.w1.weight, model.body.layers[1].ffn.w1.weight)


def test_blocks_within_other_modules_start_each():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = fnn.Linear(64, 64), fnn.Linear(64, 64)

    net = Net()
    for p in net.parameters():
        assert p.std().item() == pytest.approx(CUT_STD / 8, rel=SIGMAS / math.sqrt(2 * 64**2))
    assert not torch.equal(net.a.weight, net.b.weight)


def test_a_constructor_that_fails_leaves_the_next_alone():
    with pytest.raises(InvalidValueError):
        fnn.TransformerBlock(D, HEADS, d_ff=-1)
    assert fnn.Linear(64, 64).weight.std().item() == pytest.approx(CUT_STD / 8, rel=0.06)


def test_constructors_in_other_threads_do_not_matter():
    started, finish = threading.Event(), threading.Event()

    class Slow(fnn.Block):
        def __init__(self) -> None:
            super().__init__()
            self.inner = fnn.Linear(4, 4)
            started.set()
            finish.wait(30)

    thread = threading.Thread(target=Slow)
    thread.start()
    try:
        assert started.wait(30)
        assert fnn.Linear(64, 64).weight.std().item() == pytest.approx(CUT_STD / 8, rel=0.06)
    finally:
        finish.set()
        thread.join()


@pytest.mark.parametrize("scheme", NAMES)
def test_padding_row_is_zero(scheme):
    table = fnn.Embedding(50, D, padding_idx=7)
    table.reset_parameters(scheme, seed=0)
    assert not table.weight[7].any()
    assert table.weight[6].any()
    ids = torch.tensor([7, 6])
    (grad,) = torch.autograd.grad(table(ids).sum(), table.weight)
    assert not grad[7].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    block = fnn.TransformerBlock.llama(WIDTH, 4, max_len=8, dtype=dtype)
    assert {p.dtype for p in block.parameters()} == {dtype}
    p = block.attn.q_proj.weight
    assert p.double().std().item() == pytest.approx(CUT_STD / 8, rel=SIGMAS / math.sqrt(2 * 64**2))


def test_tied_weights_stay_tied():
    model = MODELS["gpt2"]()
    for _ in range(2):
        assert model.lm_head.weight is model.token_embeddings.weight
        model.to(torch.float64)
        model.reset_parameters()
    empty = MODELS["gpt2"](device="meta").to_empty(device="cpu")
    assert empty.lm_head.weight is empty.token_embeddings.weight


# --- fanin knows its own blocks

IDS = torch.randint(101, (8, 16), generator=torch.Generator().manual_seed(0))
X = normal(8, 16, WIDTH)
PREDICTED = {
    **{n: (m, IDS if n in ("llama", "grouped", "gpt2") else X) for n, m in MODELS.items()},
    "attention": (lambda: fnn.MultiHeadAttention(WIDTH, 4), X),
    "causal": (lambda: fnn.MultiHeadAttention(WIDTH, 4, causal=True), X),
    "cross": (lambda: fnn.MultiHeadAttention(WIDTH, 4), fanin.Inputs(X, normal(8, 10, WIDTH, seed=1))),
    "feed-forward": (lambda: fnn.FeedForward(WIDTH), X),
    "swiglu": (lambda: fnn.SwiGLU(WIDTH), X),
}  # fmt: skip


def errors(report: fanin.SignalReport, field: str) -> list[float]:
    """|log2(predicted/measured)| at every op that has both."""
    pairs = [
        (getattr(layer.predicted, field), getattr(layer.measured, field))
        for layer in report.layers
        if layer.predicted and layer.measured
    ]
    return sorted(abs(math.log2(p / m)) for p, m in pairs if p and m)


@pytest.mark.parametrize("name", PREDICTED)
def test_prediction(name):
    """One draw at width 64: 8 samples' projections vary by 1/sqrt(2 * 64), some few times over in depth."""
    make, inputs = PREDICTED[name]
    model = make().eval()
    model.reset_parameters(seed=0)
    report = fanin.check(model, inputs)
    assert report.ok
    assert report.coverage.recorded == report.coverage.seen
    assert not report.coverage.missed
    run = fanin.probe(model, inputs)
    # Complex numbers, as which interleaved pairs turn, have no rms of their own.
    assert not run.coverage.missed or all(m.startswith("mul x") for m in run.coverage.missed)
    activations, gradients = errors(run, "act_rms"), errors(run, "grad_rms")
    assert len(activations) >= 2
    assert activations[len(activations) // 2] <= 0.05
    assert activations[-1] <= 0.35
    assert gradients[len(gradients) // 2] <= 0.2
    assert gradients[-1] <= 0.6


@pytest.mark.parametrize("name", MODELS)
def test_auto_with_inputs_is_healthy(name):
    model = MODELS[name]().eval()
    inputs = IDS if name in ("llama", "grouped", "gpt2") else X
    plan = fanin.plan(model, inputs)
    assert fanin.check(model, inputs, plan=plan).ok
    plan.fill_(model, seed=0)
    assert torch.isfinite(model(inputs)).all()


def test_padding_is_captured():
    """A mask given, meta or real, hides no op from the analysis."""
    encoder = fnn.TransformerEncoder(D, HEADS, num_layers=1, positions="rope", max_len=T)
    inputs = fanin.Inputs(normal(B, T, D), key_padding_mask=padded())
    report = fanin.check(encoder, inputs)
    assert report.coverage.recorded == report.coverage.seen
    assert not report.coverage.missed
