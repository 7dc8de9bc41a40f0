"""Decoding with a cache, sampling, recomputation, and what compiles and exports."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fanin import nn as fnn
from fanin._errors import InvalidValueError
from fanin.nn._language import sample
from nn_cases import HEADS, D, normal, padded, perturbed

VOCABULARY, CONTEXT = 23, 12
MODELS = {
    "rope": lambda **o: fnn.TransformerLM(VOCABULARY, CONTEXT, D, 2, HEADS, **o),
    "rope half": lambda **o: fnn.TransformerLM(VOCABULARY, CONTEXT, D, 2, HEADS, rope_layout="half", **o),
    "learned": lambda **o: fnn.TransformerLM.gpt2(VOCABULARY, CONTEXT, D, 2, HEADS, **o),
    "no positions": lambda **o: fnn.TransformerLM(VOCABULARY, CONTEXT, D, 1, HEADS, positions=None, **o),
    "grouped": lambda **o: fnn.TransformerLM(VOCABULARY, CONTEXT, D, 2, HEADS, kv_heads=2, qk_norm="rms", **o),
    "multi-query": lambda **o: fnn.TransformerLM(VOCABULARY, CONTEXT, D, 2, HEADS, kv_heads=1, **o),
}  # fmt: skip


def ids_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def model_of(name: str, **options) -> fnn.TransformerLM:
    """Weights large enough that the likeliest token depends on all that came before."""
    model = perturbed(MODELS[name](**options)).eval()
    model.reset_parameters("cs336", seed=1)
    return model


# --- the cache


@pytest.mark.parametrize("chunks", [(1,) * 12, (12,), (5, 1, 6)])
@pytest.mark.parametrize("shape", [(12,), (3, 12), (2, 2, 12)])
@pytest.mark.parametrize("name", MODELS)
def test_cache_is_the_full_forward(name, shape, chunks):
    model, ids = model_of(name), ids_of(*shape)
    whole = model(ids)
    size = whole.abs().max().item()
    for grad in (False, True):
        cache = model.make_cache()
        with torch.set_grad_enabled(grad):
            parts = [model(part, cache=cache) for part in ids.split(chunks, -1)]
        assert cache[0].length == 12
        assert (torch.cat(parts, -2) - whole).abs().max().item() <= 1e-5 * size


def test_cache_with_padding_on_the_left():
    """Prompts of unequal lengths side by side: each row as if alone, with positions of its own."""
    model, ids = model_of("rope"), ids_of(1, 4)
    alone = model(ids)
    both = torch.cat((torch.tensor([[0, 0]]), ids), -1)
    padding = torch.tensor([[True, True, False, False, False, False]])
    positions = torch.tensor([[0, 0, 0, 1, 2, 3]])
    cache, parts = model.make_cache(), []
    for t in range(6):
        how = {"key_padding_mask": padding[:, : t + 1], "positions": positions[:, t : t + 1]}
        parts.append(model(both[:, t : t + 1], cache=cache, **how))
    torch.testing.assert_close(torch.cat(parts, 1)[:, 2:], alone, atol=1e-5, rtol=1e-5)


def test_cache_memory_is_taken_once():
    model = model_of("grouped")
    with torch.no_grad():
        cache = model.make_cache(8)
        model(ids_of(2, 3), cache=cache)
        before = cache[0].k.data_ptr()
        model(ids_of(2, 5), cache=cache)
    assert cache[0].k.data_ptr() == before
    assert cache[0].k.shape == (2, 2, 8, D // HEADS)  # shared heads only


def test_cache_beyond_the_context():
    model = model_of("rope")
    cache = model.make_cache()
    model(ids_of(1, 12), cache=cache)
    with pytest.raises(InvalidValueError, match="13 tokens are more than context_length=12"):
        model(ids_of(1, 1), cache=cache)


def test_gradients_through_the_cache():
    model, ids = model_of("rope"), ids_of(2, 6)
    cache = model.make_cache()
    parts = [model(part, cache=cache) for part in ids.split(2, -1)]
    ours = torch.autograd.grad(torch.cat(parts, 1).square().sum(), list(model.parameters()))
    theirs = torch.autograd.grad(model(ids).square().sum(), list(model.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, b.abs().max().item())


# --- generate


def by_hand(model: fnn.TransformerLM, ids: torch.Tensor, count: int) -> torch.Tensor:
    """Greedy, without a cache."""
    for _ in range(count):
        logits = model(ids[..., -model.context_length :])[..., -1, :]
        ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), -1)
    return ids


@pytest.mark.parametrize("shape", [(3,), (2, 2, 5), (2, 12), (2, 15)])
@pytest.mark.parametrize("name", MODELS)
def test_greedy(name, shape):
    """As by hand, beyond the context too, where the model sees the last tokens that fit."""
    model, ids = model_of(name), ids_of(*shape)
    found = model.generate(ids, 14, temperature=0)
    assert torch.equal(found, by_hand(model, ids, 14))
    assert torch.equal(found[..., : shape[-1]], ids)
    assert found.dtype == torch.int64


def test_nothing_new():
    ids = ids_of(2, 3)
    assert torch.equal(model_of("rope").generate(ids, 0), ids)


def test_a_generator_reproduces():
    model, ids = model_of("rope"), ids_of(3, 2)

    def text(seed: int, **how) -> torch.Tensor:
        return model.generate(ids, 8, generator=torch.Generator().manual_seed(seed), **how)

    assert torch.equal(text(1), text(1))
    assert not torch.equal(text(1), text(2))
    state = torch.get_rng_state()
    text(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    first = model.generate(ids, 8)
    torch.manual_seed(5)
    assert torch.equal(model.generate(ids, 8), first)
    for how in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        assert torch.equal(text(1, **how), model.generate(ids, 8, temperature=0))


def test_stop():
    """A text is complete at the stop token, which fills it up until all are."""
    model, ids = model_of("rope"), ids_of(4, 3)
    free = model.generate(ids, 9, temperature=0)
    stop = int(free[0, 5])
    found = model.generate(ids, 9, temperature=0, stop=stop)
    for row, other in zip(found, free, strict=True):
        at = (other[3:] == stop).nonzero()
        end = 3 + int(at[0]) + 1 if len(at) else len(other)
        assert torch.equal(row[:end], other[:end][: len(row)])
        assert (row[end:] == stop).all()
    alone = model.generate(ids[:1], 9, temperature=0, stop=stop)
    assert alone.shape[-1] == 3 + int((free[0, 3:] == stop).nonzero()[0]) + 1


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_restored(training):
    model = model_of("rope", dropout=0.5).train(training)
    found = model.generate(ids_of(2, 3), 4, temperature=0)
    assert model.training == training
    assert torch.equal(found, by_hand(model.eval(), ids_of(2, 3), 4))
    model.train()
    model.layers[0].eval()
    before = [m.training for m in model.modules()]
    model.generate(ids_of(2, 3), 1)
    assert [m.training for m in model.modules()] == before
    with pytest.raises(IndexError):
        model.generate(torch.tensor([[VOCABULARY + 1]]), 1)
    assert [m.training for m in model.modules()] == before
    assert not model.generate(ids_of(1, 1), 2).requires_grad


@pytest.mark.parametrize(
    ("ids", "how", "message"),
    [
        ((2, 0), {}, "at least one token"),
        ((2, 3), {"max_new_tokens": -1}, "max_new_tokens must be at least 0, got -1"),
        ((2, 3), {"temperature": -0.5}, "temperature must be at least 0, got -0.5"),
        ((2, 3), {"temperature": float("nan")}, "temperature must be at least 0"),
        ((2, 3), {"top_k": 0}, "top_k must be at least 1, got 0"),
        ((2, 3), {"top_p": 0.0}, "top_p must lie in"),
        ((2, 3), {"top_p": 1.5}, "top_p must lie in"),
    ],
)
def test_refused(ids, how, message):
    with pytest.raises(InvalidValueError, match=message):
        model_of("rope").generate(ids_of(*ids), **{"max_new_tokens": 2} | how)


# --- sample

P = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        ({}, 5),
        ({"top_k": 2}, 2),
        ({"top_k": 9}, 5),
        ({"top_p": 0.4}, 1),
        ({"top_p": 0.6}, 2),
        ({"top_p": 0.76}, 3),
        ({"top_p": 1.0}, 5),
        ({"top_k": 3, "top_p": 0.5}, 1),
        ({"temperature": 2.0}, 5),
        ({"temperature": 0.5, "top_k": 4}, 4),
    ],
)
def test_sample(how, kept):
    """Frequencies of 20000 draws within 5 standard errors of the renormalised probabilities."""
    n, order = 20000, torch.tensor([3, 0, 4, 1, 2])
    logits = P.log()[order].expand(n, 5)
    drawn = order[sample(logits, generator=torch.Generator().manual_seed(0), **how)]
    p = torch.softmax(P.log() / how.get("temperature", 1.0), 0)
    p = torch.where(torch.arange(5) < kept, p, 0.0)
    p = p / p.sum()
    found = torch.bincount(drawn, minlength=5) / n
    assert not found[kept:].any()
    assert torch.all((found - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-9)


# --- recomputation


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["LM", "encoder", "encoder, unpadded"])
def test_checkpointing_gives_the_same_gradients(kind, dropout):
    def gradients(checkpoint: bool) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(3)
        if kind == "LM":
            model = MODELS["rope"](dropout=dropout, checkpoint=checkpoint)
            y = model(ids_of(2, 5))
        else:
            model = fnn.TransformerEncoder(
                D, HEADS, num_layers=2, dropout=dropout, checkpoint=checkpoint, unpad="unpadded" in kind
            )  # fmt: skip
            y = model(normal(2, 5, D), key_padding_mask=padded())
        return y, *torch.autograd.grad(y.square().mean(), list(model.parameters()))

    for a, b in zip(gradients(checkpoint=False), gradients(checkpoint=True), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["LM", "encoder"])
def test_checkpointing_runs_each_block_twice(kind):
    """And only where there is a backward pass to come."""
    if kind == "LM":
        model, x = MODELS["rope"](checkpoint=True), ids_of(2, 5)
    else:
        model, x = fnn.TransformerEncoder(D, HEADS, num_layers=2, checkpoint=True), normal(2, 5, D)
    ran = []
    for layer in model.layers:
        layer.ffn.w1.register_forward_hook(lambda *_: ran.append(1))
    model(x).sum().backward()
    assert len(ran) == 4
    ran.clear()
    with torch.no_grad():
        model(x)
    assert len(ran) == 2


# --- torch.compile, torch.export

COMPILED = {
    "encoder, unpad off": (lambda: fnn.TransformerEncoder(D, HEADS, num_layers=1, positions="sinusoidal", unpad=False), True),
    "encoder, auto": (lambda: fnn.TransformerEncoder(D, HEADS, num_layers=1, positions="rope"), True),
    "encoder, asked to unpad": (lambda: fnn.TransformerEncoder(D, HEADS, num_layers=1, unpad=True), True),
    "post-norm encoder": (lambda: fnn.TransformerEncoder(D, HEADS, num_layers=1, norm="post", activation="relu"), True),
    "LM": (lambda: fnn.TransformerLM(VOCABULARY, CONTEXT, D, 1, HEADS), False),
    "LM half": (lambda: fnn.TransformerLM(VOCABULARY, CONTEXT, D, 1, HEADS, kv_heads=2, rope_layout="half"), False),
    "gpt2": (lambda: fnn.TransformerLM.gpt2(VOCABULARY, CONTEXT, D, 1, HEADS), False),
}  # fmt: skip


def all_but_one_slow(quick: str):
    return [pytest.param(n, marks=[] if n == quick else pytest.mark.slow) for n in COMPILED]


def arguments(features: bool, batch: int = 2, length: int = 5) -> tuple[tuple, dict]:
    if features:
        return (normal(batch, length, D),), {"key_padding_mask": padded(batch, length)}
    return (ids_of(batch, length),), {"key_padding_mask": padded(batch, length)}


@pytest.mark.parametrize("name", all_but_one_slow("encoder, auto"))
def test_compile_without_breaks(name):
    make, features = COMPILED[name]
    model = make()
    args, kwargs = arguments(features)
    eager = model(*args, **kwargs)
    expected = torch.autograd.grad(eager.square().sum(), list(model.parameters()))
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y = compiled(*args, **kwargs)
    torch.testing.assert_close(y, eager, atol=2e-6, rtol=1e-5)
    found = torch.autograd.grad(y.square().sum(), list(model.parameters()))
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(1.0, b.abs().max().item())
    state = compiled.state_dict()
    assert all(k.startswith("_orig_mod.") for k in state)
    twin = make()
    twin.load_state_dict(state)
    torch.testing.assert_close(twin(*args, **kwargs), eager, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", all_but_one_slow("LM"))
def test_export_with_free_sizes(name):
    make, features = COMPILED[name]
    model = make().eval()
    args, kwargs = arguments(features)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=CONTEXT)
    free = {0: batch, 1: length}
    shapes = {"x" if features else "ids": free, "key_padding_mask": free}
    program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
    for sizes in ((2, 5), (3, 9), (4, 2)):
        args, kwargs = arguments(features, *sizes)
        torch.testing.assert_close(program.module()(*args, **kwargs), model(*args, **kwargs), atol=2e-6, rtol=1e-5)  # fmt: skip


@pytest.mark.slow
def test_compiled_blocks_inside():
    """A part that is compiled by itself leaves the model what it was."""
    model = model_of("rope")
    expected = model(ids_of(2, 5))
    torch.compiler.reset()
    with torch.no_grad():
        model.layers[1] = torch.compile(model.layers[1], fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(model(ids_of(2, 5)), expected, atol=2e-6, rtol=1e-5)
    plain = MODELS["rope"]()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain.eval()(ids_of(2, 5)), expected, atol=2e-6, rtol=1e-5)


def test_training_learns():
    """Thirty steps on one text: the loss falls from ln(vocabulary) to near nothing, reproducibly."""

    def losses() -> list[float]:
        torch.manual_seed(0)
        model = MODELS["rope"](init="gpt2")
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2, weight_decay=0.0)
        ids, found = ids_of(4, CONTEXT), []
        for _ in range(30):
            loss = fnn.cross_entropy(model(ids[:, :-1]), ids[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    first = losses()
    assert first[0] == pytest.approx(float(torch.tensor(float(VOCABULARY)).log()), rel=0.05)
    assert first[-1] < 0.2
    assert losses() == first


def test_blocks_in_a_sequence():
    """They are ordinary modules: nn.Sequential, parameters in order, no hidden state."""
    stack = nn.Sequential(*[fnn.TransformerBlock(D, HEADS) for _ in range(2)], fnn.RMSNorm(D))
    assert stack(normal(2, 5, D)).shape == (2, 5, D)
    assert len(stack.state_dict()) == len(list(stack.parameters()))
