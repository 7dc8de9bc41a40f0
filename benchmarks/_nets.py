"""The small networks that `train.py` trains, each with the starting values its kind is known with.

Images are B x 64 (8 x 8 pixels), logits B x 10; tokens are B x T, logits B x T x V.

Axes: B batch, T time, D width, H heads, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES, VOCABULARY, TIME = 10, 97, 32  # 95 printable ASCII characters, the line's end, all others


class Residual(nn.Module):
    """x + branch(norm(x))."""

    def __init__(self, branch: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = nn.Identity() if norm is None else norm
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """The shape stays."""
        return x + self.branch(self.norm(x))


class Attention(nn.Module):
    """Packed queries, keys and values."""

    def __init__(self, width: int, heads: int, *, causal: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """B x T x D -> B x T x D."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(-2))


class SwiGLU(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """B x T x D -> B x T x D."""
        return self.down(functional.silu(self.gate(x)) * self.up(x))


def feedforward(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


# On the digits


class BatchNormBlock(nn.Module):
    """Two 3x3 convolutions, as in a CIFAR ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Images, at ``stride``."""
        branch = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(branch + self.shortcut(x))


def resnet(blocks: int = 4, channels: int = 8) -> nn.Module:
    """ResNet with BatchNorm; torchvision's start: Kaiming, fan_out."""
    stem = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, channels, 3, 1, 1, bias=False)]
    body = [BatchNormBlock(channels, channels, 1) for _ in range(blocks // 2)]
    body += [BatchNormBlock(channels, 2 * channels, 2)]
    body += [BatchNormBlock(2 * channels, 2 * channels, 1) for _ in range(blocks // 2 - 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * channels, CLASSES)]
    net = nn.Sequential(*stem, nn.BatchNorm2d(channels), nn.ReLU(), *body, *head)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def norm_free(blocks: int = 16, width: int = 48) -> nn.Module:
    """Residual MLP without norms; torch's start."""
    branches = (
        nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        for _ in range(blocks)
    )
    return nn.Sequential(
        nn.Linear(64, width), *(Residual(b) for b in branches), nn.Linear(width, CLASSES)
    )


class Transposed(nn.Module):
    """Works across the tokens of its input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """B x T x D -> B x T x D."""
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class Patches(nn.Module):
    """16 patches of 2 x 2 pixels, embedded, with positions if asked for."""

    def __init__(self, width: int, *, positions: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, 2, 2)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, width)) if positions else None

    def forward(self, x: Tensor) -> Tensor:
        """B x 64 -> B x 16 x D."""
        tokens = self.proj(x.unflatten(1, (1, 8, 8))).flatten(2).transpose(1, 2)
        return tokens if self.positions is None else tokens + self.positions


class Pooled(nn.Module):
    """Norm, mean over tokens, head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """B x T x D -> B x classes."""
        return self.head(self.norm(x).mean(1))


def mixer(blocks: int = 4, width: int = 24) -> nn.Module:
    """MLP-mixer; timm's start: Xavier uniform, head zero."""
    layers = []
    for _ in range(blocks):
        layers.append(Residual(Transposed(feedforward(16, 32)), nn.LayerNorm(width)))
        layers.append(Residual(feedforward(width, 2 * width), nn.LayerNorm(width)))
    net = nn.Sequential(Patches(width, positions=False), *layers, Pooled(width))
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.zeros_(net[-1].head.weight)
    return net


def vit(blocks: int = 4, width: int = 24) -> nn.Module:
    """Pre-norm vision transformer; timm's start: truncated normal of std 0.02."""
    layers = []
    for _ in range(blocks):
        layers.append(Residual(Attention(width, 4, causal=False), nn.LayerNorm(width)))
        layers.append(Residual(feedforward(width, 2 * width), nn.LayerNorm(width)))
    net = nn.Sequential(Patches(width, positions=True), *layers, Pooled(width))
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return net


# On characters


class Recurrent(nn.Module):
    """Embedding, recurrent layers, head; torch's start."""

    def __init__(self, kind: type[nn.RNNBase], width: int = 48, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.core = kind(width, width, layers, batch_first=True)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """B x T -> B x T x V."""
        return self.head(self.core(self.embed(tokens))[0])


def gpt2_start_(net: nn.Module, layers: int) -> None:
    """N(0, 0.02^2), divided by sqrt(2 layers) where a layer writes into the residual stream."""
    for name, parameter in net.named_parameters():
        if parameter.ndim > 1:
            writes = name.endswith(("out.weight", "branch.2.weight", "down.weight"))
            nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if writes else 0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


class GPT(nn.Module):
    """Pre-norm transformer, learned positions, head tied to the embedding; GPT-2's start."""

    def __init__(self, layers: int = 4, width: int = 32) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(TIME, width)
        blocks = []
        for _ in range(layers):
            blocks.append(Residual(Attention(width, 4), nn.LayerNorm(width)))
            blocks.append(Residual(feedforward(width, 4 * width), nn.LayerNorm(width)))
        self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        gpt2_start_(self, layers)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """B x T -> B x T x V."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.embed(tokens) + self.positions(places))))


class Llama(nn.Module):
    """RMSNorm, SwiGLU, no biases, no positions but the mask; std 0.02 everywhere, as Llama's code."""

    def __init__(self, layers: int = 4, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        blocks = []
        for _ in range(layers):
            blocks.append(Residual(Attention(width, 4, bias=False), nn.RMSNorm(width)))
            blocks.append(Residual(SwiGLU(width, 3 * width), nn.RMSNorm(width)))
        self.blocks, self.norm = nn.Sequential(*blocks), nn.RMSNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """B x T -> B x T x V."""
        return self.head(self.norm(self.blocks(self.embed(tokens))))


class PostNorm(nn.Module):
    """torch.nn's transformer, norms after the sums, as in 2017; torch's start."""

    def __init__(self, layers: int = 6, width: int = 32) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(TIME, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.core = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, VOCABULARY)
        self.register_buffer("mask", torch.full((TIME, TIME), float("-inf")).triu(1))
        for parameter in self.core.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """B x T -> B x T x V."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        mask = self.get_buffer("mask")
        return self.head(self.core(self.embed(tokens) + self.positions(places), mask=mask))
