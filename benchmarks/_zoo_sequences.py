"""The zoo's hand-written recurrent, attention and scan models."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from _zoo_entries import entry, ids, normal, tokens
from torch import nn

from fanin import Inputs


@entry("lstm", tokens(8, 20), nn.LSTM)
@entry("gru", tokens(8, 20), nn.GRU)
@entry("rnn_tanh", tokens(8, 20), nn.RNN)
class RecurrentClassifier(nn.Module):
    def __init__(self, cell, width=128):
        super().__init__()
        self.embed = nn.Embedding(500, width)
        self.recurrent = cell(width, width, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x):
        return self.head(self.recurrent(self.embed(x))[0][:, -1])


@entry("lstm_cell_tied", tokens(8, 16))
class CellModel(nn.Module):
    """A cell in a Python loop; the output matrix is the embedding's."""

    def __init__(self, width=96):
        super().__init__()
        self.embed, self.cell = nn.Embedding(500, width), nn.LSTMCell(width, width)
        self.head = nn.Linear(width, 500)
        self.head.weight = self.embed.weight

    def forward(self, x):
        state, out = None, []
        for t in range(x.shape[1]):
            state = self.cell(self.embed(x[:, t]), state)
            out.append(self.head(state[0]))
        return torch.stack(out, 1)


@entry(
    "seq2seq_packed",
    lambda: Inputs(ids(4, 12), ids(4, 6), torch.tensor([12, 5, 9, 7])),
)
class Seq2Seq(nn.Module):
    """Packed sequences, additive attention, a cell that decodes."""

    def __init__(self, width=64):
        super().__init__()
        self.embed = nn.Embedding(500, width)
        self.encoder = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.decoder = nn.GRUCell(3 * width, width)
        self.score = nn.Linear(3 * width, 1)
        self.head = nn.Linear(width, 500)

    def forward(self, source, target, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(source), lengths, batch_first=True, enforce_sorted=False
        )
        h, _ = nn.utils.rnn.pad_packed_sequence(
            self.encoder(packed)[0], batch_first=True, total_length=source.shape[1]
        )
        visible = torch.arange(source.shape[1]) < lengths[:, None]
        state, out = h.new_zeros(len(source), self.decoder.hidden_size), []
        for t in range(target.shape[1]):
            both = torch.cat([h, state[:, None].expand(-1, h.shape[1], -1)], -1)
            weight = self.score(both).squeeze(-1).masked_fill(~visible, -math.inf).softmax(-1)
            read = (weight[:, :, None] * h).sum(1)
            state = self.decoder(torch.cat([self.embed(target[:, t]), read], -1), state)
            out.append(self.head(state))
        return torch.stack(out, 1)


@entry("wavenet", normal(2, 1, 96))
class WaveNet(nn.Module):
    """Dilated causal convolutions with gates; residual and skip paths."""

    def __init__(self, channels=48, depth=8):
        super().__init__()
        self.stem = nn.Conv1d(1, channels, 1)
        self.gated = nn.ModuleList(
            nn.Conv1d(channels, 2 * channels, 2, dilation=2 ** (i % 4)) for i in range(depth)
        )
        self.mix = nn.ModuleList(nn.Conv1d(channels, 2 * channels, 1) for _ in range(depth))
        self.head = nn.Conv1d(channels, 16, 1)

    def forward(self, x):
        x, total = self.stem(x), 0.0
        for gated, mix in zip(self.gated, self.mix, strict=True):
            a, b = gated(F.pad(x, (gated.dilation[0], 0))).chunk(2, 1)
            change, skip = mix(a.tanh() * b.sigmoid()).chunk(2, 1)
            x, total = x + change, total + skip
        return self.head(total.relu())


@entry("weight_norm_tcn", normal(4, 32, 64))
class WeightNormTCN(nn.Module):
    def __init__(self, channels=32, depth=4):
        super().__init__()
        wrap = nn.utils.parametrizations.weight_norm
        self.layers = nn.ModuleList(
            wrap(nn.Conv1d(channels, channels, 3, padding=2**i, dilation=2**i))
            for i in range(depth)
        )
        self.head = nn.Linear(channels, 10)

    def forward(self, x):
        for layer in self.layers:
            x = F.leaky_relu(x + F.mish(layer(x)), 0.1)
        return self.head(x[..., -1])


class SwiGLU(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.gate, self.up = (
            nn.Linear(width, inner, bias=False),
            nn.Linear(width, inner, bias=False),
        )
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class CausalAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.heads = heads

    def forward(self, x):
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).flatten(2))


class GPTBlock(nn.Module):
    def __init__(self, width, heads, feed_forward):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention, self.feed_forward = CausalAttention(width, heads), feed_forward

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


@entry("swiglu_gpt", tokens(2, 128), lambda: SwiGLU(256, 688), 6, 256)
@entry("moe_gpt", tokens(2, 32), lambda: MixtureOfExperts(128, 256), 3, 128)
class GPT(nn.Module):
    def __init__(self, feed_forward, depth, width):
        super().__init__()
        self.embed, self.position = nn.Embedding(500, width), nn.Embedding(128, width)
        self.blocks = nn.Sequential(*[GPTBlock(width, 8, feed_forward()) for _ in range(depth)])
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, 500, bias=False)

    def forward(self, x):
        x = self.embed(x) + self.position(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(x)))


