"""Blocks from torch.nn and transformers, and back: equal outputs, equal gradients, clear refusals."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fanin import nn as fnn
from fanin._errors import InvalidValueError
from nn_cases import HEADS, B, D, T, normal, padded, perturbed

OUTPUT, GRADIENT = 2e-6, 1e-5  # as parts of the largest entry


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    assert ours.shape == theirs.shape
    size = max(1.0, theirs.abs().max().item())
    assert (ours - theirs).abs().max().item() <= tolerance * size


def forbidden(mask: torch.Tensor | None) -> torch.Tensor | None:
    """Ours as torch's: there True means ignore."""
    return ~mask if mask is not None and mask.dtype == torch.bool else mask


def perturbed_theirs(module: nn.Module) -> nn.Module:
    """Biases of torch's attention start at zero, norms at one: none of that would be compared."""
    return perturbed(module)


def attention_gradients(ours: fnn.MultiHeadAttention) -> dict[str, torch.Tensor]:
    """By torch's names, packed as torch packs."""
    grads = {n: p.grad for n, p in ours.named_parameters()}
    named = {f"{n}_proj_weight": grads[f"{n}_proj.weight"] for n in "qkv"}
    if ours.kdim == ours.vdim == ours.d_model:
        named = {"in_proj_weight": torch.cat(list(named.values()))}
    if "q_proj.bias" in grads:
        named["in_proj_bias"] = torch.cat([grads[f"{n}_proj.bias"] for n in "qkv"])
        named["out_proj.bias"] = grads["output_proj.bias"]
    return named | {"out_proj.weight": grads["output_proj.weight"]}


# --- nn.MultiheadAttention

# Every query may attend to the first token, which is never padding: torch is NaN where one may to none.
BAND = torch.ones(T, T, dtype=torch.bool).tril().triu(-2) | (torch.arange(T) == 0)
ATTENTION_MASKS = {
    "none": {},
    "bool": {"mask": BAND},
    "float": {"mask": normal(T, T, seed=4)},
    "per head": {"mask": normal(B, HEADS, T, T, seed=4)},
    "padding": {"key_padding_mask": padded()},
    "both": {"mask": BAND, "key_padding_mask": padded().flip(0)},
}
WIDTHS = {"self": {}, "kdim": {"kdim": 6, "vdim": 9}, "cross": {}}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mask", ATTENTION_MASKS)
@pytest.mark.parametrize(("bias", "batch_first"), [(True, True), (False, False)])
@pytest.mark.parametrize("width", WIDTHS)
def test_attention(width, bias, batch_first, mask, training):
    theirs = perturbed_theirs(
        nn.MultiheadAttention(D, HEADS, bias=bias, batch_first=batch_first, **WIDTHS[width])
    ).train(training)
    ours = fnn.from_torch(theirs)
    assert ours.training == training
    x, how = normal(B, T, D), dict(ATTENTION_MASKS[mask])
    context = None
    if width != "self":
        sizes = (6, 9) if width == "kdim" else (D, D)
        context = tuple(normal(B, T, s, seed=i) for i, s in enumerate(sizes, 1))
    y, weights = ours(x, context, need_weights=True, **how)
    q, k, v = x, *(context or (x, x))
    if not batch_first:
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    attn_mask = forbidden(how.get("mask"))
    if attn_mask is not None and attn_mask.dim() == 4:
        attn_mask = attn_mask.flatten(0, 1)
    padding = how.get("key_padding_mask")
    if padding is not None and attn_mask is not None and attn_mask.is_floating_point():
        padding = torch.zeros(padding.shape).masked_fill(padding, -torch.inf)
    expected, expected_weights = theirs(
        q, k, v, attn_mask=attn_mask, key_padding_mask=padding, average_attn_weights=False
    )
    expected = expected if batch_first else expected.transpose(0, 1)
    close(y, expected, OUTPUT)
    close(weights, expected_weights, OUTPUT)
    fused = ours(x, context, **how)
    close(fused, expected, OUTPUT)
    cotangent = normal(B, T, D, seed=8)
    (fused * cotangent).sum().backward()
    (expected * cotangent).sum().backward()
    grads = attention_gradients(ours)
    for name, p in theirs.named_parameters():
        close(grads[name], p.grad, GRADIENT)


