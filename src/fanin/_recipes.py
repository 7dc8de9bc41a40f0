"""Facts + scheme -> plan. A scheme is an ordered tuple of rules; the first rule that answers wins.

A rule is a small function ``(ParamInfo, ModelFacts) -> Choice | None``. The rules at the end of
this file are common to all schemes: norms start as the identity, biases at zero, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import prod, sqrt
from typing import Literal

from ._activations import Nonlinearity
from ._errors import PlanError, UncoveredParameterError, closest
from ._facts import FREE_ROLE, RESIDUAL_ROLES, WEIGHT_ROLES, ModelFacts, ParamInfo, PartInfo
from ._fans import Fan
from ._gains import gain
from ._plan import InitPlan
from ._rows import Packed, Row, realised_std, tiles
from .distributions import Constant, DeltaOrthogonal, Distribution, Normal, Orthogonal
from .initializers import Initializer, LecunNormal

Make = Callable[[Fan | None, tuple[int, ...]], Distribution]


@dataclass(frozen=True)
class Choice:
    """A rule's answer.

    Args:
        make: (fan, shape) -> distribution, for the tensor or for each of its slices.
        why: the reason, as it stands in the plan.
        parts: slices by name that are made otherwise.
        sliced: draw each slice on its own; else the tensor as a whole, `parts` apart.
    """

    make: Make
    why: str
    parts: Mapping[str, Make] = field(default_factory=dict)
    sliced: bool = True


Rule = Callable[[ParamInfo, ModelFacts], Choice | None]


@dataclass(frozen=True)
class Scheme:
    """A named way to initialise a model.

    Args:
        name: as given to ``scheme=``.
        summary: one line.
        source: paper and equation, or code.
        rules: tried in order.
        targets: facts -> {FQN of a weight: second moment that its output should have, 1 if missing}:
            the scales are then solved by propagation, where the graph is known; None: they stay.
        objective: what is solved for: the second moments of outputs, or those of gradients.
    """

    name: str
    summary: str
    source: str
    rules: tuple[Rule, ...]
    targets: Callable[[ModelFacts], Mapping[str, float]] | None = None
    objective: Literal["forward", "backward"] = "forward"


# what rules are made of ----------------------------------------------------------------------


def always(distribution: Distribution) -> Make:
    """The same distribution whatever the fan and shape."""
    return lambda _fan, _shape: distribution


def scaled(initializer: Initializer, gain: float = 1.0) -> Make:
    """An initializer applied to the slice's own fan."""
    return lambda fan, shape: initializer(fan or _missing_fan(shape), gain)


def orthogonal(gain: float = 1.0) -> Make:
    """(Semi-)orthogonal with element std gain/sqrt(fan_in), so that q is kept also when out > in."""

    def make(fan: Fan | None, shape: tuple[int, ...]) -> Distribution:
        fan = fan or _missing_fan(shape)
        if not fan.fan_in:
            return Constant(0.0)
        return Orthogonal(gain * sqrt(max(shape[0], prod(shape[1:])) / fan.fan_in))

    return make


def delta_orthogonal(gain: float = 1.0) -> Make:
    """Centre tap orthogonal, times sqrt(max(1, out/in)) to keep q (Xiao et al. 2018)."""
    return lambda _, shape: DeltaOrthogonal(gain * sqrt(max(1.0, shape[0] / max(shape[1], 1))))


def _missing_fan(shape: tuple[int, ...]) -> Fan:
    raise PlanError(f"a tensor of shape {list(shape)} has no fans to scale by.")


def forward_gain(activation: Nonlinearity | None) -> float:
    """1/sqrt(E f(z)^2), or 1 where nothing follows."""
    return 1.0 if activation is None else gain(activation)


def followed_by(info: ParamInfo) -> str:
    """The nonlinearity in words, with how it was found."""
    name = info.activation.name if info.activation else "nothing nonlinear"
    return f"{name} follows ({info.evidence})" if info.evidence else f"{name} follows"


# rules common to all schemes -----------------------------------------------------------------


def norms(info: ParamInfo, _: ModelFacts) -> Choice | None:
    """A norm starts as the identity: scale 1, shift 0."""
    if info.role == "norm":
        return Choice(always(Constant(1.0)), "norm scale: starts as the identity")
    return Choice(always(Constant(0.0)), "norm shift: zero") if info.role == "norm_bias" else None


