"""Every block of `fanin.nn` in its variants: how to build it, what to call it with, what it should give.

The expected outputs are those of `oracle_nn`, float64 numpy without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import oracle_nn as oracle
from fanin import nn as fnn

D, HEADS, T, B = 16, 4, 5, 2
TOLERANCE = 1e-6  # of the largest output: 8 of float32's spacings


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def padded(batch: int = B, length: int = T) -> Tensor:
    """Ragged lengths, the first row whole, the last with a single token."""
    lengths = torch.linspace(length, 1, batch).round().long()
    return torch.arange(length) >= lengths[:, None]


def perturbed(module: nn.Module, seed: int = 0) -> nn.Module:
    """Norms, biases and positions away from their trivial starting values, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if p.dim() < 2:
                p += 0.3 * torch.randn(p.shape, generator=generator)
    return module


@dataclass(frozen=True, eq=False)
class Case:
    """One block.

    Args:
        make: builds it; takes device and dtype.
        expected: (weights, inputs), both float64, -> output.
        inputs: keyword arguments of ``forward``, or positional under an int.
        forward: names of arguments there -> names in the oracle.
    """

    make: Callable[..., nn.Module]
    expected: Callable[..., Any]
    inputs: Mapping[str | int, Any] = field(default_factory=lambda: {0: normal(B, T, D)})

    def run(self, module: nn.Module) -> Tensor:
        args = [v for k, v in self.inputs.items() if isinstance(k, int)]
        kwargs = {k: v for k, v in self.inputs.items() if isinstance(k, str)}
        return module(*args, **kwargs)

    def oracle(self, module: nn.Module) -> Any:
        arrays = {k: numbers(v) for k, v in self.inputs.items()}
        args = [v for k, v in arrays.items() if isinstance(k, int)]
        kwargs = {_NAMES.get(k, k): v for k, v in arrays.items() if isinstance(k, str)}
        return self.expected(oracle.exact(module.state_dict()), *args, **kwargs)


_NAMES = {"key_padding_mask": "padding"}


def numbers(tensor: Any) -> Any:
    """float64 of floats, the same numbers of all else."""
    if isinstance(tensor, tuple):
        return tuple(numbers(t) for t in tensor)
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def gap(found: Tensor, expected: Any) -> float:
    """Largest difference, as a part of the largest expected number."""
    expected = np.asarray(expected)
    assert tuple(found.shape) == expected.shape
    return float(np.abs(numbers(found.detach()) - expected).max() / np.abs(expected).max())


def _attention(w: Any, x: Any, context: Any = None, *, spec: oracle.Attention, **how: Any) -> Any:
    keys, values = context if isinstance(context, tuple) else (context, None)
    return spec(w, x, keys, values, **how)[0]


def attention_case(
    spec: oracle.Attention, inputs: Mapping[str | int, Any] | None = None, **options: Any
) -> Case:
    def make(**common: Any) -> nn.Module:
        own = dict(options)
        if spec.rope is not None:
            size = own.get("head_dim") or D // spec.heads
            own["rope"] = fnn.RotaryEmbedding(size, spec.rope.theta, 64, spec.rope.layout)
        return fnn.MultiHeadAttention(
            D,
            spec.heads,
            kv_heads=spec.kv_heads,
            qk_norm="rms" if spec.qk_norm else None,
            causal=spec.causal,
            **own,
            **common,
        )

    def expected(w: Any, x: Any, context: Any = None, **how: Any) -> Any:
        return _attention(w, x, context, spec=spec, **how)

    return Case(make, expected, inputs or {0: normal(B, T, D)})


def _block(spec: oracle.Block, make: Callable[..., nn.Module], **inputs: Any) -> Case:
    return Case(make, spec, {0: normal(B, T, D), **inputs})


A, Rope = oracle.Attention, oracle.Rope
X = {0: normal(B, T, D)}
KEYS = torch.tensor([[True, True, False, True, True]]).expand(T, T)
HEADWISE = torch.rand(B, HEADS, T, T, generator=torch.Generator().manual_seed(3)) < 0.6

