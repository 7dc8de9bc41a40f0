"""InitPlan: one row a parameter, each with its distribution and the reasons for it.

A plan is data: equal, hashable, printable, JSON both ways. It holds no tensor and no closure.
Changing one gives a new plan, and the reason travels with the change.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, overload

from ._errors import InvalidValueError, PlanError, closest, finite
from ._fans import Fan
from ._text import diff_text, html_table, plan_text
from .distributions import Distribution, distribution_from_dict
from .initializers import Initializer

if TYPE_CHECKING:
    import torch

FORMAT = "fanin-plan-1"
RNG = "fanin-1"


@dataclass(frozen=True)
class Packed:
    """A slice ``start:stop`` along ``dim`` that is drawn on its own, from its own stream.

    Args:
        name: ``q``, ``k``, ``v``, a gate's letter, or ``padding``; the stream is ``FQN:name``.
        fan_in: the slice's fan, None where the notion does not apply.
        distribution: what the slice is filled with.
        std: realised standard deviation of one element.
    """

    name: str
    dim: int
    start: int
    stop: int
    fan_in: float | None
    fan_out: float | None
    distribution: Distribution
    std: float

    def shape_in(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The slice's shape inside a tensor of ``shape``."""
        return (*shape[: self.dim], self.stop - self.start, *shape[self.dim + 1 :])


