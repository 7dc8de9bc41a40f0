"""LSUV: scale each layer in execution order until its output has the wanted standard deviation.

Nothing is written while it measures: a dispatch mode multiplies each layer's output as if its
weight had been scaled already, so that one run settles every weight that is used once; weights that
are used several times settle jointly over a few runs. The factors then go into the plan, and the
plan is written.

Source: Mishkin & Matas 2016, "All you need is a good init" (arXiv 1511.06422), algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ._errors import InvalidValueError, ModelError, finite
from ._facts import ModelFacts
from ._inputs import Inputs, as_inputs
from ._plan import InitPlan
from ._preserve import preserved
from ._recipes import Override, Scheme, build_plan
from ._record import storage_key
from ._roles import canonical, describe
from .schemes import scheme_named
from .schemes.auto import bare

# Composite ops arrive whole in inference mode: op -> (position of the weight, of the bias).
_LAYERS = {
    "linear": (1, 2),
    "addmm": (2, 0),
    "mm": (1, None),
    "matmul": (1, None),
    "bmm": (1, None),
    "conv1d": (1, 2),
    "conv2d": (1, 2),
    "conv3d": (1, 2),
    "conv_transpose1d": (1, 2),
    "conv_transpose2d": (1, 2),
    "conv_transpose3d": (1, 2),
    "bilinear": (2, 3),
}
_VIEWS_OF_WEIGHTS = frozenset(
    ("t", "transpose", "permute", "view", "reshape", "to", "_to_copy", "detach", "alias", "mT", "numpy_T", "contiguous",
     "squeeze", "unsqueeze", "select", "slice", "_weight_norm")
)  # fmt: skip


def lsuv_(
    model: nn.Module,
    example_inputs: Any,
    *,
    scheme: str | Scheme = "orthogonal",
    plan: InitPlan | None = None,
    seed: int = 0,
    target: float = 1.0,
    tolerance: float = 0.02,
    max_runs: int = 10,
    overrides: Mapping[str, Override] | None = None,
) -> InitPlan:
    """Initialise, then scale every layer by what one batch of data shows.

    Each linear or convolution layer, in execution order, is scaled so that its output has standard
    deviation ``target``; a layer whose output is added to a residual stream, ``target``/sqrt(L) over
    L branches. Weights used several times take the geometric mean of what their uses ask for.
    Biases, norms, embeddings and bare parameters stay as planned; overridden parameters are not scaled.

    Args:
        model: any nn.Module; its parameters are written.
        example_inputs: a representative batch, as for `fanin.plan`.
        scheme: the plan to start from; Mishkin & Matas start from orthogonal matrices.
        plan: start from this one instead.
        seed: 0 <= seed < 2^64.
        target: standard deviation of each layer's output.
        tolerance: relative, at which repeated runs stop.
        max_runs: of the model, at most.
        overrides: ``{glob over FQN: distribution or initializer}``.

    Returns:
        The plan that was written; each scaled row says by how much and why.

    Raises:
        InvalidValueError: a number out of range.
        ModelError: the model fails, or a layer's output is constant or not finite; the model is
            then as it was.

    Example:
        >>> import fanin, torch
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 8))
        >>> x = 5 * torch.randn(256, 64)
        >>> made = fanin.lsuv_(net, x)
        >>> [round(y.std().item(), 2) for y in (net[0](x), net(x))]
        [1.0, 1.0]

    Source: Mishkin & Matas 2016 (arXiv 1511.06422), algorithm 1.
    """
    for name, value in (("target", target), ("tolerance", tolerance)):
        finite(name, value, above=0.0)
    if max_runs < 1:
        raise InvalidValueError(f"max_runs must be at least 1; got {max_runs}.")
    facts = describe(model, example_inputs)
    made = plan or build_plan(facts, _with_bare(scheme_named(scheme)), overrides)
    targets = _targets(facts, made, target)
    gauge = _Gauge(model, made, targets)
    with preserved(model):
        made.fill_(model, seed=seed)
        _settle(model, as_inputs(example_inputs), gauge, tolerance, max_runs)
    for name, factor in gauge.factors.items():
        if abs(factor - 1.0) > 1e-12:
            seen = gauge.first[name]
            why = f"lsuv: output std {seen:.4g} -> {targets[name]:.4g} on the example batch"
            made = made.scaled(name, factor, why)
    made.fill_(model, seed=seed)
    return made


def _with_bare(scheme: Scheme) -> Scheme:
    """Bare parameters, which are not scaled here, as `auto` starts them."""
    return replace(scheme, rules=(*scheme.rules, bare))


def _targets(facts: ModelFacts, plan: InitPlan, target: float) -> dict[str, float]:
    """Weight's name -> std that its output should have."""
    branch = target / math.sqrt(max(facts.branches, 1))
    return {
        row.name: branch if row.role in {"attn_out", "ffn_out"} and facts.branches else target
        for row in plan
        if row.fan_in is not None
        and row.std > 0
        and not any(reason.startswith("overrides[") for reason in row.reasons)
        and row.role not in {"embed", "pos"}
    }