class MixtureOfExperts(nn.Module):
    """Each token goes to the two experts that the router likes best."""

    def __init__(self, width, inner, experts=4):
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
            for _ in range(experts)
        )

    def forward(self, x):
        flat = x.flatten(0, 1)
        weight, chosen = self.router(flat).softmax(-1).topk(2, -1)
        weight, out = weight / weight.sum(-1, keepdim=True), torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            token, slot = (chosen == i).nonzero(as_tuple=True)
            out.index_add_(0, token, weight[token, slot, None] * expert(flat[token]))
        return out.view_as(x)


class PackedBlock(nn.Module):
    """One matrix for q, k and v; norms after the sum; softmax written out."""

    def __init__(self, width, heads):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ffn = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.norm1, self.norm2, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        weight = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        x = self.norm1(x + self.out((weight @ v).transpose(1, 2).flatten(2)))
        return self.norm2(x + self.ffn(x))


@entry("packed_qkv_cls", normal(4, 24, 96), 4, 1)
@entry("shared_block", normal(4, 24, 96), 1, 8)
class PackedEncoder(nn.Module):
    """A class token in front; each block applied ``times`` times."""

    def __init__(self, depth, times, width=96):
        super().__init__()
        self.cls = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.blocks = nn.ModuleList(PackedBlock(width, 4) for _ in range(depth))
        self.head, self.times = nn.Linear(width, 10), times

    def forward(self, x):
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            for _ in range(self.times):
                x = block(x)
        return self.head(x[:, 0])


@entry("latent_attention", normal(4, 64, 48))
class LatentAttention(nn.Module):
    """Perceiver: a few learnt latents read many inputs, over and over with the same weights."""

    def __init__(self, inputs=48, width=96, latents=16):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, width) * 0.02)
        self.read = nn.MultiheadAttention(width, 4, kdim=inputs, vdim=inputs, batch_first=True)
        self.think = nn.TransformerEncoderLayer(
            width, 4, 2 * width, 0.0, batch_first=True, norm_first=True
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x):
        z = self.latents.expand(len(x), -1, -1)
        for _ in range(3):
            z = self.think(z + self.read(self.norm(z), x, x, need_weights=False)[0])
        return self.head(z.mean(1))


class SelectiveScan(nn.Module):
    """Mamba's mixer: a state whose decay and input depend on the token."""

    def __init__(self, width, state=8, rank=8):
        super().__init__()
        self.into, self.out = (
            nn.Linear(width, 4 * width, bias=False),
            nn.Linear(2 * width, width, bias=False),
        )
        self.conv = nn.Conv1d(2 * width, 2 * width, 4, padding=3, groups=2 * width)
        self.parts = nn.Linear(2 * width, rank + 2 * state, bias=False)
        self.step = nn.Linear(rank, 2 * width)
        self.log_decay = nn.Parameter(torch.log(torch.arange(1.0, state + 1)).repeat(2 * width, 1))
        self.skip = nn.Parameter(torch.ones(2 * width))
        self.sizes = (rank, state, state)

    def forward(self, x):
        u, gate = self.into(x).chunk(2, -1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        rank, b, c = self.parts(u).split(self.sizes, -1)
        step = F.softplus(self.step(rank))
        decay = torch.exp(-step[..., None] * self.log_decay.exp())
        write = (step * u)[..., None] * b[:, :, None]
        h, out = torch.zeros_like(write[:, 0]), []
        for t in range(x.shape[1]):
            h = decay[:, t] * h + write[:, t]
            out.append((h * c[:, t, None]).sum(-1))
        return self.out((torch.stack(out, 1) + self.skip * u) * F.silu(gate))


class LinearAttention(nn.Module):
    """RWKV-like: token shift, decayed sums instead of softmax, squared ReLU."""

    def __init__(self, width):
        super().__init__()
        self.r, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.decay = nn.Parameter(torch.linspace(-3.0, 1.0, width))
        self.shift = nn.Parameter(torch.linspace(0.0, 1.0, width))

    def forward(self, x):
        before = F.pad(x, (0, 0, 1, -1))
        mixed = x * self.shift + before * (1 - self.shift)
        r, k, v = self.r(mixed).sigmoid(), self.k(mixed).clamp(max=8).exp(), self.v(x)
        w = torch.exp(-self.decay.exp())
        top, bottom, out = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            top, bottom = w * top + k[:, t] * v[:, t], w * bottom + k[:, t]
            out.append(top / bottom)
        return self.o(r * torch.stack(out, 1))


@entry("selective_scan", tokens(2, 16), SelectiveScan)
@entry("linear_attention", tokens(2, 16), LinearAttention)
class MixerModel(nn.Module):
    def __init__(self, mixer, width=96, depth=3):
        super().__init__()
        self.embed = nn.Embedding(500, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.mixers = nn.ModuleList(mixer(width) for _ in range(depth))
        self.head = nn.Linear(width, 500, bias=False)

    def forward(self, x):
        x = self.embed(x)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x))
        return self.head(x)


@entry("nn_transformer", lambda: Inputs(torch.randn(4, 24, 96), torch.randn(4, 12, 96)))
class EncoderDecoder(nn.Transformer):
    def __init__(self):
        super().__init__(96, 4, 2, 2, 192, batch_first=True)


@entry(
    "encoder_padded",
    lambda: Inputs(
        torch.randn(4, 16, 96),
        src_key_padding_mask=torch.arange(16) >= torch.tensor([[16], [9], [12], [16]]),
    ),
)
class PaddedEncoder(nn.TransformerEncoder):
    def __init__(self):
        layer = nn.TransformerEncoderLayer(96, 4, 192, batch_first=True, norm_first=True)
        super().__init__(layer, 3, enable_nested_tensor=False)