@pytest.mark.parametrize(("bias", "width"), list(product([True, False], WIDTHS)))
def test_attention_and_back(bias, width):
    theirs = perturbed_theirs(nn.MultiheadAttention(D, HEADS, bias=bias, dropout=0.25, **WIDTHS[width]))  # fmt: skip
    again = fnn.to_torch(fnn.from_torch(theirs.eval()))
    assert again.batch_first
    assert again.dropout == 0.25
    assert not again.training
    state = again.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(state[name], value)


def test_copies_share_no_memory():
    theirs = nn.MultiheadAttention(D, HEADS)
    ours = fnn.from_torch(theirs)
    before = copy.deepcopy(theirs.state_dict())
    with torch.no_grad():
        for p in ours.parameters():
            p.zero_()
    assert all(torch.equal(v, before[k]) for k, v in theirs.state_dict().items())
    assert all(p.requires_grad for p in ours.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_kept(dtype):
    ours = fnn.from_torch(nn.MultiheadAttention(D, HEADS, dtype=dtype))
    assert {p.dtype for p in ours.parameters()} == {dtype}
    assert {p.dtype for p in fnn.to_torch(ours).parameters()} == {dtype}


# --- nn.TransformerEncoder

ENCODERS = {
    f"{place} {activation}{' no bias' * (not bias)}{' final' * final}": (norm_first, activation, bias, final)
    for (place, norm_first), (activation, bias), final in product(
        (("pre", True), ("post", False)), (("relu", True), ("gelu", False)), (True, False)
    )
}  # fmt: skip
ENCODER_MASKS = {
    "none": {},
    "causal": {"mask": torch.ones(T, T, dtype=torch.bool).tril()},
    "padding": {"key_padding_mask": padded()},
    "both": {"mask": BAND | BAND.T, "key_padding_mask": padded()},
}


def their_encoder(norm_first: bool, activation: str, bias: bool, final: bool, **other):
    layer = nn.TransformerEncoderLayer(
        D, HEADS, 24, activation=activation, norm_first=norm_first, bias=bias, batch_first=True, **{"dropout": 0.0} | other
    )  # fmt: skip
    norm = nn.LayerNorm(D, bias=bias) if final else None
    theirs = nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)
    for p in theirs.parameters():
        nn.init.normal_(p, 0.0, 0.2) if p.dim() > 1 else nn.init.normal_(p, 1.0, 0.2)
    return theirs


def encoder_gradients(ours: fnn.TransformerEncoder) -> dict[str, torch.Tensor]:
    named = {}
    for i, layer in enumerate(ours.layers):
        prefix = f"layers.{i}."
        named |= {f"{prefix}self_attn.{n}": g for n, g in attention_gradients(layer.attn).items()}
        for own, name in (("ffn.w1", "linear1"), ("ffn.w2", "linear2"), ("ln1", "norm1"), ("ln2", "norm2")):  # fmt: skip
            named |= {f"{prefix}{name}.{n}": p.grad for n, p in layer.get_submodule(own).named_parameters()}  # fmt: skip
    if ours.ln_final is not None:
        named |= {f"norm.{n}": p.grad for n, p in ours.ln_final.named_parameters()}
    return named


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mask", ENCODER_MASKS)
@pytest.mark.parametrize("name", ENCODERS)
def test_encoder(name, mask, training):
    theirs = their_encoder(*ENCODERS[name]).train(training)
    ours = fnn.from_torch(theirs)
    x, how = normal(B, T, D), ENCODER_MASKS[mask]
    padding = how.get("key_padding_mask")
    real = torch.ones(B, T, dtype=torch.bool) if padding is None else ~padding
    expected = theirs(x, mask=forbidden(how.get("mask")), src_key_padding_mask=padding)
    cotangent = normal(B, T, D, seed=8) * real[..., None]
    (expected * cotangent).sum().backward()
    for unpad in (True, False):
        ours.unpad = unpad
        ours.zero_grad()
        y = ours(x, **how)
        close(y[real], expected[real], OUTPUT)
        assert not y[~real].any()
        (y * cotangent).sum().backward()
        grads = encoder_gradients(ours)
        assert grads.keys() == dict(theirs.named_parameters()).keys()
        for key, p in theirs.named_parameters():
            close(grads[key], p.grad, GRADIENT)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_fast_path(name):
    """Without gradients torch takes another way; the numbers are the same."""
    theirs = their_encoder(*ENCODERS[name]).eval()
    with torch.no_grad():
        close(fnn.from_torch(theirs)(normal(B, T, D)), theirs(normal(B, T, D)), OUTPUT)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_and_back(name):
    theirs = their_encoder(*ENCODERS[name], dropout=0.3, layer_norm_eps=1e-4)
    again = fnn.to_torch(fnn.from_torch(theirs))
    state = again.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        assert torch.equal(state[key], value)
    dropouts = [m.p for m in theirs.modules() if isinstance(m, nn.Dropout)]
    assert [m.p for m in again.modules() if isinstance(m, nn.Dropout)] == dropouts
    assert again.layers[0].self_attn.dropout == 0.3
    eps = [m.eps for m in theirs.modules() if isinstance(m, nn.LayerNorm)]
    assert [m.eps for m in again.modules() if isinstance(m, nn.LayerNorm)] == eps
    close(again.eval()(normal(B, T, D)), theirs.eval()(normal(B, T, D)), OUTPUT)


