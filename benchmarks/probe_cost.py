"""What `fanin.probe` costs: CPU time over that of a plain forward and backward pass.

The two run in turn in one process, on one thread, and medians are compared, so that a busy machine
slows both alike. Run: python benchmarks/probe_cost.py [rounds]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

import fanin

ROUNDS = 7


def mlp(start: str) -> nn.Module:
    layers = [m for _ in range(100) for m in (nn.Linear(512, 512), nn.ReLU())]
    net = nn.Sequential(*layers)
    if start == "he":
        for m in net:
            if isinstance(m, nn.Linear):
                nn.init.kaiming_normal_(m.weight)
                nn.init.zeros_(m.bias)
    return net


def conv_net() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width, stride in ((32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        layers += [
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def transformer(width: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 100x512, batch 64, He": (lambda: mlp("he"), (64, 512)),
    "MLP 100x512, batch 64, torch default": (lambda: mlp("default"), (64, 512)),
    "conv net, 6 layers, 16x3x32x32": (conv_net, (16, 3, 32, 32)),
    "transformer, 4 blocks, 8x128x256": (lambda: transformer(256), (8, 128, 256)),
    "transformer, 4 blocks, 8x64x128": (lambda: transformer(128), (8, 64, 128)),
}


def cpu_ms(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return 1e3 * (time.process_time() - start)


def cost(model: nn.Module, x: Tensor, rounds: int) -> tuple[float, float]:
    """Median CPU ms of (a plain forward and backward pass, a probe)."""
    cotangent = torch.randn_like(model(x))

    def plain() -> None:
        model.zero_grad(set_to_none=True)
        model(x).backward(cotangent)

    plain()
    fanin.probe(model, x)
    times = [(cpu_ms(plain), cpu_ms(lambda: fanin.probe(model, x))) for _ in range(rounds)]
    return median(t for t, _ in times), median(t for _, t in times)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    print(f"{'model':38}{'plain ms':>10}{'probe ms':>10}{'ratio':>8}")
    for name, (build, shape) in CASES.items():
        plain, probed = cost(build(), torch.randn(shape), rounds)
        print(f"{name:38}{plain:10.1f}{probed:10.1f}{probed / plain:8.2f}", flush=True)


if __name__ == "__main__":
    main()
