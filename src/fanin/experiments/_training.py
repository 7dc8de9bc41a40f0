"""Train a classifier on the digits and keep the loss curve."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from ._digits import Digits
from ._result import Progress

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Training:
    """What came of one training run.

    Args:
        losses: cross-entropy of each minibatch, before its step.
        train_loss: over the whole training set, afterwards.
        train_accuracy: fraction of the training set that is right, afterwards.
        test_accuracy: the same of the test set.
    """

    losses: tuple[float, ...]
    train_loss: float
    train_accuracy: float
    test_accuracy: float

    def around(self, step: int, window: int = 10) -> float:
        """Mean minibatch loss of the ``window`` steps up to ``step`` (counted from 1)."""
        part = self.losses[max(0, step - window) : step]
        return sum(part) / len(part)


def train(
    model: nn.Module,
    digits: Digits,
    make_optimizer: MakeOptimizer,
    *,
    steps: int,
    batch: int,
    seed: int,
    progress: Progress,
    label: str,
) -> Training:
    """``steps`` of minibatch descent on cross-entropy, in place; the last partial batch is dropped.

    Args:
        model: (B, 64) -> (B, 10) logits.
        digits: the data.
        make_optimizer: parameters -> optimizer.
        steps: of descent.
        batch: images a step.
        seed: of the order of the images.
        progress: told after each step.
        label: what to tell it.
    """
    optimizer = make_optimizer(model.parameters())
    losses = []
    for step, rows in zip(range(steps), _batches(len(digits.y_train), batch, seed), strict=False):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(digits.x_train[rows]), digits.y_train[rows])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        progress((step + 1) / steps, f"{label}, step {step + 1}")
    train_loss, train_accuracy = evaluate(model, digits.x_train, digits.y_train)
    _, test_accuracy = evaluate(model, digits.x_test, digits.y_test)
    return Training(tuple(losses), train_loss, train_accuracy, test_accuracy)


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """(mean cross-entropy, accuracy) over a whole set."""
    logits = model(x)
    right = (logits.argmax(1) == y).double().mean()
    return float(functional.cross_entropy(logits, y)), float(right)


def _batches(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Rows of each minibatch, epoch after epoch, reshuffled each time."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator)[: count - count % batch].split(batch)