@pytest.mark.parametrize("activation", [F.relu, F.gelu, nn.ReLU(), nn.GELU(), nn.GELU("tanh")])
def test_layer(activation):
    theirs = nn.TransformerEncoderLayer(D, HEADS, 24, activation=activation).eval()
    ours = fnn.from_torch(perturbed_theirs(theirs))
    assert isinstance(ours, fnn.TransformerBlock)
    close(ours(normal(B, T, D)), theirs(normal(B, T, D).transpose(0, 1)).transpose(0, 1), OUTPUT)


def test_final_norm_keeps_its_eps():
    theirs = their_encoder(norm_first=True, activation="relu", bias=True, final=True)
    theirs.norm.eps = 0.5
    ours = fnn.from_torch(theirs)
    close(ours(normal(B, T, D)), theirs(normal(B, T, D)), OUTPUT)
    close(fnn.to_torch(ours)(normal(B, T, D)), theirs(normal(B, T, D)), OUTPUT)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
def test_our_encoder_as_torch():
    for norm, activation in product(("pre", "post"), ("relu", "gelu")):
        ours = perturbed(fnn.TransformerEncoder(D, HEADS, num_layers=2, norm=norm, activation=activation)).eval()  # fmt: skip
        theirs = fnn.to_torch(ours)
        x, padding = normal(B, T, D), padded()
        real = ~padding
        found = theirs(x, src_key_padding_mask=padding)
        close(ours(x, key_padding_mask=padding)[real], found[real], OUTPUT)
        with torch.no_grad():
            close(ours(x), theirs(x), OUTPUT)


def _mixed() -> nn.TransformerEncoder:
    theirs = their_encoder(norm_first=True, activation="relu", bias=True, final=False)
    theirs.layers[1] = nn.TransformerEncoderLayer(D, HEADS, 32, batch_first=True, norm_first=True)
    return theirs


