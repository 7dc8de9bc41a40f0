"""Blocks from modules of torch.nn and of transformers, and back."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._errors import InvalidValueError
from ._attention import MultiHeadAttention
from ._language import TransformerLM
from ._transformer import TransformerBlock, TransformerEncoder


@overload
def from_torch(module: nn.MultiheadAttention) -> MultiHeadAttention: ...
@overload
def from_torch(module: nn.TransformerEncoderLayer) -> TransformerBlock: ...
@overload
def from_torch(module: nn.TransformerEncoder) -> TransformerEncoder: ...
def from_torch(module: nn.Module) -> nn.Module:
    """The block of `fanin.nn` that computes what ``module`` does, with a copy of its weights.

    Blocks have the batch first whatever ``batch_first`` says, and give zeros at padded positions.

    Args:
        module: nn.MultiheadAttention, nn.TransformerEncoderLayer or nn.TransformerEncoder.

    Raises:
        InvalidValueError: another type, or an option that blocks do not have (add_bias_kv,
            add_zero_attn, an activation that is neither ReLU nor GELU, layers that differ).

    Example:
        >>> import torch
        >>> theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        >>> x = torch.randn(2, 3, 8)
        >>> torch.allclose(from_torch(theirs)(x), theirs(x, x, x)[0], atol=1e-6)
        True
    """
    if isinstance(module, nn.MultiheadAttention):
        block: nn.Module = _attention(module)
    elif isinstance(module, nn.TransformerEncoderLayer):
        block = _on_meta(TransformerBlock, **_layer_options(module))
    elif isinstance(module, nn.TransformerEncoder):
        block = _encoder(module)
    else:
        raise InvalidValueError(
            "from_torch takes nn.MultiheadAttention, nn.TransformerEncoderLayer or nn.TransformerEncoder, "
            f"got {type(module).__name__}."
        )
    return _filled(block, module.state_dict()).train(module.training)


def _attention(m: nn.MultiheadAttention) -> nn.Module:
    if m.bias_k is not None or m.add_zero_attn:
        raise InvalidValueError(
            "add_bias_kv and add_zero_attn add keys that fanin.nn.MultiHeadAttention does not have."
        )
    return _on_meta(
        MultiHeadAttention,
        d_model=m.embed_dim,
        num_heads=m.num_heads,
        kdim=m.kdim,
        vdim=m.vdim,
        bias=m.in_proj_bias is not None,
        dropout=m.dropout,
    )


def _layer_options(m: nn.TransformerEncoderLayer) -> dict[str, Any]:
    return {
        "d_model": m.self_attn.embed_dim,
        "num_heads": m.self_attn.num_heads,
        "d_ff": m.linear1.out_features,
        "norm": "pre" if m.norm_first else "post",
        "activation": _activation(m),
        "bias": m.linear1.bias is not None,
        "dropout": m.dropout.p,
        "eps": m.norm1.eps,
    }


def _activation(m: nn.TransformerEncoderLayer) -> str:
    known = {F.relu: "relu", F.gelu: "gelu", torch.relu: "relu"}
    if isinstance(m.activation, nn.ReLU):
        return "relu"
    if isinstance(m.activation, nn.GELU):
        return "gelu" if m.activation.approximate == "none" else "gelu_tanh"
    if m.activation not in known:
        raise InvalidValueError(
            f"activation must be ReLU or GELU, this layer has {m.activation!r}."
        )
    return known[m.activation]


def _encoder(m: nn.TransformerEncoder) -> nn.Module:
    options = [_layer_options(layer) for layer in m.layers]
    if any(o != options[0] for o in options):
        raise InvalidValueError("the layers of this nn.TransformerEncoder differ in their options.")
    if m.norm is not None and not isinstance(m.norm, nn.LayerNorm):
        raise InvalidValueError(f"norm must be nn.LayerNorm, got {type(m.norm).__name__}.")
    block = _on_meta(
        TransformerEncoder,
        num_layers=len(options),
        final_norm=m.norm is not None,
        **options[0],
    )
    if m.norm is not None:
        block.ln_final.eps = m.norm.eps
    return block


def to_torch(block: nn.Module) -> nn.Module:
    """The module of torch.nn that computes what ``block`` does, batch first, with a copy of its weights.

    Raises:
        InvalidValueError: another type, or something that torch's module does not have: grouped
            queries, rope, qk_norm, a causal mask of its own, RMSNorm, SwiGLU, positions.

    Example:
        >>> import torch
        >>> from fanin.nn import MultiHeadAttention
        >>> ours, x = MultiHeadAttention(8, 2), torch.randn(2, 3, 8)
        >>> torch.allclose(to_torch(ours)(x, x, x)[0], ours(x), atol=1e-6)
        True
    """
    if isinstance(block, MultiHeadAttention):
        theirs, weights = _torch_attention(block), _packed(block, block.state_dict(), "")
    elif isinstance(block, TransformerEncoder):
        theirs, weights = _torch_encoder(block)
    else:
        raise InvalidValueError(
            f"to_torch takes MultiHeadAttention or TransformerEncoder, got {type(block).__name__}."
        )
    return _filled(theirs, weights).train(block.training)


def _torch_attention(m: MultiHeadAttention) -> nn.Module:
    extra = {
        "kv_heads": m.kv_heads != m.num_heads,
        "head_dim": m.num_heads * m.head_dim != m.d_model,
        "rope": m.rope is not None,
        "qk_norm": m.q_norm is not None,
        "causal": m.causal,
    }
    _refuse(extra, "nn.MultiheadAttention")
    return _on_meta(
        nn.MultiheadAttention,
        embed_dim=m.d_model,
        num_heads=m.num_heads,
        dropout=m.dropout.p,
        bias=m.q_proj.bias is not None,
        kdim=m.kdim,
        vdim=m.vdim,
        batch_first=True,
    )


def _torch_encoder(m: TransformerEncoder) -> tuple[nn.Module, dict[str, Tensor]]:
    first: Any = m.layers[0]
    _torch_attention(first.attn)
    activation = getattr(first.ffn, "activation", "swiglu")
    extra = {
        "positions": m.positions is not None,
        "norm_layer='rms'": not isinstance(first.ln1, nn.LayerNorm),
        f"activation={activation!r}": activation not in ("relu", "gelu"),
    }
    _refuse(extra, "nn.TransformerEncoder")
    bias = first.attn.q_proj.bias is not None
    eps = first.ln1.eps
    layer = nn.TransformerEncoderLayer(
        m.d_model,
        first.attn.num_heads,
        first.ffn.w1.out_features,
        first.dropout1.p,
        activation,
        eps,
        batch_first=True,
        norm_first=first.norm == "pre",
        bias=bias,
        device="meta",
    )
    last: nn.Module | None = None
    final: Any = m.ln_final
    if final is not None:
        last = nn.LayerNorm(m.d_model, final.eps, bias=bias, device="meta")
    nested = first.norm == "post" and bias and first.attn.num_heads % 2 == 0
    theirs = nn.TransformerEncoder(layer, len(m.layers), last, enable_nested_tensor=nested)
    names = {".attn.": ".self_attn.", ".ffn.w1.": ".linear1.", ".ffn.w2.": ".linear2.",
             ".ln1.": ".norm1.", ".ln2.": ".norm2.", "ln_final.": "norm."}  # fmt: skip
    weights = m.state_dict()
    for i in range(len(m.layers)):
        weights = _packed(first.attn, weights, f"layers.{i}.attn.")
    return theirs, {_replaced(n, names): t for n, t in weights.items()}


def _refuse(extra: dict[str, bool], target: str) -> None:
    if found := [name for name, there in extra.items() if there]:
        raise InvalidValueError(f"{target} has nothing for {', '.join(found)} of this block.")


def _packed(m: MultiHeadAttention, weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """torch's names: one tensor for q, k and v where they are made of the same."""
    new = {n: t for n, t in weights.items() if not n.startswith(prefix)}
    own = {n[len(prefix) :]: t for n, t in weights.items() if n.startswith(prefix)}
    parts = [own[f"{n}_proj.weight"] for n in "qkv"]
    if m.kdim == m.vdim == m.d_model:
        new[f"{prefix}in_proj_weight"] = torch.cat(parts)
    else:
        new |= {f"{prefix}{n}_proj_weight": p for n, p in zip("qkv", parts, strict=True)}
    new[f"{prefix}out_proj.weight"] = own["output_proj.weight"]
    if m.q_proj.bias is not None:
        new[f"{prefix}in_proj_bias"] = torch.cat([own[f"{n}_proj.bias"] for n in "qkv"])
        new[f"{prefix}out_proj.bias"] = own["output_proj.bias"]
    return new


