"""The verbs. Each is a short composition of the parts; nothing else lives here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ._analysis import analyse
from ._plan import InitPlan
from ._recipes import Override, Scheme, build_plan
from ._roles import facts_of, slots_of
from ._solved import solved
from .schemes import scheme_named


def plan(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    scheme: str | Scheme = "auto",
    overrides: Mapping[str, Override] | None = None,
) -> InitPlan:
    """Decide how every parameter of ``model`` should start, and why. Nothing is written.

    Args:
        model: any nn.Module; parameters may be on any device, meta included.
        example_inputs: a tensor, a tuple of positional arguments, a mapping of keyword arguments,
            or `fanin.Inputs`. With them one run of the model shows which function follows each
            layer; the model is left bit-equal. Without them module types and order must do.
        scheme: ``auto``, ``torch``, ``kaiming``, ``xavier``, ``orthogonal``, ``edge_of_chaos``,
            ``cs336``, ``gpt2``, or a `fanin.schemes.Scheme`. With inputs, ``auto`` solves the scales
            on the model's graph; ``auto:forward``, ``auto:backward``, ``auto:edge_of_chaos`` and
            ``auto:isometry`` do so for one objective throughout.
        overrides: ``{glob over FQN: distribution or initializer}``; the last match wins.

    Returns:
        An `InitPlan`: one row per parameter, with its distribution, std and reasons.

    Raises:
        UncoveredParameterError: a parameter that no rule covers, with what to do.
        ModelError: a lazy parameter, or no parameters.
        InvalidValueError, PlanError: an unknown scheme, an override that matches nothing.

    Example:
        >>> import fanin
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
        >>> round(fanin.plan(net, scheme="kaiming")["0.weight"].std, 4)
        0.1768
    """
    slots_of(model)  # a lazy parameter is an error, not a reason to guess
    analysis = analyse(model, example_inputs)
    chosen = scheme_named(scheme)
    facts = facts_of(model, analysis)
    made = build_plan(facts, chosen, overrides)
    if chosen.targets is None or analysis.structure is None:
        return made
    return solved(model, made, analysis, chosen.targets(facts), chosen.objective)


def initialize_(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    scheme: str | Scheme = "auto",
    seed: int = 0,
    overrides: Mapping[str, Override] | None = None,
) -> InitPlan:
    """Plan, then write every parameter in place; buffers stay as they are.

    The values are a function of (seed, FQN, row, column) alone: the same on any device, thread
    count and order of construction.

    Args:
        model: see `plan`.
        example_inputs: see `plan`.
        scheme: see `plan`.
        seed: 0 <= seed < 2^64.
        overrides: see `plan`.

    Returns:
        The plan that was followed.

    Raises:
        FaninError: as `plan`; or a parameter cannot be written. Then nothing was.

    Example:
        >>> import fanin
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
        >>> len(fanin.initialize_(net))
        4
    """
    made = plan(model, example_inputs, scheme=scheme, overrides=overrides)
    made.fill_(model, seed=seed)
    return made
