"""Meta models get memory, ties, values and buffers; what cannot be computed is named before any write."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fanin
from fanin import InvalidValueError, ModelError, PlanError
from fanin.distributions import Kept, Normal


def on_meta(make):
    with torch.device("meta"):
        return make()


def tensors(model):
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


@pytest.fixture
def poison(monkeypatch):
    """Fresh memory is NaN, so that what nothing writes to is seen."""
    empty_like = torch.empty_like

    def poisoned(tensor, *args, **kwargs):
        made = empty_like(tensor, *args, **kwargs)
        if not made.is_meta:
            made.detach().copy_(torch.tensor(math.nan if made.is_floating_point() else 99))
        return made

    monkeypatch.setattr(torch, "empty_like", poisoned)


def old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Linear(4, 3))


MODULES = {
    "Linear": lambda: nn.Linear(4, 4),
    "Conv2d": lambda: nn.Conv2d(4, 4, 3),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(4, 4, 3),
    "BatchNorm1d": lambda: nn.BatchNorm1d(4),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(4),
    "InstanceNorm1d": lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
    "LayerNorm": lambda: nn.LayerNorm(4),
    "RMSNorm": lambda: nn.RMSNorm(4),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "Embedding": lambda: nn.Embedding(8, 4, padding_idx=0),
    "EmbeddingBag": lambda: nn.EmbeddingBag(8, 4),
    "RNN": lambda: nn.RNN(4, 4),
    "LSTM": lambda: nn.LSTM(4, 4, 2, proj_size=2),
    "GRU": lambda: nn.GRU(4, 4, bidirectional=True),
    "RNNCell": lambda: nn.RNNCell(4, 4),
    "LSTMCell": lambda: nn.LSTMCell(4, 4),
    "GRUCell": lambda: nn.GRUCell(4, 4),
    "MultiheadAttention": lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),
    "Transformer": lambda: nn.Transformer(4, 2, 1, 1, 8, batch_first=True),
    "PReLU": lambda: nn.PReLU(4),
    "Bilinear": lambda: nn.Bilinear(4, 4, 4),
    "AdaptiveLogSoftmaxWithLoss": lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 10, [5]),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "old weight_norm": old_weight_norm,
}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_as_if_it_had_been_filled(name, poison):
    whole, model = nn.Sequential(MODULES[name]()), on_meta(lambda: nn.Sequential(MODULES[name]()))
    plan = fanin.plan(model, scheme="kaiming")
    assert plan.materialize_(model, seed=3) is model
    plan.fill_(whole, seed=3)
    found, expected = tensors(model), tensors(whole)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key
        assert found[key].requires_grad == tensor.requires_grad


@pytest.mark.parametrize("old", [False, True])
def test_spectral_norms_know_the_largest_singular_value(old, poison):
    def make():
        layer = nn.Linear(6, 5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return nn.Sequential(
                nn.utils.spectral_norm(layer) if old else parametrizations.spectral_norm(layer)
            )

    model = on_meta(make)
    fanin.plan(model, scheme="kaiming").materialize_(model)
    model.eval()
    model(torch.zeros(1, 6))
    assert all(t.isfinite().all() for t in tensors(model).values())
    # 15 steps of the power method, ratio of singular values r: relative error r^30
    assert torch.linalg.matrix_norm(model[0].weight.detach(), 2).item() == pytest.approx(
        1, abs=0.05
    )


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.b.weight = self.a.weight
        self.norm, self.twin = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.twin.running_mean = self.norm.running_mean
        self.also = self.norm.running_var  # neither parameter nor buffer here
        self.a.weight.no_decay = True


def test_ties_and_attributes_are_restored():
    model = on_meta(Tied)
    fanin.plan(model).materialize_(model, seed=1)
    assert model.b.weight is model.a.weight
    assert model.twin.running_mean is model.norm.running_mean
    assert model.also is model.norm.running_var
    assert model.a.weight.no_decay
    assert [n for n, _ in model.named_parameters()].count("b.weight") == 0


def test_tensors_that_hold_numbers_keep_them():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), on_meta(lambda: nn.Linear(4, 4)))
    model[1].running_mean.fill_(5.0)
    kept = {n: t.clone() for n, t in tensors(model).items() if not t.is_meta}
    plan = fanin.plan(model, scheme="kaiming")
    plan.materialize_(model, seed=2)
    assert all(torch.equal(t, tensors(model)[n]) for n, t in kept.items())
    expected = fanin.fill_(torch.empty(4, 4), plan["2.weight"].distribution, key="2.weight", seed=2)
    assert torch.equal(model[2].weight, expected)


def test_parts_of_megatron_s_kind():
    whole, plan = nn.Linear(6, 8), fanin.plan(nn.Linear(6, 8), scheme="kaiming")
    plan.fill_(whole, seed=3)
    part = on_meta(lambda: nn.Linear(6, 4))
    rows = [2, 3, 6, 7]
    held = {
        "weight": fanin.IndexVectors((8, 6), (rows, range(6))),
        "bias": fanin.IndexVectors((8,), (rows,)),
    }
    plan.materialize_(part, seed=3, held=held)
    assert torch.equal(part.weight, whole.weight[rows])
    assert torch.equal(part.bias, whole.bias[rows])


def test_a_part_of_a_plan_leaves_the_rest_on_meta():
    model = on_meta(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    fanin.plan(model).select("0.*").materialize_(model)
    assert [p.is_meta for p in model.parameters()] == [False, False, True, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    model = on_meta(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).to(dtype))
    fanin.plan(model).materialize_(model)
    assert {t.dtype for t in tensors(model).values()} == {dtype, torch.int64}


def test_wrappers_and_order_change_nothing():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    def make():
        return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4)))

    whole, model = make(), on_meta(make)
    plan = fanin.initialize_(whole, scheme="kaiming", seed=5)
    model[0], model[1] = torch.compile(model[0]), checkpoint_wrapper(model[1])
    plan.materialize_(model, seed=5)
    for found, expected in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(found, expected)
    plan.verify(model, seed=5)
    backwards = make()
    for name in reversed(plan.names):
        torch.randn(3)
        plan.fill_(backwards, seed=5, only=[name])
    for found, expected in zip(backwards.parameters(), whole.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_missing_keys_of_a_state_dict():
    """Wrapped names and buffers are understood; a value does not depend on what else is missing."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    plan = fanin.initialize_(model, scheme="kaiming", seed=5)
    whole = {n: t.clone() for n, t in model.state_dict().items()}
    with torch.no_grad():
        model[0].weight.zero_()
    plan.fill_(
        torch.compile(model), seed=5, only=["_orig_mod.0.weight", "_orig_mod.1.running_mean"]
    )
    assert all(torch.equal(t, whole[n]) for n, t in model.state_dict().items())
    plan.fill_(model, seed=6, only=[])
    assert all(torch.equal(t, whole[n]) for n, t in model.state_dict().items())
    with pytest.raises(PlanError, match=r"'0\.wieght' matches no parameter"):
        plan.fill_(model, only=["0.wieght"])