def _replaced(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def from_transformers(model: nn.Module) -> TransformerLM:
    """A `TransformerLM` with the weights and options of transformers' Llama or GPT-2.

    Args:
        model: LlamaForCausalLM or GPT2LMHeadModel.

    Raises:
        InvalidValueError: another architecture, or an option that `TransformerLM` does not have.

    Example:
        ``fanin.nn.from_transformers(transformers.LlamaForCausalLM(config))(ids)``: the same logits.
    """
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if kind not in _CONFIGS or not hasattr(model, "lm_head"):
        raise InvalidValueError(
            "from_transformers takes LlamaForCausalLM or GPT2LMHeadModel, "
            f"got {type(model).__name__}."
        )
    options = _CONFIGS[kind](config)
    embedded, attended, added = options.pop("dropouts")
    ours = _on_meta(TransformerLM, **options)
    ours.dropout.p = embedded
    for layer in ours.layers:
        layer.attn.dropout.p = attended
        layer.dropout1.p = layer.dropout2.p = added
    weights = model.state_dict()
    for name, module in model.named_modules():
        if type(module).__name__ == "Conv1D":  # a linear layer whose weight is (d_in, d_out)
            weights[f"{name}.weight"] = weights[f"{name}.weight"].mT
    return _filled(ours, weights).train(model.training)  # type: ignore[return-value]


def _llama(c: Any) -> dict[str, Any]:
    rope = getattr(c, "rope_parameters", None) or getattr(c, "rope_scaling", None) or {}
    extra = {
        "attention_bias": c.attention_bias,
        "mlp_bias": c.mlp_bias,
        f"hidden_act={c.hidden_act!r}": c.hidden_act != "silu",
        f"rope_type={rope.get('rope_type')!r}": rope.get("rope_type", "default") != "default",
    }
    _refuse(extra, "TransformerLM")
    return {
        "vocab_size": c.vocab_size,
        "context_length": c.max_position_embeddings,
        "d_model": c.hidden_size,
        "num_layers": c.num_hidden_layers,
        "num_heads": c.num_attention_heads,
        "kv_heads": c.num_key_value_heads,
        "head_dim": getattr(c, "head_dim", None),
        "d_ff": c.intermediate_size,
        "rope_theta": rope.get("rope_theta") or c.rope_theta,
        "rope_layout": "half",
        "tie": c.tie_word_embeddings,
        "dropouts": (0.0, c.attention_dropout, 0.0),
        "eps": c.rms_norm_eps,
    }


def _gpt2(c: Any) -> dict[str, Any]:
    names = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
    names |= {"relu": "relu", "silu": "silu"}
    extra = {
        f"activation_function={c.activation_function!r}": c.activation_function not in names,
        "scale_attn_by_inverse_layer_idx": c.scale_attn_by_inverse_layer_idx,
        "scale_attn_weights=False": not c.scale_attn_weights,
        "add_cross_attention": c.add_cross_attention,
    }
    _refuse(extra, "TransformerLM")
    return {
        "vocab_size": c.vocab_size,
        "context_length": c.n_positions,
        "d_model": c.n_embd,
        "num_layers": c.n_layer,
        "num_heads": c.n_head,
        "d_ff": c.n_inner,
        "positions": "learned",
        "norm_layer": "layer",
        "ffn": "mlp",
        "activation": names[c.activation_function],
        "bias": True,
        "tie": c.tie_word_embeddings,
        "dropouts": (c.embd_pdrop, c.attn_pdrop, c.resid_pdrop),
        "eps": c.layer_norm_epsilon,
        "init": "gpt2",
    }


_CONFIGS = {"llama": _llama, "gpt2": _gpt2}


def _on_meta(kind: type[nn.Module], **options: Any) -> Any:
    return kind(**options, device="meta")


def _filled(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """``module``, built on the meta device, with copies of ``weights``."""
    copies = {n: t.detach().clone() for n, t in weights.items()}
    module.load_state_dict(copies, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_()
    return module
