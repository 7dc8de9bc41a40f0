"""Architectures of the zoo from transformers, diffusers, MONAI and timm, from small configurations.

Weights are drawn by the packages' own code; nothing is downloaded.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from _zoo_entries import ZOO, Architecture, ids, normal
from torch import nn

from fanin import Inputs

# transformers -------------------------------------------------------------------------------------


def transformers_(name: str, model: str, inputs: Callable[[], Inputs], **config: Any) -> None:
    """``model`` is a class's name; its configuration's class is named in ``_CONFIGS`` or alike."""

    def build() -> nn.Module:
        package = importlib.import_module("transformers")
        kind = getattr(package, model)
        made = kind.config_class(**config)
        if hasattr(made, "use_cache"):
            made.use_cache = False
        return kind(made)

    ZOO[name] = Architecture("transformers", build, inputs)


def text(length: int = 32) -> Callable[[], Inputs]:
    return lambda: Inputs(input_ids=ids(2, length))


def padded() -> Inputs:
    mask = (torch.arange(32) < torch.tensor([[32], [24]])).long()
    return Inputs(input_ids=ids(2, 32), attention_mask=mask)


def both() -> Inputs:
    return Inputs(input_ids=ids(2, 32), decoder_input_ids=ids(2, 16))


def pixels(side: int = 64) -> Callable[[], Inputs]:
    return lambda: Inputs(pixel_values=torch.randn(2, 3, side, side))


_BERT = {
    "vocab_size": 500,
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
}
_LLAMA = dict(_BERT, num_key_value_heads=2)
_EXPERTS = dict(_LLAMA, num_experts_per_tok=2)
_T5 = {"vocab_size": 500, "d_model": 96, "d_kv": 24, "d_ff": 256, "num_layers": 2, "num_heads": 4}
_BART = {
    "d_model": 96, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 192, "decoder_ffn_dim": 192,
}  # fmt: skip
_VIT = {
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
}

transformers_("gpt2", "GPT2LMHeadModel", text(), vocab_size=500, n_embd=128, n_layer=4, n_head=4)
transformers_("gpt_neox", "GPTNeoXForCausalLM", text(), **_BERT)
transformers_("llama", "LlamaForCausalLM", text(), **_LLAMA)
transformers_("gemma3", "Gemma3ForCausalLM", text(), **_LLAMA, head_dim=24, sliding_window=8)
transformers_("mixtral", "MixtralForCausalLM", text(), **_EXPERTS, num_local_experts=4)
transformers_(
    "qwen3_moe", "Qwen3MoeForCausalLM", text(), **_EXPERTS,
    head_dim=24, num_experts=4, moe_intermediate_size=64,
)  # fmt: skip
transformers_(
    "mamba", "MambaForCausalLM", text(16), vocab_size=500, hidden_size=96, num_hidden_layers=3
)
transformers_(
    "rwkv",
    "RwkvForCausalLM",
    text(16),
    vocab_size=500,
    hidden_size=96,
    num_hidden_layers=3,
    context_length=64,
)
transformers_("bert", "BertForMaskedLM", padded, **_BERT)
transformers_(
    "deberta_v2",
    "DebertaV2Model",
    padded,
    **_BERT,
    relative_attention=True,
    pos_att_type=["p2c", "c2p"],
)
transformers_("albert", "AlbertModel", text(), **_BERT, embedding_size=48)
transformers_("t5", "T5ForConditionalGeneration", both, **_T5)
transformers_("bart", "BartModel", both, vocab_size=500, **_BART)
transformers_(
    "whisper", "WhisperForConditionalGeneration",
    lambda: Inputs(input_features=torch.randn(2, 80, 120), decoder_input_ids=ids(2, 16)),
    vocab_size=500, **_BART, max_source_positions=60, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    decoder_start_token_id=1,
)  # fmt: skip
transformers_(
    "wav2vec2", "Wav2Vec2Model", lambda: Inputs(input_values=torch.randn(2, 4000)),
    hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, conv_dim=[32] * 7,
    num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
)  # fmt: skip
transformers_("vit", "ViTForImageClassification", pixels(), **_VIT)
transformers_("dinov2", "Dinov2Model", pixels(), **_VIT)
transformers_(
    "swin", "SwinForImageClassification", pixels(),
    image_size=64, patch_size=2, embed_dim=48, depths=[2, 2], num_heads=[2, 4], window_size=4,
)  # fmt: skip
transformers_(
    "convnext", "ConvNextModel", pixels(), hidden_sizes=[32, 48, 64, 96], depths=[1, 1, 2, 1]
)
transformers_(
    "segformer", "SegformerForSemanticSegmentation", pixels(),
    hidden_sizes=[16, 32, 64, 96], depths=[1, 1, 1, 1], decoder_hidden_size=64,
)  # fmt: skip
transformers_(
    "clip", "CLIPModel", lambda: Inputs(input_ids=ids(2, 16), pixel_values=torch.randn(2, 3, 64, 64)),
    text_config=_BERT, vision_config=_VIT, projection_dim=48,
)  # fmt: skip

# diffusers ----------------------------------------------------------------------------------------


def diffusers_(name: str, model: str, inputs: Callable[[], Inputs], **config: Any) -> None:
    def build() -> nn.Module:
        return getattr(importlib.import_module("diffusers"), model)(**config)

    ZOO[name] = Architecture("diffusers", build, inputs)


diffusers_(
    "ddpm_unet", "UNet2DModel", lambda: Inputs(torch.randn(2, 3, 32, 32), torch.tensor(10)),
    sample_size=32, block_out_channels=(32, 64), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=8, attention_head_dim=8,
)  # fmt: skip
diffusers_(
    "stable_diffusion_unet", "UNet2DConditionModel",
    lambda: Inputs(torch.randn(2, 4, 16, 16), torch.tensor(10), torch.randn(2, 7, 48)),
    sample_size=16, block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=8, cross_attention_dim=48, attention_head_dim=4,
)  # fmt: skip
diffusers_(
    "dit", "DiTTransformer2DModel",
    lambda: Inputs(torch.randn(2, 4, 16, 16), torch.tensor([3, 5]), class_labels=torch.tensor([1, 2])),
    num_attention_heads=4, attention_head_dim=24, num_layers=3, sample_size=16, in_channels=4, patch_size=2,
    num_embeds_ada_norm=10,
)  # fmt: skip
diffusers_(
    "autoencoder_kl", "AutoencoderKL", normal(2, 3, 32, 32),
    block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8,
)  # fmt: skip
diffusers_(
    "flux", "FluxTransformer2DModel",
    lambda: Inputs(
        hidden_states=torch.randn(2, 16, 16), encoder_hidden_states=torch.randn(2, 6, 48),
        pooled_projections=torch.randn(2, 48), timestep=torch.tensor([0.5, 0.7]), img_ids=torch.zeros(16, 3),
        txt_ids=torch.zeros(6, 3), guidance=None,
    ),
    in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=24, num_attention_heads=4,
    joint_attention_dim=48, pooled_projection_dim=48, axes_dims_rope=(4, 10, 10),
)  # fmt: skip

# MONAI --------------------------------------------------------------------------------------------


def monai_(name: str, model: str, inputs: Callable[[], Inputs], **config: Any) -> None:
    def build() -> nn.Module:
        return getattr(importlib.import_module("monai.networks.nets"), model)(**config)

    ZOO[name] = Architecture("monai", build, inputs)


_3D = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
_WIDTHS = {"channels": (8, 16, 32), "strides": (2, 2)}

monai_("monai_unet", "UNet", normal(1, 1, 32, 32, 32), **_3D, **_WIDTHS, num_res_units=2)
monai_("attention_unet", "AttentionUnet", normal(1, 1, 32, 32, 32), **_3D, **_WIDTHS)
monai_(
    "swin_unetr",
    "SwinUNETR",
    normal(1, 1, 64, 32, 32),
    in_channels=1,
    out_channels=2,
    feature_size=12,
)
monai_(
    "unetr", "UNETR", normal(1, 1, 32, 32, 32),
    in_channels=1, out_channels=2, img_size=32, feature_size=8, hidden_size=96, mlp_dim=192, num_heads=4,
)  # fmt: skip
monai_("segresnet", "SegResNet", normal(1, 1, 32, 32, 32), in_channels=1, out_channels=2)
monai_(
    "dynunet", "DynUNet", normal(1, 1, 32, 32, 32), **_3D,
    kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2], filters=[8, 16, 32],
)  # fmt: skip
monai_(
    "densenet121",
    "DenseNet121",
    normal(2, 1, 64, 64),
    spatial_dims=2,
    in_channels=1,
    out_channels=3,
)

# timm ---------------------------------------------------------------------------------------------


class _Anything(type):
    """A class that has every attribute."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Nothing(ModuleType):
    """A module in which every name is such a class; submodules likewise."""

    __path__: list[str] = []  # noqa: RUF012
    __version__ = "0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Anything(name, (), {})
        setattr(self, name, made)
        return made


class _Finder:
    """Finds torchvision where it is not installed."""

    @staticmethod
    def find_spec(name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        wanted = name.partition(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, _Finder) if wanted else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Nothing(spec.name)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        pass


@contextmanager
def torchvision_not_needed() -> Iterator[None]:
    """timm imports torchvision for its data pipelines; the models do without."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    sys.meta_path.insert(0, _Finder)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.meta_path.remove(_Finder)  # type: ignore[arg-type]
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]


def timm_(name: str, model: str, side: int = 64, **config: Any) -> None:
    def build() -> nn.Module:
        with torchvision_not_needed():
            package = importlib.import_module("timm")
        return package.create_model(model, pretrained=False, **config)

    ZOO[name] = Architecture("timm", build, normal(2, 3, side, side))


timm_("resnet50", "resnet50")
timm_("efficientnet_b0", "efficientnet_b0")
timm_("mlp_mixer", "mixer_s32_224", 96, img_size=96)
timm_("inception_v3", "inception_v3", 96)
timm_("repvgg", "repvgg_a0")
timm_("nf_regnet", "nf_regnet_b0")
timm_("convmixer", "convmixer_768_32")
timm_("coatnet", "coatnet_nano_rw_224", img_size=64)
timm_("regnety", "regnety_002")