# buffers --------------------------------------------------------------------------------------


class Table(nn.Module):
    """A table that its constructor computes from what it keeps."""

    def __init__(self, dim, base=10000.0):
        super().__init__()
        self.dim, self.base = dim, base
        self.register_buffer("inv_freq", base ** -(torch.arange(0, dim, 2).float() / dim))


class Forgetful(nn.Module):
    def __init__(self, dim, base=10000.0):
        super().__init__()
        self.dim = dim
        self.register_buffer("inv_freq", base ** -(torch.arange(0, dim, 2).float() / dim))


class Chance(nn.Module):
    """Random features: no rule may make up others."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.register_buffer("features", torch.randn(dim))


class Resets(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.register_buffer("window", torch.empty(n))
        self.weight = nn.Parameter(torch.empty(n, n))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.weight)
        self.window.copy_(torch.linspace(0, 1, self.window.numel()))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(4, 4)
        self.register_buffer("position_ids", torch.arange(7)[None])
        self.register_buffer("tril", torch.ones(5, 5).tril())
        self.register_buffer("bias", torch.ones(5, 5).tril()[None, None])


@pytest.mark.parametrize(
    "make",
    [lambda: Table(8), lambda: Table(6, 500.0), lambda: Resets(4), Words],
    ids=["rebuilt", "another base", "by its own method", "by name"],
)
def test_buffers_are_computed(make, poison):
    whole, model = make(), on_meta(lambda: nn.Sequential(make(), nn.Linear(2, 2)))
    free = {"0.weight": Normal(1.0)} if isinstance(whole, Resets) else None
    fanin.plan(model, overrides=free).materialize_(model)
    for name, buffer in whole.named_buffers():
        assert torch.equal(model[0].get_buffer(name), buffer), name


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Forgetful(8), "0.inv_freq of Forgetful"),
        (lambda: Chance(8), "0.features of Chance"),
        (lambda: nn.CrossEntropyLoss(weight=torch.rand(3)), "0.weight of CrossEntropyLoss"),
    ],
)
def test_what_cannot_be_computed_is_named_before_anything_is_written(make, named):
    model = on_meta(lambda: nn.Sequential(make(), nn.Linear(2, 2)))
    state = torch.get_rng_state()
    with pytest.raises(ModelError, match=rf"nothing was written:\n  buffer {named}"):
        fanin.plan(model).materialize_(model)
    assert all(t.is_meta for t in tensors(model).values())
    assert torch.equal(state, torch.get_rng_state())


def test_a_registered_rule_is_the_first_word(monkeypatch):
    from fanin import _buffers

    monkeypatch.setattr(_buffers, "_RULES", dict(_buffers._RULES))
    fanin.register_buffers(Chance)(lambda m: {"features": torch.arange(m.dim).float()})
    model = on_meta(lambda: nn.Sequential(Chance(3), nn.Linear(2, 2)))
    fanin.plan(model).materialize_(model)
    assert model[0].features.tolist() == [0, 1, 2]

    @fanin.register_buffers(f"{__name__}.Forgetful")
    def wrong(module):
        raise KeyError("base")

    model = on_meta(lambda: nn.Sequential(Forgetful(8), nn.Linear(2, 2)))
    with pytest.raises(ModelError, match="KeyError: 'base'"):
        fanin.plan(model).materialize_(model)
    with pytest.raises(InvalidValueError, match="takes the module types"):
        fanin.register_buffers()


def test_a_tensor_that_is_neither_parameter_nor_buffer_is_named():
    def make():
        model = nn.Sequential(nn.Linear(2, 2))
        model[0].scale = torch.ones(2)
        return model

    model = on_meta(make)
    with pytest.raises(ModelError, match=r"0\.scale of Linear .*neither a parameter nor a buffer"):
        fanin.plan(model).materialize_(model)


def test_rows_that_cannot_be_written_are_named_together():
    model = on_meta(lambda: nn.Sequential(nn.Linear(2, 2), Chance(3)))
    plan = fanin.plan(model, overrides={"0.weight": Kept(0.0, 1.0)})
    with pytest.raises(ModelError) as refused:
        plan.materialize_(model)
    assert "0.weight is to keep its present values" in str(refused.value)
    assert "buffer 1.features" in str(refused.value)


def test_refused_arguments():
    model = on_meta(lambda: nn.Sequential(nn.Linear(2, 2)))
    plan = fanin.plan(model)
    with pytest.raises(InvalidValueError, match="meta device holds no numbers"):
        plan.materialize_(model, device="meta")
    with pytest.raises(InvalidValueError, match="seed"):
        plan.materialize_(model, seed=-1)
    with pytest.raises(PlanError, match="nothing was written"):
        plan.materialize_(on_meta(lambda: nn.Sequential(nn.Linear(2, 3))))
    assert all(p.is_meta for p in model.parameters())


def test_a_parameter_that_no_inverse_reaches_is_named():
    """The proof at the end: memory that nothing wrote to."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.extra = nn.Parameter(torch.zeros(2, 2))

        def forward(self, x):
            return x + self.extra

        def right_inverse(self, x):
            return x

    def make():
        layer = nn.Linear(2, 2)
        nn.utils.parametrize.register_parametrization(layer, "weight", Sum())
        return nn.Sequential(layer)

    model = on_meta(make)
    with pytest.raises(ModelError, match=r"left unwritten: 0\.parametrizations\.weight\.0\.extra"):
        fanin.plan(model).materialize_(model)


