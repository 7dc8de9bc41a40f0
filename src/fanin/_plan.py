"""InitPlan: one row a parameter, each with its distribution and the reasons for it.

A plan is data: equal, hashable, printable, JSON both ways. It holds no tensor and no closure.
Changing one gives a new plan, and the reason travels with the change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

from ._errors import InvalidValueError, PlanError, closest, finite
from ._fans import Fan
from ._rows import Row, content_of, row_from_dict
from ._text import diff_text, html_table, plan_text
from .distributions import Distribution
from .initializers import Initializer

if TYPE_CHECKING:
    import torch

    from ._shards import Held

FORMAT = "fanin-plan-1"
RNG = "fanin-1"


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
        if key in self._by_name:
            return self._by_name[key]
        raise KeyError(f"no parameter {key!r} in this plan.{closest(key, self.names)}")

    def __contains__(self, key: object) -> bool:
        return key in self._by_name if isinstance(key, str) else key in self.rows

    @cached_property
    def _by_name(self) -> dict[str, Row]:
        """Rows by all their names."""
        return {n: r for r in self.rows for n in (r.name, *r.aliases)}

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical FQNs, in order."""
        return tuple(r.name for r in self.rows)

    def matching(self, name_or_glob: str) -> tuple[Row, ...]:
        """Rows whose name or alias is, or matches, ``name_or_glob`` (``*`` also crosses dots).

        Raises:
            PlanError: nothing matches.
        """
        if name_or_glob in self._by_name:
            return (self._by_name[name_or_glob],)
        hit = tuple(
            r for r in self.rows if any(fnmatchcase(n, name_or_glob) for n in (r.name, *r.aliases))
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
                if n in theirs and content_of(r) != content_of(theirs[n])
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
            "rows": [{**content_of(r), "reasons": list(r.reasons)} for r in self.rows],
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
            rows = tuple(row_from_dict(r) for r in data["rows"])
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
        rows = [content_of(r) for r in self.rows]
        canonical = json.dumps([self.rng, rows], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    # to the model ----------------------------------------------------------------------------

    def within(self, model: torch.nn.Module) -> InitPlan:
        """The rows of the parameters that ``model``, a part of the planned one, has: a partial plan."""
        from ._apply import rows_within  # noqa: PLC0415 - the doors from data to the writer

        return replace(self, rows=rows_within(self, model), partial=True)

    def fill_(
        self,
        model: torch.nn.Module | Mapping[str, torch.Tensor],
        seed: int = 0,
        only: str | Iterable[str] | None = None,
        held: Mapping[str, Held] | None = None,
    ) -> torch.nn.Module | Mapping[str, torch.Tensor]:
        """Write the plan into ``model``'s parameters, in place.

        Args:
            model: has the parameters that the plan names, with those shapes; or tensors by name.
            seed: 0 <= seed < 2^64; the same seed gives the same bits.
            only: a glob, or names such as missing keys, to write; others keep their values.
            held: for plain tensors that are parts of larger ones: name -> `fanin.IndexVectors` or
                `fanin.FlatRange`. A DTensor knows by itself.

        Returns:
            ``model``.

        Raises:
            PlanError: names or shapes differ (all are listed); nothing was written.
            ModelError: a parameter cannot be written (meta, lazy, integer).
        """
        from ._apply import apply_plan_  # noqa: PLC0415

        return apply_plan_(self, model, seed=seed, only=only, held=held)

    def materialize_(
        self,
        model: torch.nn.Module,
        seed: int = 0,
        device: torch.device | str | None = None,
        held: Mapping[str, Held] | None = None,
    ) -> torch.nn.Module:
        """Allocate and write all of ``model`` that is on the meta device; see docs/scale.md.

        Parameters get the plan's values, ties are restored, buffers are computed anew; tensors that
        hold numbers already keep them. No rank speaks to another.

        Args:
            model: on the meta device in whole or in part; plain, or sharded by FSDP2 or tensor parallel.
            seed: 0 <= seed < 2^64.
            device: where to allocate; None for each mesh's own, and the CPU for what is on none.
            held: see `fill_`.

        Returns:
            ``model``.

        Raises:
            PlanError: names or shapes differ (all are listed); nothing was written.
            ModelError: a tensor that cannot be written or computed, by name; nothing was written.
        """
        from ._materialize import materialize_  # noqa: PLC0415

        return materialize_(self, model, seed=seed, device=device, held=held)

    def fingerprint(self, seed: int = 0) -> dict[str, int]:
        """Name -> 64 bits that any change of a value changes; drawn here, without a model.

        Rows that keep what they find have none.
        """
        from ._verify import expected  # noqa: PLC0415

        return expected(self, seed)

    def verify(self, model: torch.nn.Module, seed: int | None = 0) -> None:
        """Check that ``model`` holds the plan's bits, and that all ranks do; see docs/scale.md.

        At most as many all-reduces as the meshes have dims, and two; of 8 bytes a parameter.

        Args:
            model: filled from this plan; plain or sharded. All ranks call this together.
            seed: that it was filled with; None compares the ranks alone, at any time of training.

        Raises:
            PlanError: another model, or the ranks have different plans or seeds.
            ModelError: parameters that differ, by name.
        """
        from ._verify import verify  # noqa: PLC0415

        verify(self, model, seed)

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
            "removed": [content_of(r) for r in self.removed],
            "added": [content_of(r) for r in self.added],
            "changed": [
                {"name": a.name, "from": content_of(a), "to": content_of(b)}
                for a, b in self.changed
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
