"""The zoo's hand-written models of fields, physics, point sets and graphs."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from _zoo_entries import entry, normal
from torch import Tensor, nn

from fanin import Inputs


@entry("pinn", normal(128, 2))
class PINN(nn.Module):
    """Residual of u_t = u_xx: derivatives of the net are part of its forward pass."""

    def __init__(self, width=64):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            u = self.net(x)
            first = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
            second = torch.autograd.grad(first[:, 1].sum(), x, create_graph=True)[0]
        return u, first[:, 0] - second[:, 1]


@entry("siren", lambda: Inputs(2 * torch.rand(256, 2) - 1))
class Siren(nn.Module):
    def __init__(self, width=128, depth=4, omega=30.0):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2 if i == 0 else width, width) for i in range(depth))
        self.head, self.omega = nn.Linear(width, 3), omega
        for i, layer in enumerate(self.layers):
            bound = 1 / 2 if i == 0 else math.sqrt(6 / width) / omega
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x):
        for layer in self.layers:
            x = torch.sin(self.omega * layer(x))
        return self.head(x)


@entry("nerf", normal(16, 12, 3))
class NeRF(nn.Module):
    """Fourier features, a skip to the middle, then volume rendering along rays."""

    def __init__(self, octaves=6, width=96):
        super().__init__()
        self.register_buffer("frequency", math.pi * 2.0 ** torch.arange(octaves))
        features = 6 * octaves + 3
        self.first = nn.Sequential(
            nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Linear(width + features, width), nn.ReLU())
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        phase = (x[..., None] * self.frequency).flatten(-2)
        code = torch.cat([x, phase.sin(), phase.cos()], -1)
        out = self.head(self.second(torch.cat([self.first(code), code], -1)))
        opacity = 1 - torch.exp(-0.1 * F.softplus(out[..., 3]))
        clear = torch.cumprod(1 - opacity + 1e-10, -1)
        weight = opacity * torch.cat([torch.ones_like(clear[..., :1]), clear[..., :-1]], -1)
        return (weight[..., None] * out[..., :3].sigmoid()).sum(-2)


@entry("fourier_operator", normal(4, 32, 2))
class FourierOperator(nn.Module):
    def __init__(self, width=32, modes=8, depth=3):
        super().__init__()
        self.lift, self.head, self.modes = nn.Linear(2, width), nn.Linear(width, 1), modes
        self.spectral = nn.Parameter(
            torch.randn(depth, width, width, modes, dtype=torch.cfloat) / width
        )
        self.local = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(depth))

    def forward(self, x):
        h = self.lift(x).transpose(1, 2)
        for matrix, local in zip(self.spectral, self.local, strict=True):
            modes = torch.fft.rfft(h)
            kept = torch.einsum("bik,iok->bok", modes[..., : self.modes], matrix)
            kept = F.pad(kept, (0, modes.shape[-1] - self.modes))
            h = F.gelu(torch.fft.irfft(kept, n=h.shape[-1]) + local(h))
        return self.head(h.transpose(1, 2))


@entry("neural_ode", normal(64, 8))
class NeuralODE(nn.Module):
    """The midpoint rule with one field for all steps."""

    def __init__(self, width=64):
        super().__init__()
        self.field = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 8))

    def forward(self, x):
        for _ in range(8):
            x = x + self.field(x + self.field(x) / 16) / 8
        return x


@entry("deep_equilibrium", normal(32, 64))
class DeepEquilibrium(nn.Module):
    """z = LayerNorm(relu(W z + U x)) iterated until it moves little, at most 12 times."""

    def __init__(self, width=64):
        super().__init__()
        self.inner, self.inject = nn.Linear(width, width), nn.Linear(width, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x):
        z, u = torch.zeros_like(x), self.inject(x)
        for _ in range(12):
            z = self.norm(F.relu(self.inner(z) + u))
        return self.head(z)


@entry("real_nvp", normal(64, 8))
class RealNVP(nn.Module):
    def __init__(self, features=8, depth=6):
        super().__init__()
        half = features // 2
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(half, 64), nn.ReLU(), nn.Linear(64, features))
            for _ in range(depth)
        )

    def forward(self, x):
        log_det = x.new_zeros(len(x))
        for net in self.nets:
            a, b = x.chunk(2, -1)
            scale, shift = net(a).chunk(2, -1)
            x = torch.cat([b * scale.tanh().exp() + shift, a], -1)
            log_det += scale.tanh().sum(-1)
        return x, log_det


@entry("point_net", normal(4, 128, 3))
class PointNet(nn.Module):
    def __init__(self, width=128):
        super().__init__()
        self.each = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, width), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x):
        return self.head(self.each(x).max(1).values)


def ring(nodes: int = 200) -> Tensor:
    source = torch.arange(nodes)
    target = torch.cat([(source + 1) % nodes, (source * 7 + 3) % nodes])
    return torch.stack([source.repeat(2), target])


@entry("graph_conv", lambda: Inputs(torch.randn(200, 32), ring()), "mean")
@entry("graph_attention", lambda: Inputs(torch.randn(200, 32), ring()), "attention")
class GraphNet(nn.Module):
    """Messages along edges, gathered and scattered by index."""

    def __init__(self, kind, sizes=(32, 64, 64, 7)):
        super().__init__()
        pairs = list(itertools.pairwise(sizes))
        self.send = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.own = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.score = nn.ModuleList(nn.Linear(2 * b, 1) for _, b in pairs if kind == "attention")

    def forward(self, x, edges):
        source, target = edges
        for i, (send, own) in enumerate(zip(self.send, self.own, strict=True)):
            sent = send(x)
            if self.score:
                ends = torch.cat([sent[source], sent[target]], -1)
                weight = F.leaky_relu(self.score[i](ends), 0.2).exp()
            else:
                weight = x.new_ones(len(source), 1)
            total = x.new_zeros(len(x), 1).index_add(0, target, weight)
            read = torch.zeros_like(sent).index_add(0, target, weight * sent[source])
            x = own(x) + read / total.clamp(min=1e-9)
            x = x if i == len(self.send) - 1 else F.relu(x)
        return x
