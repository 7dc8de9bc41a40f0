"""What is wrong with a model's parameters as they stand: FAN2xx, a registry like `_findings`'s.

These look at numbers and names, not at the signal: two layers that start as copies of each other
pass any signal test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ._analysis import Analysis
from ._facts import TABLE_ROLES, WEIGHT_ROLES, ModelFacts, ParamInfo
from ._report import Finding
from ._roles import Slot, facts_of, slots_of

NEAR = 0.05  # relative difference of standard deviations that counts as the same recipe
SAMPLED = 4096  # elements that tell two tensors apart
GARBAGE = 1e8  # no recipe draws numbers of this size
# Recipes of torch.nn.init as gain / sqrt(fan): Kaiming for ReLU, Xavier and LeCun, torch's default.
_GAINS = {"Kaiming": math.sqrt(2.0), "LeCun": 1.0, "torch's default": 1 / math.sqrt(3.0)}
_SHOWN = 4


@dataclass(frozen=True, eq=False)
class Parameters:
    """A model's parameters with what is known of them.

    Args:
        slots: the tensors, once each.
        facts: one `ParamInfo` a slot, in the same order.
        used: FQNs that the captured run reads; None if there was none.
    """

    slots: tuple[Slot, ...]
    facts: ModelFacts
    used: frozenset[str] | None = None

    @cached_property
    def real(self) -> list[tuple[ParamInfo, Slot, Tensor]]:
        """Those that hold real numbers."""
        pairs = zip(self.facts.params, self.slots, strict=True)
        return [
            (info, slot, slot.tensor.detach())
            for info, slot in pairs
            if not slot.tensor.is_meta and slot.tensor.is_floating_point() and slot.tensor.numel()
        ]


Rule = Callable[[Parameters], Iterable[Finding]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    """Register a function (parameters) -> findings."""
    RULES[getattr(function, "__name__", repr(function))] = function
    return function


def parameter_findings(model: nn.Module, analysis: Analysis) -> tuple[Finding, ...]:
    """Everything the rules see in the parameters of ``model``; nothing is changed."""
    structure = analysis.structure
    used = None if structure is None else frozenset(structure.graph.parameters)
    with torch.no_grad():
        given = Parameters(tuple(slots_of(model)), facts_of(model, analysis), used)
        return tuple(f for check in RULES.values() for f in check(given))


@rule
def wrong_fan(given: Parameters) -> Iterator[Finding]:
    """FAN201: a std that fits the fan read off the shape, where the layer really sums another number."""
    found: list[tuple[str, str, float]] = []
    for info, _, x in given.real:
        seen, exact = info.torch_fan, _exact(info)
        if seen is None or exact is None or x.ndim < 2 or info.role in TABLE_ROLES:
            continue
        std = _std(x)
        for recipe, wrong, right in _recipes(seen.fan_in, seen.fan_out, *exact):
            if abs(std / wrong - 1) < NEAR and abs(wrong / right - 1) > 0.2:
                found.append((info.name, recipe, right / wrong))
                break
    if found:
        name, recipe, factor = found[0]
        info = next(i for i in given.facts.params if i.name == name)
        yield Finding(
            "FAN201", "warning", name,
            f"{recipe} with the fan of the tensor's shape at {_these([n for n, _, _ in found])}; "
            f"the exact fan asks for a std {factor:.3g} times that",
            f"one output of a {_kind(info)} does not sum what the shape suggests",
            f"fanin.init functions take the module too; or plan.scaled({name!r}, {factor:.4g}, why)",
        )  # fmt: skip


def _exact(info: ParamInfo) -> tuple[float, float] | None:
    if info.parts:
        fans = [p.fan for p in info.parts if p.fan is not None]
        return (fans[0].fan_in, fans[0].fan_out) if fans else None
    return None if info.fan is None else (info.fan.fan_in, info.fan.fan_out)


def _recipes(
    fan_in: float, fan_out: float, exact_in: float, exact_out: float
) -> Iterator[tuple[str, float, float]]:
    """(name, std by the shape, std by the exact fan)."""
    for name, gain in _GAINS.items():
        yield name, gain / math.sqrt(fan_in), gain / math.sqrt(exact_in)
        yield f"{name} (fan_out)", gain / math.sqrt(fan_out), gain / math.sqrt(exact_out)
    yield "Xavier", math.sqrt(2 / (fan_in + fan_out)), math.sqrt(2 / (exact_in + exact_out))


def _kind(info: ParamInfo) -> str:
    if info.parts:
        return f"packed weight ({', '.join(p.name for p in info.parts)})"
    return "grouped convolution" if info.groups > 1 else info.role.replace("_", " ")


@rule
def tie_broken(given: Parameters) -> Iterator[Finding]:
    """FAN202: an input table and an output layer with the same numbers that are not the same tensor."""
    tables = [(i, x) for i, _, x in given.real if i.role in TABLE_ROLES and x.ndim == 2]
    heads = [(i, x) for i, _, x in given.real if i.role in {"head", "linear"} and x.ndim == 2]
    for info, x in tables:
        for other, y in heads:
            if x.shape == y.shape and _std(x) > 0 and torch.equal(x, y):
                yield Finding(
                    "FAN202", "warning", other.name,
                    f"it holds the same numbers as {info.name}, but is another tensor",
                    "weights that were tied come apart when one of them is replaced (to_empty, a copy, a "
                    "state dict): they train apart from the first step",
                    f"tie them again: the two modules' .weight must be one Parameter ({info.name})",
                )  # fmt: skip


@rule
def never_initialised(given: Parameters) -> Iterator[Finding]:
    """FAN203: NaN, infinite or absurd numbers: memory that nobody wrote."""
    bad = [info.name for info, _, x in given.real if _absurd(x)]
    if bad:
        yield Finding(
            "FAN203", "error", bad[0],
            f"NaN, infinite or absurd numbers in {_these(bad)}",
            "torch.empty, to_empty and some custom modules hand out memory as it is; nothing has written it",
            "fanin.initialize_(model, x), or plan.fill_(model, only=[...]) for these alone",
        )  # fmt: skip


def _absurd(x: Tensor) -> bool:
    low, high = (end.item() for end in torch.aminmax(x))
    return not (math.isfinite(low) and math.isfinite(high)) or max(-low, high) > GARBAGE


@rule
def clones(given: Parameters) -> Iterator[Finding]:
    """FAN204: different weights that start with the same numbers."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for info, _, x in given.real:
        if info.role in WEIGHT_ROLES and x.ndim > 1:
            few = x.reshape(-1)[:: max(1, x.numel() // SAMPLED)].double().cpu()
            if not _varies(x, few):
                continue
            key = (tuple(x.shape), float(few.sum()), float((few * few).sum()))
            groups.setdefault(key, []).append(info.name)
    tensors = {info.name: x for info, _, x in given.real}
    same = [
        [n for n in names if torch.equal(tensors[n], tensors[names[0]])]
        for names in groups.values()
        if len(names) > 1 and not _dirac(tensors[names[0]])
    ]
    copies = [names for names in same if len(names) > 1]
    if copies:
        yield Finding(
            "FAN204", "warning", copies[0][1],
            f"{sum(map(len, copies))} weights are copies of one another: {_these(copies[0])}"
            + (f"; {len(copies)} such groups" if len(copies) > 1 else ""),
            "a module that was initialised once and deep-copied (nn.TransformerEncoder does): the layers "
            "compute the same function and get nearly the same gradient",
            "fanin.initialize_(model, x): every FQN has its own stream",
        )  # fmt: skip


def _dirac(x: Tensor) -> bool:
    """Whether it is an identity or the like, meant to be alike."""
    return int((x != 0).sum()) <= max(x.shape)


@rule
def stale(given: Parameters) -> Iterator[Finding]:
    """FAN205: a computed weight that was written to, though it is computed anew before each use."""
    bad = []
    for _, slot, x in given.real:
        magnitude = slot.owner._parameters.get(f"{slot.leaf}_g")  # noqa: SLF001 - hook-based weight_norm
        direction = slot.owner._parameters.get(f"{slot.leaf}_v")  # noqa: SLF001
        if magnitude is None or direction is None:
            continue
        rest = [d for d in range(direction.ndim) if magnitude.ndim == 0 or magnitude.shape[d] == 1]
        norm = torch.linalg.vector_norm(direction, dim=rest or None, keepdim=True)
        computed = direction * (magnitude / norm)
        if not torch.allclose(computed, x, rtol=1e-3, atol=1e-3 * float(x.abs().max())):
            bad.append(slot.name)
    if bad:
        yield Finding(
            "FAN205", "warning", bad[0],
            f"{_these(bad)} differ from what their parametrization computes",
            "the weight was initialised after weight_norm was registered: the next forward pass overwrites it",
            "initialise before registering, or with fanin.initialize_, which writes through it",
        )  # fmt: skip


@rule
def unused(given: Parameters) -> Iterator[Finding]:
    """FAN206: parameters that the run does not read."""
    if given.used is None:
        return
    names = [
        info.name
        for info, slot in zip(given.facts.params, given.slots, strict=True)
        if not slot.through and not {info.name, *info.aliases} & given.used and slot.tensor.requires_grad
    ]  # fmt: skip
    if names:
        yield Finding(
            "FAN206", "warning", names[0],
            f"nothing in this run reads {_these(names)}",
            "unused parameters get no gradient (DistributedDataParallel waits for it); or these inputs take "
            "another path through the model",
            "none if intended; else check the forward pass",
        )  # fmt: skip


def _std(x: Tensor) -> float:
    """From the mean square, six times sooner than torch's; where the mean counts, by torch."""
    x = x.float()
    square = float(torch.linalg.vector_norm(x)) ** 2 / max(x.numel(), 1)
    variance = square - float(x.mean()) ** 2
    if variance > square / 16:
        return math.sqrt(variance)
    return float(x.std(unbiased=False))


def _varies(x: Tensor, few: Tensor) -> bool:
    """Whether a tensor, or a sample of it already, holds more than one number."""
    return bool((few != few[:1]).any()) or bool((x != x.reshape(-1)[:1]).any())


def _these(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
