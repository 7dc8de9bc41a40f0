"""The zoo's hand-written feed-forward and convolutional nets."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from _zoo_entries import entry, ids, normal
from torch import nn

from fanin import Inputs

# feed-forward --------------------------------------------------------------------------------------


@entry("mlp_tanh", normal(64, 128), torch.tanh)
@entry("mlp_relu", normal(64, 128), torch.relu)
class DeepMLP(nn.Module):
    def __init__(self, activation, depth=20, width=128):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.activation = activation

    def forward(self, x):
        for layer in self.layers:
            x = self.activation(layer(x))
        return x


@entry("highway", normal(32, 96))
class Highway(nn.Module):
    def __init__(self, width=96, depth=12):
        super().__init__()
        self.change = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.gate = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        for change, gate in zip(self.change, self.gate, strict=True):
            open_ = gate(x).sigmoid()
            x = open_ * change(x).relu() + (1 - open_) * x
        return self.head(x)


@entry("tied_autoencoder", normal(64, 128))
class TiedAutoencoder(nn.Module):
    """The decoder's matrices are the encoder's, transposed."""

    def __init__(self, sizes=(128, 96, 64)):
        super().__init__()
        self.encode = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.shift = nn.ParameterList(torch.zeros(a) for a in sizes[:-1])

    def forward(self, x):
        for layer in self.encode:
            x = layer(x).tanh()
        for layer, shift in zip(reversed(self.encode), reversed(list(self.shift)), strict=True):
            x = F.linear(x, layer.weight.t(), shift)
        return x


@entry("hypernetwork", normal(32, 64))
class Hypernetwork(nn.Module):
    """One net makes the matrices that another one applies."""

    def __init__(self, width=64, rank=16, depth=3):
        super().__init__()
        self.code = nn.Parameter(torch.randn(depth, rank))
        self.maker = nn.Sequential(nn.Linear(rank, 64), nn.ReLU(), nn.Linear(64, width * width))
        self.head = nn.Linear(width, 10)
        self.width = width

    def forward(self, x):
        for matrix in self.maker(self.code).view(-1, self.width, self.width):
            x = torch.relu(x @ matrix.t() / math.sqrt(self.width))
        return self.head(x)


@entry("rbf_network", normal(64, 16))
class RBFNetwork(nn.Module):
    def __init__(self, inputs=16, centres=128):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(centres, inputs))
        self.log_width = nn.Parameter(torch.full((centres,), math.log(inputs)))
        self.head = nn.Linear(centres, 10)

    def forward(self, x):
        distance = (x[:, None] - self.centres).square().sum(-1)
        return self.head(torch.exp(-distance / (2 * self.log_width.exp())))


@entry("two_towers", lambda: Inputs(torch.randn(16, 48), torch.randn(16, 80)))
class TwoTowers(nn.Module):
    """Contrastive: cosines between two embeddings, over a learnt temperature."""

    def __init__(self, left=48, right=80, width=128, out=64):
        super().__init__()
        self.left = nn.Sequential(nn.Linear(left, width), nn.GELU(), nn.Linear(width, out))
        self.right = nn.Sequential(nn.Linear(right, width), nn.GELU(), nn.Linear(width, out))
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, a, b):
        a, b = F.normalize(self.left(a), dim=-1), F.normalize(self.right(b), dim=-1)
        return self.log_scale.exp() * a @ b.t()


@entry(
    "recommender",
    lambda: Inputs(torch.randn(16, 8), [ids(48) for _ in range(3)], torch.arange(0, 48, 3)),
)
class Recommender(nn.Module):
    """DLRM: bags of embeddings, and the dot products between all fields."""

    def __init__(self, fields=3, width=32):
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(500, width, mode="sum") for _ in range(fields))
        self.dense = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, width))
        pairs = fields * (fields + 1) // 2
        self.top = nn.Sequential(nn.Linear(width + pairs, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x, bags, offsets):
        vectors = [self.dense(x)]
        vectors += [table(bag, offsets) for table, bag in zip(self.tables, bags, strict=True)]
        v = torch.stack(vectors, 1)
        row, column = torch.tril_indices(v.shape[1], v.shape[1], -1)
        crossed = (v @ v.transpose(1, 2))[:, row, column]
        return self.top(torch.cat([v[:, 0], crossed], 1))


# images --------------------------------------------------------------------------------------------


class PlainBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.second(self.first(x.relu()).relu())


@entry("norm_free_resnet", normal(4, 3, 12, 12))
class NormFreeResNet(nn.Module):
    def __init__(self, depth=48, channels=24):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*[PlainBlock(channels) for _ in range(depth)])
        self.head = nn.Linear(channels, 10)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).relu().mean((2, 3)))


@entry("plain_cnn", normal(4, 3, 32, 32))
class PlainCNN(nn.Module):
    def __init__(self, widths=(32, 64, 128)):
        super().__init__()
        layers, channels = [], 3
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True)]
            layers += [nn.MaxPool2d(2)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * 16, 128), nn.ReLU(), nn.Linear(128, 10)
        )

    def forward(self, x):
        return self.head(self.features(x))


@entry("dense_concat", normal(4, 3, 24, 24))
class DenseConcat(nn.Module):
    """Every layer reads all earlier ones."""

    def __init__(self, growth=16, depth=10):
        super().__init__()
        self.stem = nn.Conv2d(3, 2 * growth, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Conv2d((i + 2) * growth, growth, 3, padding=1) for i in range(depth)
        )
        self.head = nn.Linear((depth + 2) * growth, 10)

    def forward(self, x):
        found = [self.stem(x)]
        for layer in self.layers:
            found.append(layer(F.elu(torch.cat(found, 1))))
        return self.head(F.adaptive_avg_pool2d(torch.cat(found, 1), 1).flatten(1))


class Inverted(nn.Module):
    """Expand, depthwise convolution, squeeze and excite, project."""

    def __init__(self, channels, expansion=4):
        super().__init__()
        inner = channels * expansion
        self.expand = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.Hardswish()
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(inner, inner, 5, padding=2, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.Hardswish(),
        )
        self.excite = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(inner, channels, 1),
            nn.ReLU(),
            nn.Conv2d(channels, inner, 1),
            nn.Hardsigmoid(),
        )
        self.project = nn.Sequential(
            nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x):
        inner = self.depthwise(self.expand(x))
        return x + self.project(inner * self.excite(inner))


@entry("depthwise_cnn", normal(4, 3, 32, 32))
class DepthwiseCNN(nn.Module):
    def __init__(self, channels=32, depth=5):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, 2, 1)
        self.blocks = nn.Sequential(*[Inverted(channels) for _ in range(depth)])
        self.grouped = nn.Conv2d(channels, 2 * channels, 3, 2, 1, groups=4)
        self.head = nn.Linear(2 * channels, 10)

    def forward(self, x):
        return self.head(F.relu6(self.grouped(self.blocks(self.stem(x)))).amax((2, 3)))


@entry("small_unet", normal(2, 3, 32, 32))
class SmallUNet(nn.Module):
    def __init__(self, widths=(16, 32, 64)):
        super().__init__()

        def double(a, b):
            return nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1), nn.SiLU(), nn.Conv2d(b, b, 3, padding=1), nn.SiLU()
            )

        self.down = nn.ModuleList(
            double(a, b) for a, b in zip((3, *widths[:-1]), widths, strict=True)
        )
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.raise_ = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairs)
        self.up = nn.ModuleList(double(2 * b, b) for _, b in pairs)
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x):
        kept = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            kept.append(x)
        for raise_, block, skip in zip(self.raise_, self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([raise_(x), skip], 1))
        return self.head(x)


@entry("dcgan", normal(8, 64, 1, 1))
class DCGAN(nn.Module):
    """Generator, then discriminator."""

    def __init__(self, code=64, width=24):
        super().__init__()

        def up(a, b, *how):
            return [
                nn.ConvTranspose2d(a, b, 4, *how, bias=False),
                nn.BatchNorm2d(b),
                nn.ReLU(inplace=True),
            ]

        def down(a, b):
            return [
                nn.Conv2d(a, b, 4, 2, 1, bias=False),
                nn.BatchNorm2d(b),
                nn.LeakyReLU(0.2, inplace=True),
            ]

        self.generator = nn.Sequential(
            *up(code, 4 * width, 1, 0), *up(4 * width, 2 * width, 2, 1), *up(2 * width, width, 2, 1),
            nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh(),
        )  # fmt: skip
        self.discriminator = nn.Sequential(
            *down(3, width),
            *down(width, 2 * width),
            *down(2 * width, 4 * width),
            nn.Conv2d(4 * width, 1, 4),
        )

    def forward(self, z):
        return self.discriminator(self.generator(z))


@entry("vae", lambda: Inputs(torch.rand(8, 1, 28, 28)))
class VAE(nn.Module):
    def __init__(self, code=16):
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(1568, 2 * code),
        )
        self.decode = nn.Sequential(
            nn.Linear(code, 1568), nn.ReLU(), nn.Unflatten(1, (32, 7, 7)),
            nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x):
        mean, log_var = self.encode(x).chunk(2, -1)
        return self.decode(mean + torch.randn_like(mean) * (log_var / 2).exp()), mean, log_var


@entry("capsules", normal(4, 64, 8))
class Capsules(nn.Module):
    """Dynamic routing: coefficients found in a loop."""

    def __init__(self, inputs=64, outputs=10):
        super().__init__()
        self.votes = nn.Parameter(torch.randn(outputs, inputs, 16, 8) * 0.1)

    def forward(self, x):
        votes = torch.einsum("bic,oidc->boid", x, self.votes)
        logits = votes.new_zeros(votes.shape[:3])
        for _ in range(3):
            s = (logits.softmax(1)[..., None] * votes).sum(2)
            squared = s.square().sum(-1, keepdim=True)
            v = squared / (1 + squared) * s / (squared + 1e-9).sqrt()
            logits = logits + (votes * v[:, :, None]).sum(-1)
        return v