def biases(info: ParamInfo, _: ModelFacts) -> Choice | None:
    """Zero; a random bias adds variance that no fan accounts for (He et al. 2015 section 2.2)."""
    return Choice(always(Constant(0.0)), "bias: zero") if info.role == "bias" else None


def rnn_biases(info: ParamInfo, _: ModelFacts) -> Choice | None:
    """Zero, but 1 for an LSTM's forget gate, in one of its two biases (Jozefowicz et al. 2015)."""
    if info.role != "rnn_bias":
        return None
    forget = any(p.name == "f" for p in info.parts) and "bias_ih" in info.name
    parts = {"f": always(Constant(1.0))} if forget else {}
    why = "bias: zero, forget gate 1 (Jozefowicz et al. 2015)" if forget else "bias: zero"
    return Choice(always(Constant(0.0)), why, parts)


def rnn_hidden(info: ParamInfo, _: ModelFacts) -> Choice | None:
    """Orthogonal per gate: the recurrence neither grows nor shrinks the state (Saxe et al. 2014)."""
    if info.role != "rnn_hidden":
        return None
    per = " per gate" if info.parts else ""
    return Choice(orthogonal(), f"recurrent weight: orthogonal{per} (Saxe et al. 2014)")


def slopes(info: ParamInfo, _: ModelFacts) -> Choice | None:
    """PReLU's slope starts at 1/4 (He et al. 2015 section 2.1)."""
    return (
        Choice(always(Constant(0.25)), "PReLU slope: 1/4 (He et al. 2015)")
        if info.role == "slope"
        else None
    )


def attention_biases(info: ParamInfo, _: ModelFacts) -> Choice | None:
    """The extra key and value token of MultiheadAttention(add_bias_kv=True)."""
    if info.role != "attn_bias":
        return None
    return Choice(scaled(LecunNormal()), "extra key/value token: unit length")


def embeddings(std: float | None = None, make: Make | None = None) -> Rule:
    """Embedding rows of unit-variance features (fan_in 1), or as given; the padding row zero.

    A table that also serves as the output layer gets std 1/sqrt(d), so that its logits start
    of order one.
    """

    def rule(info: ParamInfo, _: ModelFacts) -> Choice | None:
        if info.role not in ("embed", "pos"):
            return None
        tied = "head" in info.alias_roles or "linear" in info.alias_roles
        pad = "; padding row zero" if info.parts else ""
        zero = {"padding": always(Constant(0.0))}
        if make is not None or std is not None:
            chosen = make or always(Normal(std or 0.0))
            return Choice(chosen, f"embedding{pad}", zero)
        if tied:
            return Choice(
                always(Normal(1 / sqrt(info.shape[1]))),
                f"embedding tied with the output layer: std 1/sqrt(d) keeps logits of order one{pad}",
                zero,
            )
        return Choice(always(Normal(1.0)), f"embedding: fan_in 1, rows of unit variance{pad}", zero)

    return rule


VECTORS: tuple[Rule, ...] = (norms, biases, rnn_biases, slopes, attention_biases)


def weights(choose: Callable[[ParamInfo, ModelFacts], Choice]) -> Rule:
    """A rule for every weight that multiplies a signal."""

    def rule(info: ParamInfo, facts: ModelFacts) -> Choice | None:
        return choose(info, facts) if info.role in WEIGHT_ROLES else None

    return rule


def writes_to_residual(info: ParamInfo) -> bool:
    """Whether the weight's output is added to a residual stream."""
    return info.role in RESIDUAL_ROLES


# the plan ------------------------------------------------------------------------------------

Override = Distribution | Initializer


def build_plan(
    facts: ModelFacts, scheme: Scheme, overrides: Mapping[str, Override] | None = None
) -> InitPlan:
    """Ask the scheme's rules for every parameter, after the overrides.

    Raises:
        UncoveredParameterError: parameters that no rule covers, all named, with what to do.
        PlanError: an override matches nothing or cannot be applied.
    """
    overrides = dict(overrides or {})
    _check_overrides(facts, overrides)
    rows: list[Row] = []
    uncovered: list[ParamInfo] = []
    for info in facts.params:
        glob = next((g for g in reversed(overrides) if _matches(info, g)), None)
        choice = _overridden(info, glob, overrides[glob]) if glob else _first(scheme, info, facts)
        if choice is None:
            uncovered.append(info)
        else:
            rows.append(_row(info, facts, choice))
    if uncovered:
        raise UncoveredParameterError(_uncovered_message(uncovered))
    return InitPlan(tuple(rows), scheme.name, notes=facts.notes)