@dataclass(frozen=True)
class Row:
    """How one parameter starts.

    Args:
        name: canonical FQN.
        aliases: further names of the same tensor (tied weights).
        shape: logical shape.
        dtype: ``float32``, ``bfloat16``, ...
        role: what the parameter is for.
        fan_in: connections summed by one output unit, None where that has no meaning.
        fan_out: output units reached by one input unit.
        nonlinearity: the function that follows, None if unknown or none.
        branch_depth: residual branches of the model, 0 if none were found.
        distribution: of the tensor; where `packed` slices differ, of the first one.
        std: realised standard deviation of one element over the whole tensor.
        reasons: why, in order; the last one is the newest change.
        packed: slices that are drawn on their own.
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    role: str
    fan_in: float | None
    fan_out: float | None
    nonlinearity: str | None
    branch_depth: int
    distribution: Distribution
    std: float
    reasons: tuple[str, ...] = ()
    packed: tuple[Packed, ...] = ()

    def with_distribution(
        self, choose: Callable[[Distribution, Fan | None], Distribution], why: str
    ) -> Row:
        """A new row; ``choose(old, fan)`` gives the distribution of the row and of each slice.

        A slice that holds a constant (a padding row, a forget gate's bias) keeps it.
        """
        distribution = choose(self.distribution, _fan(self.fan_in, self.fan_out))
        packed = tuple(_changed(part, choose, self.shape) for part in self.packed)
        if tiles(packed, self.shape):
            distribution = packed[0].distribution
        return replace(
            self,
            distribution=distribution,
            packed=packed,
            std=realised_std(self.shape, distribution, packed),
            reasons=(*self.reasons, why),
        )


def _changed(
    part: Packed, choose: Callable[[Distribution, Fan | None], Distribution], shape: tuple[int, ...]
) -> Packed:
    if part.std == 0.0:
        return part
    new = choose(part.distribution, _fan(part.fan_in, part.fan_out))
    return replace(part, distribution=new, std=new.std_for(part.shape_in(shape)))


def _fan(fan_in: float | None, fan_out: float | None) -> Fan | None:
    return None if fan_in is None or fan_out is None else Fan(fan_in, fan_out)


def tiles(packed: tuple[Packed, ...], shape: tuple[int, ...]) -> bool:
    """Whether the slices leave nothing of the tensor to its own distribution."""
    return bool(packed) and sum(p.stop - p.start for p in packed) == shape[packed[0].dim]


def realised_std(shape: tuple[int, ...], base: Distribution, packed: tuple[Packed, ...]) -> float:
    """Standard deviation of an element drawn at random from the whole tensor.

    Slices contribute by their size: variance of a mixture = mean of second moments - mean^2.
    """
    if not packed:
        return base.std_for(shape)
    extent = max(shape[packed[0].dim], 1)
    pieces = [(p.stop - p.start, p.distribution, p.shape_in(shape)) for p in packed]
    rest = extent - sum(n for n, _, _ in pieces)
    if rest:
        pieces.append((rest, base, shape))
    first = sum(n * d.mean_for(s) for n, d, s in pieces) / extent
    second = sum(n * (d.std_for(s) ** 2 + d.mean_for(s) ** 2) for n, d, s in pieces) / extent
    return math.sqrt(max(0.0, second - first**2))


@dataclass(frozen=True)
class InitPlan:
    """A sequence of `Row`, with the scheme that chose them and the engine that will draw them.

    Args:
        rows: one per parameter, in registration order.
        scheme: the name of the scheme.
        rng: the random engine's version; values are a function of (rng, seed, FQN, row, column).
        notes: sentences about the whole plan, for the reader.
        partial: this plan is a selection; applying it leaves other parameters alone.
    """

    rows: tuple[Row, ...]
    scheme: str = "auto"
    rng: str = RNG
    notes: tuple[str, ...] = ()
    partial: bool = False

    def __post_init__(self) -> None:
        names = [n for r in self.rows for n in (r.name, *r.aliases)]
        twice = (
            sorted({n for n in names if names.count(n) > 1}) if len(set(names)) < len(names) else []
        )
        if twice:
            raise PlanError(f"a plan names each parameter once; it names {', '.join(twice)} twice.")

    # a sequence ------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @overload
    def __getitem__(self, key: slice) -> tuple[Row, ...]: ...
    @overload
    def __getitem__(self, key: int | str) -> Row: ...

    def __getitem__(self, key: int | str | slice) -> Row | tuple[Row, ...]:
        if not isinstance(key, str):
            return self.rows[key]
        for row in self.rows:
            if key == row.name or key in row.aliases:
                return row
        raise KeyError(f"no parameter {key!r} in this plan.{closest(key, self.names)}")

    def __contains__(self, key: object) -> bool:
        return key in self.rows or any(key == r.name or key in r.aliases for r in self.rows)

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical FQNs, in order."""
        return tuple(r.name for r in self.rows)

    def matching(self, name_or_glob: str) -> tuple[Row, ...]:
        """Rows whose name or alias is, or matches, ``name_or_glob`` (``*`` also crosses dots).

        Raises:
            PlanError: nothing matches.
        """
        hit = tuple(
            r
            for r in self.rows
            if any(n == name_or_glob or fnmatchcase(n, name_or_glob) for n in (r.name, *r.aliases))
        )
        if not hit:
            raise PlanError(
                f"{name_or_glob!r} matches no parameter of this plan.{closest(name_or_glob, self.names)} "
                f"The plan has {len(self.rows)} rows, the first being {', '.join(self.names[:3])}."
            )
        return hit

    def select(self, name_or_glob: str) -> InitPlan:
        """The matching rows alone, as a partial plan.

        Raises:
            PlanError: nothing matches.
        """
        return replace(self, rows=self.matching(name_or_glob), partial=True)

    # new plans -------------------------------------------------------------------------------

    def replace(
        self, name_or_glob: str, distribution: Distribution | Initializer, why: str
    ) -> InitPlan:
        """A new plan in which the matching rows draw from ``distribution``.

        Args:
            name_or_glob: FQN or glob over FQNs.
            distribution: a distribution, or an initializer, which is given each row's fan
                and gain 1.
            why: the reason, appended to each changed row's reasons.

        Raises:
            PlanError: nothing matches, or an initializer is given for a row without fans.
        """
        chosen = {r.name for r in self.matching(name_or_glob)}
        return replace(
            self,
            rows=tuple(
                _replaced(r, distribution, why) if r.name in chosen else r for r in self.rows
            ),
        )

    def scaled(self, name_or_glob: str, factor: float, why: str) -> InitPlan:
        """A new plan in which the matching rows' std (and mean) is multiplied by ``factor``.

        Raises:
            PlanError: nothing matches.
            InvalidValueError: ``factor`` is negative or not finite.
        """
        finite("factor", factor, least=0.0)
        chosen = {r.name for r in self.matching(name_or_glob)}
        reason = f"x{factor:.4g}: {why}"
        return replace(
            self,
            rows=tuple(
                r.with_distribution(lambda d, _: d.scaled(factor), reason)
                if r.name in chosen
                else r
                for r in self.rows
            ),
        )

    def diff(self, other: InitPlan) -> PlanDiff:
        """What changes from this plan to ``other``, row by row."""
        mine, theirs = {r.name: r for r in self.rows}, {r.name: r for r in other.rows}
        return PlanDiff(
            removed=tuple(r for n, r in mine.items() if n not in theirs),
            added=tuple(r for n, r in theirs.items() if n not in mine),
            changed=tuple(
                (r, theirs[n])
                for n, r in mine.items()
                if n in theirs and _content(r) != _content(theirs[n])
            ),
        )

    # JSON ------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "format": FORMAT,
            "rng": self.rng,
            "scheme": self.scheme,
            "partial": self.partial,
            "notes": list(self.notes),
            "rows": [{**_content(r), "reasons": list(r.reasons)} for r in self.rows],
        }

    def to_json(self, indent: int | None = 1) -> str:
        """The plan as JSON text; `from_json` gives an equal plan."""
        return json.dumps(self.to_dict(), indent=indent)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> InitPlan:
        """The inverse of `to_dict`.

        Raises:
            PlanError: not a plan, of another format, or drawn by another engine.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise PlanError(
                f'not a plan: expected JSON with "format": "{FORMAT}", got {found!r}. '
                "Write one with plan.to_json() or `fanin plan TARGET --format json`."
            )
        if data.get("rng") != RNG:
            raise PlanError(
                f"this plan was made for the engine {data.get('rng')!r}; this fanin has {RNG!r}."
            )
        try:
            rows = tuple(_row(r) for r in data["rows"])
            return cls(
                rows, data["scheme"], data["rng"], tuple(data["notes"]), bool(data["partial"])
            )
        except (KeyError, TypeError, AttributeError, InvalidValueError) as error:
            raise PlanError(
                f"the plan is damaged: {type(error).__name__} {error}. Make it anew with fanin.plan(model)."
            ) from error

    @classmethod
    def from_json(cls, text: str) -> InitPlan:
        """The inverse of `to_json`.

        Raises:
            PlanError: ``text`` is not JSON, or not a plan.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(
                f"the plan is not JSON: {error}. Expected the text that plan.to_json() writes."
            ) from error
        return cls.from_dict(data)

    def hash(self) -> str:
        """SHA-256 of everything that decides the values: engine, names, shapes, distributions.

        Reasons and notes do not count: two plans with one hash write the same bits.
        """
        rows = [_content(r) for r in self.rows]
        canonical = json.dumps([self.rng, rows], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    # to the model ----------------------------------------------------------------------------

    def fill_(
        self, model: torch.nn.Module, seed: int = 0, only: str | list[str] | None = None
    ) -> torch.nn.Module:
        """Write the plan into ``model``'s parameters, in place.

        Args:
            model: has the parameters that the plan names, with those shapes.
            seed: 0 <= seed < 2^64; the same seed gives the same bits.
            only: a glob, or names, to write; others keep their values.

        Returns:
            ``model``.

        Raises:
            PlanError: names or shapes differ (all are listed); nothing was written.
            ModelError: a parameter cannot be written (meta, lazy, integer).
        """
        from ._apply import apply_plan_  # noqa: PLC0415 - the one door from data to the writer

        return apply_plan_(self, model, seed=seed, only=only)

    # to the reader ---------------------------------------------------------------------------

    def __str__(self) -> str:
        return plan_text(self)

    def __rich__(self) -> str:
        return plan_text(self).replace("[", r"\[")

    def _repr_html_(self) -> str:
        return html_table(
            ("parameter", "shape", "role", "fan_in", "std", "distribution", "why"),
            [
                (
                    r.name,
                    "x".join(map(str, r.shape)),
                    r.role,
                    r.fan_in,
                    f"{r.std:.4g}",
                    r.distribution,
                    "; ".join(r.reasons),
                )
                for r in self.rows
            ],
        )


@dataclass(frozen=True)
class PlanDiff:
    """Rows only in the first plan, only in the second, and pairs that differ."""

    removed: tuple[Row, ...]
    added: tuple[Row, ...]
    changed: tuple[tuple[Row, Row], ...]

    def __bool__(self) -> bool:
        return bool(self.removed or self.added or self.changed)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "removed": [_content(r) for r in self.removed],
            "added": [_content(r) for r in self.added],
            "changed": [
                {"name": a.name, "from": _content(a), "to": _content(b)} for a, b in self.changed
            ],
        }

    def __str__(self) -> str:
        return diff_text(self)