ATTENTIONS = {
    "plain": attention_case(A(HEADS)),
    "no bias": attention_case(A(HEADS), bias=False),
    "one head": attention_case(A(1)),
    "causal": attention_case(A(HEADS, causal=True)),
    "grouped queries": attention_case(A(HEADS, 2)),
    "multi-query": attention_case(A(HEADS, 1)),
    "head_dim": attention_case(A(HEADS, 2), head_dim=6),
    "cross": attention_case(A(HEADS), X | {1: normal(B, 7, D, seed=1)}),
    "causal cross, fewer queries": attention_case(A(HEADS, causal=True), X | {1: normal(B, 7, D, seed=1)}),
    "causal cross, more queries": attention_case(A(HEADS, causal=True), X | {1: normal(B, 3, D, seed=1)}),
    "kdim": attention_case(A(HEADS), X | {1: normal(B, 7, 6, seed=1)}, kdim=6),
    "kdim and vdim": attention_case(
        A(HEADS), X | {1: (normal(B, 7, 6, seed=1), normal(B, 7, 9, seed=2))}, kdim=6, vdim=9
    ),
    "rope interleaved": attention_case(A(HEADS, rope=Rope())),
    "rope half": attention_case(A(HEADS, rope=Rope(100.0, "half"))),
    "rope, positions for all": attention_case(
        A(HEADS, rope=Rope()), X | {"positions": torch.tensor([3, 4, 9, 0, 0])}
    ),
    "rope, positions (1, T)": attention_case(
        A(HEADS, rope=Rope()), X | {"positions": torch.tensor([[3, 4, 9, 0, 0]])}
    ),
    "rope, positions per row": attention_case(
        A(HEADS, 2, rope=Rope(layout="half")), X | {"positions": torch.arange(B * T).view(B, T)}
    ),
    "qk-norm": attention_case(A(HEADS, qk_norm=True)),
    "everything": attention_case(
        A(HEADS, 2, Rope(), qk_norm=True, causal=True),
        X | {"key_padding_mask": padded()},
        bias=False,
        head_dim=8,
    ),
    "no leading axis": attention_case(A(HEADS, 2, causal=True), {0: normal(T, D)}),
    "two leading axes": attention_case(A(HEADS, 2, rope=Rope()), {0: normal(2, 3, T, D)}),
    "three leading axes": attention_case(A(HEADS, rope=Rope()), {0: normal(2, 1, 3, T, D)}),
    "two leading axes, positions": attention_case(
        A(HEADS, rope=Rope()), {0: normal(2, 3, T, D), "positions": torch.arange(3 * T).view(3, T)}
    ),
    "one token": attention_case(A(HEADS, rope=Rope(), causal=True), {0: normal(1, 1, D)}),
    "mask (T, S)": attention_case(A(HEADS), X | {"mask": torch.eye(T).bool() | KEYS}),
    "mask (1, S)": attention_case(A(HEADS), X | {"mask": KEYS[:1]}),
    "mask (S)": attention_case(A(HEADS), X | {"mask": KEYS[0]}),
    "mask (T, 1)": attention_case(A(HEADS), X | {"mask": torch.arange(T)[:, None] > 1}),
    "mask (1, T, S)": attention_case(A(HEADS), X | {"mask": HEADWISE[:1, 0]}),
    "mask (B, T, S)": attention_case(A(HEADS), X | {"mask": HEADWISE[:, 0]}),
    "mask (B, 1, T, S)": attention_case(A(HEADS), X | {"mask": HEADWISE[:, :1]}),
    "mask (B, heads, T, S)": attention_case(A(HEADS, 2), X | {"mask": HEADWISE}),
    "mask (heads, T, S), no leading axis": attention_case(
        A(HEADS), {0: normal(T, D), "mask": HEADWISE[0]}
    ),
    "mask (B, T, S) under two leading axes": attention_case(
        A(HEADS), {0: normal(3, B, T, D), "mask": HEADWISE[:, 0]}
    ),
    "mask of floats": attention_case(A(HEADS), X | {"mask": normal(T, T, seed=5)}),
    "mask of floats and -inf": attention_case(
        A(HEADS, causal=True),
        X | {"mask": normal(B, HEADS, T, T, seed=5).masked_fill(~HEADWISE, -torch.inf)},
    ),
    "mask and padding": attention_case(
        A(HEADS), X | {"mask": HEADWISE[0, 0], "key_padding_mask": padded()}
    ),
    "float mask and padding": attention_case(
        A(HEADS), X | {"mask": normal(T, T, seed=5), "key_padding_mask": padded()}
    ),
    "padding": attention_case(A(HEADS), X | {"key_padding_mask": padded()}),
    "padding of everything": attention_case(
        A(HEADS), X | {"key_padding_mask": torch.tensor([[True], [False]]).expand(B, T)}
    ),
    "padding, no leading axis": attention_case(
        A(HEADS), {0: normal(T, D), "key_padding_mask": padded()[1]}
    ),
    "padding under two leading axes": attention_case(
        A(HEADS), {0: normal(3, B, T, D), "key_padding_mask": padded().expand(3, B, T)}
    ),
    "causal and padding on the left": attention_case(
        A(HEADS, causal=True), X | {"key_padding_mask": padded().flip(-1)}
    ),
}  # fmt: skip