REFUSED = {
    "type": (lambda: fnn.from_torch(nn.Linear(2, 2)), "got Linear"),
    "bias_kv": (lambda: fnn.from_torch(nn.MultiheadAttention(D, HEADS, add_bias_kv=True)), "add_bias_kv and add_zero_attn"),
    "zero_attn": (lambda: fnn.from_torch(nn.MultiheadAttention(D, HEADS, add_zero_attn=True)), "add_bias_kv and add_zero_attn"),
    "activation": (lambda: fnn.from_torch(nn.TransformerEncoderLayer(D, HEADS, activation=F.silu)), "activation must be ReLU or GELU"),
    "layers": (lambda: fnn.from_torch(_mixed()), "differ in their options"),
    "norm": (lambda: fnn.from_torch(nn.TransformerEncoder(nn.TransformerEncoderLayer(D, HEADS, batch_first=True), 1, nn.RMSNorm(D))), "norm must be nn.LayerNorm, got RMSNorm"),
    "to type": (lambda: fnn.to_torch(fnn.SwiGLU(D)), "got SwiGLU"),
    "grouped": (lambda: fnn.to_torch(fnn.MultiHeadAttention(D, HEADS, kv_heads=2)), "nn.MultiheadAttention has nothing for kv_heads of this block"),
    "head_dim": (lambda: fnn.to_torch(fnn.MultiHeadAttention(D, HEADS, head_dim=8)), "head_dim"),
    "rope": (lambda: fnn.to_torch(fnn.MultiHeadAttention(D, HEADS, rope=fnn.RotaryEmbedding(4))), "rope"),
    "causal, qk_norm": (lambda: fnn.to_torch(fnn.MultiHeadAttention(D, HEADS, causal=True, qk_norm="rms")), "qk_norm, causal"),
    "rms": (lambda: fnn.to_torch(fnn.TransformerEncoder(D, HEADS, num_layers=1, norm_layer="rms")), "norm_layer='rms'"),
    "swiglu": (lambda: fnn.to_torch(fnn.TransformerEncoder(D, HEADS, num_layers=1, activation="swiglu")), "activation='swiglu'"),
    "tanh": (lambda: fnn.to_torch(fnn.TransformerEncoder(D, HEADS, num_layers=1, activation="gelu_tanh")), "activation='gelu_tanh'"),
    "positions": (lambda: fnn.to_torch(fnn.TransformerEncoder(D, HEADS, num_layers=1, positions="learned")), "positions"),
    "transformers": (lambda: fnn.from_transformers(nn.Linear(2, 2)), "takes LlamaForCausalLM or GPT2LMHeadModel, got Linear"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
def test_refused(name):
    convert, message = REFUSED[name]
    with pytest.raises(InvalidValueError, match=message):
        convert()


# --- transformers


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


LLAMAS = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2},
    "multi-query, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "head_dim": {"head_dim": 6, "rms_norm_eps": 1e-3},
    "theta": {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
}
GPT2S = {
    "plain": {},
    "n_inner": {"n_inner": 24, "activation_function": "relu"},
    "square": {"n_inner": 16},
    "untied": {"tie_word_embeddings": False, "activation_function": "silu"},
    "exact gelu": {"activation_function": "gelu", "layer_norm_epsilon": 1e-3},
}
IDS = torch.randint(37, (3, 9), generator=torch.Generator().manual_seed(0))


def llama(transformers, **options):
    kind = {"vocab_size": 37, "hidden_size": D, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": HEADS,
            "max_position_embeddings": 16, "initializer_range": 0.2}  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**kind | options)).eval()


def gpt2(transformers, **options):
    kind = {"vocab_size": 37, "n_positions": 16, "n_embd": D, "n_layer": 2, "n_head": HEADS, "initializer_range": 0.2}  # fmt: skip
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**kind | options)).eval()


FAMILIES = {
    **{f"llama {n}": (llama, o) for n, o in LLAMAS.items()},
    **{f"gpt2 {n}": (gpt2, o) for n, o in GPT2S.items()},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_from_transformers(name, transformers):
    make, options = FAMILIES[name]
    theirs = perturbed(make(transformers, **options))
    ours = fnn.from_transformers(theirs)
    assert not ours.training
    close(ours(IDS), theirs(IDS).logits, OUTPUT)
    tied = theirs.config.tie_word_embeddings
    assert (ours.lm_head.weight is ours.token_embeddings.weight) == tied
    count = sum(p.numel() for p in theirs.parameters())
    assert sum(p.numel() for p in ours.parameters()) == count


@pytest.mark.parametrize("name", ["llama grouped", "gpt2 plain", "gpt2 square"])
def test_gradients_as_in_transformers(name, transformers):
    make, options = FAMILIES[name]
    theirs = make(transformers, **options)
    ours = fnn.from_transformers(theirs)
    for logits in (ours(IDS), theirs(IDS).logits):
        fnn.cross_entropy(logits[:, :-1], IDS[:, 1:]).backward()
    total = [sum(p.grad.square().sum().item() for p in m.parameters()) for m in (ours, theirs)]
    assert total[0] == pytest.approx(total[1], rel=1e-4)
    close(ours.token_embeddings.weight.grad, theirs.get_input_embeddings().weight.grad, GRADIENT)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("name", ["plain", "grouped", "head_dim"])
def test_llama_state_dict(name, layout, transformers):
    """Into either layout: rows of interleaved pairs are put in their order."""
    theirs = llama(transformers, **LLAMAS[name])
    c = theirs.config
    ours = fnn.TransformerLM(
        37, 16, D, 2, HEADS, d_ff=24, kv_heads=c.num_key_value_heads, head_dim=c.head_dim, rope_layout=layout, eps=c.rms_norm_eps
    ).eval()  # fmt: skip
    ours.load_state_dict(theirs.state_dict())
    close(ours(IDS), theirs(IDS).logits, OUTPUT)
    block = fnn.TransformerBlock.llama(
        D, HEADS, d_ff=24, kv_heads=c.num_key_value_heads, head_dim=c.head_dim, rope_layout=layout, eps=c.rms_norm_eps
    )  # fmt: skip
    block.load_state_dict(theirs.model.layers[1].state_dict())
    x = normal(3, 9, D)
    assert torch.equal(block(x), ours.layers[1](x))
    again = fnn.TransformerLM(37, 16, D, 2, HEADS, d_ff=24, kv_heads=c.num_key_value_heads, head_dim=c.head_dim,
                              rope_layout=layout, eps=c.rms_norm_eps).eval()  # fmt: skip
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again(IDS), ours(IDS))