def _matches(info: ParamInfo, glob: str) -> bool:
    return any(n == glob or fnmatchcase(n, glob) for n in (info.name, *info.aliases))


def _check_overrides(facts: ModelFacts, overrides: Mapping[str, Override]) -> None:
    names = [p.name for p in facts.params]
    for glob, value in overrides.items():
        if not isinstance(value, Distribution | Initializer):
            raise PlanError(
                f"overrides[{glob!r}] must be a distribution such as Normal(0.02) or an initializer "
                f"such as KaimingNormal(); got {value!r}."
            )
        if not any(_matches(p, glob) for p in facts.params):
            raise PlanError(f"overrides[{glob!r}] matches no parameter.{closest(glob, names)}")


def _first(scheme: Scheme, info: ParamInfo, facts: ModelFacts) -> Choice | None:
    return next((c for rule in scheme.rules if (c := rule(info, facts)) is not None), None)


def _overridden(info: ParamInfo, glob: str, value: Override) -> Choice:
    why = f"overrides[{glob!r}]"
    keep = {"padding": always(Constant(0.0))}
    if isinstance(value, Distribution):
        return Choice(always(value), why, keep, sliced=False)
    if info.fan is None and info.torch_fan is None:
        raise PlanError(
            f"{info.name} (shape {list(info.shape)}) has no fans, so overrides[{glob!r}] = {value} cannot "
            "scale it. Give a distribution instead, for example Normal(0.02)."
        )
    made = scaled(value, forward_gain(info.activation))
    by_shape = info.torch_fan if info.fan is None else None
    return Choice(lambda fan, shape: made(fan or by_shape, shape), why, keep)


def _row(info: ParamInfo, facts: ModelFacts, choice: Choice) -> Row:
    packed = tuple(p for part in info.parts for p in _packed(info, part, choice))
    base = (
        packed[0].distribution if tiles(packed, info.shape) else choice.make(info.fan, info.shape)
    )
    if all(p.distribution == base and isinstance(base, Constant) for p in packed):
        packed = ()
    elif isinstance(base, Constant):
        packed = tuple(p for p in packed if p.distribution != base)
    return Row(
        name=info.name,
        aliases=info.aliases,
        shape=info.shape,
        dtype=info.dtype,
        role=info.role,
        fan_in=info.fan.fan_in if info.fan else None,
        fan_out=info.fan.fan_out if info.fan else None,
        nonlinearity=info.activation.name
        if info.activation and info.role in WEIGHT_ROLES
        else None,
        branch_depth=facts.branches,
        distribution=base,
        std=realised_std(info.shape, base, packed),
        reasons=(choice.why,),
        packed=packed,
    )


def _packed(info: ParamInfo, part: PartInfo, choice: Choice) -> tuple[Packed, ...]:
    make = choice.parts.get(part.name) or (choice.make if choice.sliced else None)
    if make is None:
        return ()
    shape = (*info.shape[: part.dim], part.stop - part.start, *info.shape[part.dim + 1 :])
    distribution = make(part.fan, shape)
    fan = part.fan
    return (
        Packed(
            part.name,
            part.dim,
            part.start,
            part.stop,
            fan.fan_in if fan else None,
            fan.fan_out if fan else None,
            distribution,
            distribution.std_for(shape),
        ),
    )


def _uncovered_message(uncovered: list[ParamInfo]) -> str:
    named = "\n".join(
        f"  {p.name}  shape {list(p.shape)}, "
        + (f"a bare nn.Parameter of {p.kind}" if p.role == FREE_ROLE else f"role {p.role}")
        for p in uncovered
    )
    first = uncovered[0]
    return (
        f"no rule covers {len(uncovered)} parameter{'s' * (len(uncovered) > 1)}:\n{named}\n"
        f"Say how each starts, for example overrides={{{first.name!r}: fanin.distributions.Normal(0.02)}} "
        f"(on the command line --override '{first.name}=Normal(0.02)'), or register the module type {first.kind} with @fanin.register_module."
    )