CAUSAL = A(HEADS, causal=True)
LLAMA = oracle.Block(A(HEADS, None, Rope(), causal=True), "pre", "rms", "swiglu")
BLOCKS = {
    f"{norm} {layer} {ffn}": _block(
        oracle.Block(A(HEADS), norm, layer, ffn),
        lambda norm=norm, layer=layer, ffn=ffn, **c: fnn.TransformerBlock(
            D,
            HEADS,
            norm=norm,
            norm_layer=layer,
            ffn="swiglu" if ffn == "swiglu" else "mlp",
            **({} if ffn == "swiglu" else {"activation": ffn}),
            **c,
        ),
        key_padding_mask=padded(),
    )
    for norm in ("pre", "post")
    for layer in ("layer", "rms")
    for ffn in (*oracle.ACTIVATIONS, "swiglu")
} | {
    "block without bias": _block(
        oracle.Block(A(HEADS)), lambda **c: fnn.TransformerBlock(D, HEADS, bias=False, **c)
    ),
    "block llama": _block(
        LLAMA,
        lambda **c: fnn.TransformerBlock.llama(D, HEADS, max_len=8, **c),
        positions=torch.tensor([0, 1, 5, 6, 7]),
    ),
    "block llama, half, grouped": _block(
        oracle.Block(A(HEADS, 2, Rope(500.0, "half"), causal=True), "pre", "rms", "swiglu"),
        lambda **c: fnn.TransformerBlock.llama(
            D, HEADS, rope_theta=500.0, rope_layout="half", kv_heads=2, **c
        ),
    ),
    "block gpt2": _block(
        oracle.Block(CAUSAL, ffn="gelu_tanh"), lambda **c: fnn.TransformerBlock.gpt2(D, HEADS, **c)
    ),
    "block bert": _block(
        oracle.Block(A(HEADS), "post", eps=1e-12), lambda **c: fnn.TransformerBlock.bert(D, HEADS, **c)
    ),
    "block vit": _block(
        oracle.Block(A(HEADS), eps=1e-6), lambda **c: fnn.TransformerBlock.vit(D, HEADS, **c)
    ),
    "block of d_ff, qk-norm": _block(
        oracle.Block(A(HEADS, qk_norm=True)),
        lambda **c: fnn.TransformerBlock(D, HEADS, d_ff=24, qk_norm="rms", **c),
        mask=HEADWISE,
    ),
}  # fmt: skip