# transformers ---------------------------------------------------------------------------------

SMALL = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 32,
}  # fmt: skip
SEQ = {
    "vocab_size": 50, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "pad_token_id": 0,
}  # fmt: skip
IMAGE = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
FAMILIES = {
    "LlamaForCausalLM": {**SMALL, "num_key_value_heads": 1},
    "MistralForCausalLM": {**SMALL, "num_key_value_heads": 1},
    "Qwen2ForCausalLM": {**SMALL, "num_key_value_heads": 1},
    "Qwen3ForCausalLM": {**SMALL, "num_key_value_heads": 1},
    "GemmaForCausalLM": {**SMALL, "num_key_value_heads": 1, "head_dim": 8},
    "Gemma2ForCausalLM": {**SMALL, "num_key_value_heads": 1, "head_dim": 8},
    "Phi3ForCausalLM": {**SMALL, "num_key_value_heads": 1},
    "MixtralForCausalLM": {**SMALL, "num_key_value_heads": 1, "num_local_experts": 2},
    "GPT2LMHeadModel": {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "GPTNeoXForCausalLM": SMALL,
    "OPTForCausalLM": {
        "vocab_size": 50, "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 32, "word_embed_proj_dim": 16,
    },
    "BloomForCausalLM": {"vocab_size": 50, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "FalconForCausalLM": {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "BertForMaskedLM": SMALL,
    "RobertaForMaskedLM": SMALL,
    "DistilBertForMaskedLM": {"vocab_size": 50, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2},
    "ElectraForPreTraining": {**SMALL, "embedding_size": 16},
    "AlbertForMaskedLM": {**SMALL, "embedding_size": 16},
    "DebertaV2ForMaskedLM": SMALL,
    "T5ForConditionalGeneration": {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    "BartForConditionalGeneration": {**SEQ, "max_position_embeddings": 32},
    "WhisperForConditionalGeneration": {**SEQ, "max_source_positions": 16, "max_target_positions": 16},
    "ViTForImageClassification": IMAGE,
    "CLIPModel": {"text_config": {**SMALL, "num_hidden_layers": 1}, "vision_config": IMAGE},
    "SwinForImageClassification": {
        "image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4
    },
    "ConvNextForImageClassification": {"hidden_sizes": [8] * 4, "depths": [1] * 4},
    "ResNetForImageClassification": {"embedding_size": 8, "hidden_sizes": [8] * 4, "depths": [1] * 4},
    "MambaForCausalLM": {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_families_of_transformers(name, poison):
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, name)
    make = lambda: kind(kind.config_class(**FAMILIES[name]))  # noqa: E731
    whole, model = make(), on_meta(make)
    try:
        plan = fanin.plan(model, scheme="gpt2")
    except fanin.UncoveredParameterError as error:
        lines = str(error).splitlines()[1:]
        free = [line.split()[0] for line in lines if line.startswith("  ")]
        plan = fanin.plan(model, scheme="gpt2", overrides=dict.fromkeys(free, Normal(0.02)))
    plan.materialize_(model, seed=3)
    plan.fill_(whole, seed=3)
    found, expected = tensors(model), tensors(whole)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key