def _replaced(row: Row, value: Distribution | Initializer, why: str) -> Row:
    if isinstance(value, Distribution):
        return row.with_distribution(lambda _, __: value, why)
    if not isinstance(value, Initializer):
        raise PlanError(
            f"{row.name}: expected a distribution such as Normal(0.02) or an initializer such as "
            f"KaimingNormal(); got {value!r}."
        )

    def choose(_: Distribution, fan: Fan | None) -> Distribution:
        if fan is None:
            raise PlanError(
                f"{row.name} (role {row.role}, shape {list(row.shape)}) has no fans, so {value} "
                "cannot scale it. Give a distribution instead, for example Normal(0.02)."
            )
        return value(fan, 1.0)

    return row.with_distribution(choose, why)


def _content(row: Row) -> dict[str, Any]:
    """Everything about a row but its reasons, as plain data."""
    return {
        "name": row.name,
        "aliases": list(row.aliases),
        "shape": list(row.shape),
        "dtype": row.dtype,
        "role": row.role,
        "fan_in": row.fan_in,
        "fan_out": row.fan_out,
        "nonlinearity": row.nonlinearity,
        "branch_depth": row.branch_depth,
        "distribution": row.distribution.to_dict(),
        "std": row.std,
        "packed": [{**vars(p), "distribution": p.distribution.to_dict()} for p in row.packed],
    }


def _row(data: dict[str, Any]) -> Row:
    packed = tuple(
        Packed(**{**p, "distribution": distribution_from_dict(p["distribution"])})
        for p in data["packed"]
    )
    return Row(
        **{
            **data,
            "aliases": tuple(data["aliases"]),
            "shape": tuple(data["shape"]),
            "reasons": tuple(data["reasons"]),
            "distribution": distribution_from_dict(data["distribution"]),
            "packed": packed,
        }
    )