def _encoder(
    spec: oracle.Encoder, inputs: Mapping[str | int, Any] | None = None, **options: Any
) -> Case:
    def make(**common: Any) -> nn.Module:
        return fnn.TransformerEncoder(D, HEADS, num_layers=spec.layers, **(options | common))

    return Case(make, spec, inputs or {0: normal(B, T, D), "key_padding_mask": padded()})


PRE, POST = oracle.Block(A(HEADS)), oracle.Block(A(HEADS), "post", ffn="relu")
ENCODERS = {
    f"encoder, unpad={unpad}": _encoder(oracle.Encoder(PRE, 2), unpad=unpad)
    for unpad in ("auto", True, False)
} | {
    "encoder post": _encoder(oracle.Encoder(POST, 2, final=False), norm="post", activation="relu"),
    "encoder post, final norm": _encoder(
        oracle.Encoder(POST, 2), norm="post", activation="relu", final_norm=True
    ),
    "encoder pre, no final norm": _encoder(oracle.Encoder(PRE, 1, final=False), final_norm=False),
    "encoder sinusoidal": _encoder(
        oracle.Encoder(PRE, 2, "sinusoidal"), positions="sinusoidal", max_len=T
    ),
    "encoder learned, positions": _encoder(
        oracle.Encoder(PRE, 2, "learned"),
        X | {"positions": torch.tensor([4, 3, 2, 2, 2])},
        positions="learned",
        max_len=6,
    ),
    "encoder rope swiglu rms": _encoder(
        oracle.Encoder(
            oracle.Block(A(HEADS, 2, Rope(), qk_norm=True, causal=True), "pre", "rms", "swiglu"), 2
        ),
        positions="rope",
        activation="swiglu",
        norm_layer="rms",
        kv_heads=2,
        qk_norm="rms",
        causal=True,
        bias=False,
    ),
    "encoder without padding": _encoder(oracle.Encoder(PRE, 2), X),
    "encoder, no leading axis": _encoder(
        oracle.Encoder(PRE, 2), {0: normal(T, D), "key_padding_mask": padded()[1]}
    ),
    "encoder, no leading axis, unpad": _encoder(
        oracle.Encoder(PRE, 1),
        {0: normal(T, D), "key_padding_mask": padded()[1], "mask": HEADWISE[0]},
        unpad=True,
    ),
    "encoder, two leading axes": _encoder(
        oracle.Encoder(oracle.Block(A(HEADS, rope=Rope())), 1),
        {
            0: normal(3, B, T, D),
            "key_padding_mask": padded(6).view(3, B, T),
            "mask": HEADWISE[None],
            "positions": torch.arange(B * T).view(B, T),
        },
        positions="rope",
        unpad=True,
    ),
    "encoder, two leading axes, a mask per row": _encoder(
        oracle.Encoder(PRE, 1),
        {
            0: normal(3, B, T, D),
            "key_padding_mask": padded(6).view(3, B, T),
            "mask": HEADWISE[:, 0],
        },
        unpad=True,
    ),
    "encoder, everything is padding": _encoder(
        oracle.Encoder(PRE, 1),
        {0: normal(B, T, D), "key_padding_mask": torch.ones(B, T, dtype=torch.bool)},
        unpad=True,
    ),
}