class _Gauge(TorchDispatchMode):
    """Measures layers' outputs, and passes them on as if the weights were scaled.

    Attributes:
        factors: weight's name -> by what it is to be multiplied.
        first: weight's name -> std of its output before any scaling of it.
        asked: weight's name -> ln(target/std) of each use in the present run.
    """

    def __init__(self, model: nn.Module, plan: InitPlan, targets: Mapping[str, float]) -> None:
        super().__init__()
        self.factors: dict[str, float] = {}
        self.first: dict[str, float] = {}
        self.asked: dict[str, list[float]] = {}
        self.targets = targets
        names = {alias: row.name for row in plan for alias in (row.name, *row.aliases)}
        self._named = [
            (tensor, names[canonical(name)])
            for name, tensor in model.named_parameters(remove_duplicate=False)
            if canonical(name) in names
        ]
        self._owners: dict[int | None, str] = {}

    def begin(self) -> None:
        """Before a run."""
        self.asked = {}
        self._owners = {storage_key(tensor): name for tensor, name in self._named}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]  # noqa: SLF001 - an operator's schema has no public door
        place = _LAYERS.get(name)
        if place is not None and len(args) > place[0] and isinstance(out, Tensor):
            owner = self._owners.get(storage_key(args[place[0]]))
            if owner is not None and owner in self.targets:
                bias = args[place[1]] if place[1] is not None and len(args) > place[1] else None
                return self._scaled(owner, out, bias, name)
        elif name in _VIEWS_OF_WEIGHTS and args and isinstance(out, Tensor):
            owner = self._owners.get(storage_key(args[0]))
            if owner is not None:
                self._owners.setdefault(storage_key(out), owner)
        return out

    def _scaled(self, owner: str, out: Tensor, bias: Tensor | None, op: str) -> Tensor:
        shift: Tensor | float = 0.0
        if isinstance(bias, Tensor):
            shift = bias.reshape(-1, *(1,) * (out.ndim - 2)) if op.startswith("conv") else bias
        bare = out - shift
        std = float(bare.double().std(unbiased=False))
        if not std > 0 or not math.isfinite(std):
            raise ModelError(
                f"{owner}: the output of its layer has standard deviation {std} on the example batch, so no "
                "factor can scale it. Look upstream with fanin.probe(model, x)."
            )
        self.first.setdefault(owner, std)
        first_use = owner not in self.factors
        if first_use:
            self.factors[owner] = self.targets[owner] / std
        factor = self.factors[owner]
        self.asked.setdefault(owner, []).append(math.log(self.targets[owner] / (std * factor)))
        return bare * factor + shift


def _settle(
    model: nn.Module, inputs: Inputs, gauge: _Gauge, tolerance: float, max_runs: int
) -> None:
    """Run until the uses of every weight, taken together, ask for no more than ``tolerance``."""
    args, kwargs = tree_map_only(Tensor, torch.clone, (inputs.args, inputs.kwargs))
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(value=False)
    try:
        for _ in range(max_runs):
            gauge.begin()
            try:
                with torch.inference_mode(), gauge:
                    model(*args, **kwargs)
            except ModelError:
                raise
            except Exception as error:
                raise ModelError(
                    f"the model failed while it was measured: {type(error).__name__}: {error}. "
                    "Give example inputs that model(...) accepts."
                ) from error
            wanted = {name: sum(asks) / len(asks) for name, asks in gauge.asked.items()}
            if all(abs(w) <= tolerance for w in wanted.values()):
                return
            for name, w in wanted.items():
                # In a chain the k-th use moves with the k-th power of the factor: a full step overshoots.
                gauge.factors[name] *= math.exp(w / len(gauge.asked[name]))
    finally:
        torch.backends.mha.set_fastpath_enabled(value=fused)
