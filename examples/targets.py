"""TARGETs for the command line: each factory returns (module, example inputs).

fanin plan  examples/targets.py:convnet
fanin probe examples/targets.py:relu_mlp
fanin init  examples/targets.py:tiny_transformer -o weights.safetensors
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def relu_mlp(depth: int = 30, width: int = 128) -> tuple[nn.Module, Tensor]:
    """64 -> 128 -> ... -> 10 with ReLU; in PyTorch's default every input comes out alike."""
    return _mlp(depth, width, nn.ReLU), _noise(64, 64)


def tanh_mlp(depth: int = 200, width: int = 100) -> tuple[nn.Module, Tensor]:
    """64 -> 100 -> ... -> 10 with tanh, deep enough that only orthogonal weights will train it."""
    return _mlp(depth, width, nn.Tanh), _noise(64, 64)


def convnet(channels: int = 32) -> tuple[nn.Module, Tensor]:
    """An autoencoder of strided, grouped and transposed convolutions: fans that a shape does not tell."""
    model = nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, 3, 3, padding=1),
    )
    return model, _noise(8, 3, 32, 32)


def tiny_transformer(
    vocabulary: int = 256, d_model: int = 64, num_layers: int = 4
) -> tuple[nn.Module, Tensor]:
    """A pre-norm language model whose output layer is tied to its embedding."""
    model = TinyTransformer(vocabulary, d_model, num_layers)
    return model, torch.randint(vocabulary, (4, 32), generator=torch.Generator().manual_seed(0))


class TinyTransformer(nn.Module):
    """Token embedding -> encoder blocks -> logits over the vocabulary."""

    def __init__(self, vocabulary: int, d_model: int, num_layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, d_model)
        block = nn.TransformerEncoderLayer(
            d_model,
            nhead=4,
            dim_feedforward=4 * d_model,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(block, num_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """(B, T) token ids -> (B, T, V) logits; every position sees the whole text."""
        return self.head(self.norm(self.blocks(self.embed(tokens_BT))))


def _mlp(depth: int, width: int, activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(64, width), activation()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