IDS = torch.randint(11, (B, T), generator=torch.Generator().manual_seed(0))
LANGUAGE_MODELS = {
    "language model": Case(
        lambda **c: fnn.TransformerLM(11, 8, D, 2, HEADS, **c),
        oracle.LanguageModel(LLAMA, 2),
        {0: IDS},
    ),
    "language model, padding, positions": Case(
        lambda **c: fnn.TransformerLM(11, 8, D, 2, HEADS, **c),
        oracle.LanguageModel(LLAMA, 2),
        {0: IDS, "key_padding_mask": padded(), "positions": torch.tensor([[0, 1, 2, 3, 7]])},
    ),
    "language model, no leading axis": Case(
        lambda **c: fnn.TransformerLM(11, 8, D, 1, HEADS, **c),
        oracle.LanguageModel(LLAMA, 1),
        {0: IDS[0]},
    ),
    "language model, grouped, half, qk-norm, tied": Case(
        lambda **c: fnn.TransformerLM(
            11, 8, D, 2, HEADS, kv_heads=2, rope_layout="half", qk_norm="rms", tie=True, **c
        ),
        oracle.LanguageModel(
            oracle.Block(
                A(HEADS, 2, Rope(layout="half"), qk_norm=True, causal=True), "pre", "rms", "swiglu"
            ),
            2,
        ),
        {0: IDS},
    ),
    "language model gpt2": Case(
        lambda **c: fnn.TransformerLM.gpt2(11, 8, D, 2, HEADS, **c),
        oracle.LanguageModel(oracle.Block(CAUSAL, ffn="gelu_tanh"), 2, learned=True),
        {0: IDS, "mask": KEYS},
    ),
    "language model without positions": Case(
        lambda **c: fnn.TransformerLM(11, 8, D, 1, HEADS, positions=None, **c),
        oracle.LanguageModel(oracle.Block(CAUSAL, "pre", "rms", "swiglu"), 1),
        {0: IDS},
    ),
}

SIMPLE = {
    "linear": Case(lambda **c: fnn.Linear(D, 7, **c), oracle.linear),
    "linear with bias": Case(lambda **c: fnn.Linear(D, 7, True, **c), oracle.linear),
    "linear of a vector": Case(lambda **c: fnn.Linear(D, 7, **c), oracle.linear, {0: normal(D)}),
    "embedding": Case(lambda **c: fnn.Embedding(11, D, **c), oracle.embedding, {0: IDS}),
    "embedding, padding_idx": Case(
        lambda **c: fnn.Embedding(11, D, 2, **c), oracle.embedding, {0: IDS}
    ),
    "rms norm": Case(lambda **c: fnn.RMSNorm(D, **c), oracle.rms_norm),
    "rms norm of small numbers": Case(
        lambda **c: fnn.RMSNorm(D, 1e-3, **c),
        lambda w, x: oracle.rms_norm(w, x, 1e-3),
        {0: 0.01 * normal(T, D)},
    ),
    "layer norm": Case(lambda **c: fnn.LayerNorm(D, **c), oracle.layer_norm),
    "layer norm without bias": Case(
        lambda **c: fnn.LayerNorm(D, 1e-3, False, **c),
        lambda w, x: oracle.layer_norm(w, x, 1e-3),
    ),
    "swiglu": Case(lambda **c: fnn.SwiGLU(D, **c), oracle.swiglu),
    "swiglu with bias": Case(lambda **c: fnn.SwiGLU(D, 24, bias=True, **c), oracle.swiglu),
    "learned positions": Case(
        lambda **c: fnn.LearnedPositions(D, 9, **c),
        lambda w, x: x + w["weight"][: x.shape[-2]],
    ),
    "learned positions, given": Case(
        lambda **c: fnn.LearnedPositions(D, 9, **c),
        lambda w, x, positions: x + w["weight"][positions],
        X | {"positions": torch.tensor([8, 0, 1, 1, 3])},
    ),
} | {
    f"feed-forward {name}": Case(
        lambda name=name, **c: fnn.FeedForward(D, 24, activation=name, **c),
        lambda w, x, name=name: oracle.feed_forward(w, x, name),
    )
    for name in oracle.ACTIVATIONS
}  # fmt: skip

CASES: dict[str, Case] = {
    **SIMPLE,
    **{f"attention {name}": case for name, case in ATTENTIONS.items()},
    **{f"block {name}" if not name.startswith("block") else name: c for name, c in BLOCKS.items()},
    **ENCODERS,
    **LANGUAGE_MODELS,
}

# One case of each structure: what is called alike but for its inputs starts, copies and pickles alike.
DISTINCT = list({repr(c.make(device="meta")): name for name, c in CASES.items()}.values())