@pytest.mark.parametrize("name", ["plain", "n_inner"])
def test_gpt2_state_dict(name, transformers):
    theirs = perturbed(gpt2(transformers, **GPT2S[name]))
    c = theirs.config
    activation = {"gelu_new": "gelu_tanh"}.get(c.activation_function, c.activation_function)
    ours = fnn.TransformerLM.gpt2(37, 16, D, 2, HEADS, d_ff=c.n_inner, activation=activation).eval()
    ours.load_state_dict(theirs.state_dict())
    close(ours(IDS), theirs(IDS).logits, OUTPUT)
    block = fnn.TransformerBlock.gpt2(D, HEADS, d_ff=c.n_inner, activation=activation)
    block.load_state_dict(theirs.transformer.h[0].state_dict())
    assert torch.equal(block(normal(1, 3, D)), ours.layers[0](normal(1, 3, D)))


def test_qk_norms_turn_with_their_rows():
    """Per-head norms of transformers' models follow the half layout as queries and keys do."""
    half, pairs = (
        fnn.MultiHeadAttention(D, HEADS, bias=False, qk_norm="rms", rope=fnn.RotaryEmbedding(4, layout=layout))
        for layout in ("half", "interleaved")
    )  # fmt: skip
    perturbed(half)
    theirs = {k.replace("output_proj", "o_proj"): v for k, v in half.state_dict().items()}
    pairs.load_state_dict(theirs)
    close(pairs(normal(B, T, D)), half(normal(B, T, D)), OUTPUT)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (llama, {"attention_bias": True}, "attention_bias"),
        (llama, {"mlp_bias": True}, "mlp_bias"),
        (llama, {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        (llama, {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_type='linear'"),
        (gpt2, {"activation_function": "tanh"}, "activation_function='tanh'"),
        (gpt2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        (gpt2, {"scale_attn_weights": False}, "scale_attn_weights=False"),
        (gpt2, {"add_cross_attention": True}, "add_cross_attention"),
    ],
)  # fmt: skip
def test_transformers_refused(make, options, message, transformers):
    with pytest.raises(InvalidValueError, match=f"TransformerLM has nothing for {message} of"):
        fnn.from_transformers(make(transformers, **options))


def test_models_without_a_head_are_refused(transformers):
    with pytest.raises(InvalidValueError, match="got LlamaModel"):
        fnn.from_transformers(llama(transformers).model)


def test_dropouts_of_transformers(transformers):
    ours = fnn.from_transformers(gpt2(transformers, embd_pdrop=0.1, attn_pdrop=0.2, resid_pdrop=0.3))  # fmt: skip
    assert {n: m.p for n, m in ours.named_modules() if isinstance(m, nn.Dropout) and "layers.1" not in n} == {
        "dropout": 0.1,
        "layers.0.attn.dropout": 0.2,
        "layers.0.dropout1": 0.3,
        "layers.0.dropout2": 0.3,
        "layers.0.ffn.dropout": 0.0,
    }  # fmt: skip
    ours = fnn.from_transformers(llama(transformers, attention_dropout=0.2))
    assert {n for n, m in ours.named_modules() if isinstance(m, nn.Dropout) and m.p} == {
        "layers.0.attn.dropout",
        "layers.1.attn.dropout",
    }


# --- state dicts

STATES = {
    "encoder": lambda: fnn.TransformerEncoder(D, HEADS, num_layers=2, positions="learned", max_len=8),
    "llama": lambda: fnn.TransformerLM(11, 8, D, 2, HEADS, kv_heads=2, qk_norm="rms"),
    "gpt2": lambda: fnn.TransformerLM.gpt2(11, 8, D, 2, HEADS),
    "attention": lambda: fnn.MultiHeadAttention(D, HEADS),
    "swiglu": lambda: fnn.SwiGLU(D),
}  # fmt: skip


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("name", STATES)
def test_state_dict_round_trip(name, prefix, assign):
    one, other = STATES[name](), STATES[name]()
    state = {prefix + k: v.clone() for k, v in one.state_dict().items()}
    before = dict(state)
    other.load_state_dict(state, assign=assign)
    assert state.keys() == before.keys()  # what was given is as it was
    assert all(state[k] is before[k] for k in before)
    for key, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)
    if name == "gpt2":
        assert other.lm_head.weight is other.token_embeddings.weight


def test_state_dict_of_a_compiled_part():
    one, other = STATES["encoder"](), STATES["encoder"]()
    state = {k.replace("layers.1.", "layers.1._orig_mod."): v for k, v in one.state_dict().items()}
    other.load_state_dict(state)
    for key, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)


@pytest.mark.parametrize("name", STATES)
def test_wrong_names_are_still_named(name):
    module = STATES[name]()
    state = module.state_dict()
    first = next(iter(state))
    with pytest.raises(RuntimeError, match="nonsense"):
        module.load_state_dict(state | {"nonsense.weight": state[first]})
    if name != "gpt2" or first != "lm_head.weight":
        rest = {k: v for k, v in state.items() if k != first}
        with pytest.raises(RuntimeError, match=f"Missing.*{first}"):
            module.load_state_dict(rest)


def test_names_of_others():
    """torch's packed rows, timm's qkv, per-projection names, fc1 and fc2: all load alike, in a copy too."""
    ours = fnn.MultiHeadAttention(D, HEADS)
    w = ours.state_dict()
    packed = torch.cat([w[f"{n}_proj.weight"] for n in "qkv"])
    bias = torch.cat([w[f"{n}_proj.bias"] for n in "qkv"])
    out = {"weight": w["output_proj.weight"], "bias": w["output_proj.bias"]}
    styles = {
        "torch": {"in_proj_weight": packed, "in_proj_bias": bias, **{f"out_proj.{k}": v for k, v in out.items()}},
        "timm": {"qkv.weight": packed, "qkv.bias": bias, **{f"proj.{k}": v for k, v in out.items()}},
        "GPT-2": {"c_attn.weight": packed.mT, "c_attn.bias": bias, "c_proj.weight": out["weight"].mT, "c_proj.bias": out["bias"]},
        "nanoGPT": {"c_attn.weight": packed, "c_attn.bias": bias, **{f"c_proj.{k}": v for k, v in out.items()}},
        "letters": {f"w{n}.{k}": w[f"{n}_proj.{k}"] for n in "qkv" for k in ("weight", "bias")} | {f"wo.{k}": v for k, v in out.items()},
        "Llama": {f"{n}_proj.{k}": w[f"{n}_proj.{k}"] for n in "qkv" for k in ("weight", "bias")} | {f"o_proj.{k}": v for k, v in out.items()},
    }  # fmt: skip
    for style, state in styles.items():
        for other in (fnn.MultiHeadAttention(D, HEADS), copy.deepcopy(ours)):
            with torch.no_grad():
                for p in other.parameters():
                    p.zero_()
            other.load_state_dict(state)
            for key, value in w.items():
                assert torch.equal(other.state_dict()[key], value), style
    ffn = fnn.FeedForward(D, 24)
    state = {k.replace("w", "fc", 1): v for k, v in ffn.state_dict().items()}
    other = fnn.FeedForward(D, 24)
    other.load_state_dict(state)
    assert torch.equal(other(normal(T, D)), ffn(normal(T, D)))


def test_loading_a_tied_model_without_its_head():
    model = STATES["gpt2"]()
    state = {k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    other = STATES["gpt2"]()
    other.load_state_dict(state)
    assert torch.equal(other.lm_head.weight, model.lm_head.weight)
