"""An nn.Module -> ModelFacts: every parameter by FQN, its ties, its role, what follows it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from ._analysis import Analysis, analyse
from ._errors import ModelError
from ._facts import FREE_ROLE, RESIDUAL_ROLES, WEIGHT_ROLES, ModelFacts, ParamInfo
from ._fans import shape_fan
from ._follow import Followed, follow_graph, follow_modules
from ._layouts import Spec, specs_of
from ._shards import is_dtensor
from ._structure import Structure
from .distributions import Constant, Distribution, Kept

_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\."
)
_ROOTS = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel")
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # noqa: SLF001


def canonical(name: str, *, wrapped_root: bool = False) -> str:
    """The FQN without what torch.compile, checkpointing, FSDP1 and DDP put in front of it.

    >>> canonical("_orig_mod.h.0._checkpoint_wrapped_module.mlp.weight")
    'h.0.mlp.weight'
    """
    name = _WRAPPERS.sub("", name)
    return name.removeprefix("module.") if wrapped_root else name


@dataclass
class Slot:
    """One tensor to initialise: the parameter, or what a parametrization computes from several.

    Args:
        name: canonical FQN of the logical tensor.
        owner: the module that has it.
        leaf: its attribute there.
        tensor: the logical tensor.
        through: FQNs of the parameters behind a parametrization.
        aliases: further names of the same tensor.
    """

    name: str
    owner: nn.Module
    owner_name: str
    leaf: str
    tensor: Tensor
    through: tuple[str, ...] = ()
    aliases: list[str] = field(default_factory=list)


def slots_of(model: nn.Module) -> list[Slot]:
    """Every tensor to initialise, once, in registration order.

    Raises:
        ModelError: a parameter is lazy.
    """
    found: dict[object, Slot] = {}
    for fqn, module in owners(model):
        for slot in _own_slots(module, fqn):
            first = found.setdefault(_identity(slot), slot)
            if first is not slot and slot.name not in (first.name, *first.aliases):
                first.aliases.append(slot.name)
    return list(found.values())


def owners(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(canonical FQN, module) of all modules but parametrizations, shared ones by every name."""
    root = type(model).__name__ in _ROOTS
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, ParametrizationList) or ".parametrizations." in f".{path}.":
            continue
        yield canonical(f"{path}.", wrapped_root=root).removesuffix(".") if path else "", module


def _identity(slot: Slot) -> object:
    return (id(slot.owner), slot.leaf) if slot.through else id(slot.tensor)


def _own_slots(module: nn.Module, fqn: str) -> Iterator[Slot]:
    """The tensors that belong to ``module`` itself, in order of registration."""
    prefix = f"{fqn}." if fqn else ""
    computed = behind(module)
    hidden = {n for names in computed.values() for n in names}
    for leaf, parameter in module._parameters.items():  # noqa: SLF001 - keeps the order and skips none
        if parameter is None or leaf in hidden:
            continue
        if is_lazy(parameter):
            raise ModelError(
                f"{prefix}{leaf} is lazy and has no shape yet. Run the model once on an example batch, "
                "then plan or initialise it."
            )
        yield Slot(f"{prefix}{leaf}", module, fqn, leaf, parameter)
    for leaf, names in computed.items():
        through = tuple(f"{prefix}{n}" for n in names)
        yield Slot(f"{prefix}{leaf}", module, fqn, leaf, getattr(module, leaf), through)


def behind(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Attribute of ``module`` that it computes -> names of the parameters that it does so from."""
    found = _old_style(module)
    if is_parametrized(module):
        for leaf, parametrization in module.parametrizations.items():  # type: ignore[union-attr, operator]
            names = (n for n, _ in parametrization.named_parameters())
            found[leaf] = tuple(f"parametrizations.{leaf}.{n}" for n in names)
    return found


def _old_style(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Tensors recomputed by the hooks of torch.nn.utils.weight_norm and spectral_norm."""
    own, buffers = module._parameters, module._buffers  # noqa: SLF001
    norms = {n[:-2]: (n, f"{n[:-2]}_v") for n in own if n.endswith("_g") and f"{n[:-2]}_v" in own}
    spectral = {n[:-5]: (n,) for n in own if n.endswith("_orig") and f"{n[:-5]}_u" in buffers}
    return {**norms, **spectral}


def describe(model: nn.Module, example_inputs: Any = None) -> ModelFacts:
    """`facts_of` after capturing the model's graph on ``example_inputs``, if there are any."""
    slots_of(model)  # a lazy parameter is an error, not a reason to guess
    return facts_of(model, analyse(model, example_inputs))


def facts_of(model: nn.Module, analysis: Analysis) -> ModelFacts:
    """What is known of ``model`` from its modules' types and what is seen to follow them.

    The graph shows which function is applied to each layer's output, functional calls included.
    Without it the order in which modules were registered stands in.

    Raises:
        ModelError: a parameter is lazy, or the model has none.
    """
    slots = slots_of(model)
    if not slots:
        raise ModelError(f"{type(model).__name__} has no parameters to initialise.")
    specs = _all_specs(model)
    weights = {id(s.tensor): s.name for s in slots if _role(specs.get(s.name)) in WEIGHT_ROLES}
    weights |= _behind_parametrization(model, slots, specs)
    followed = _follow(model, analysis, weights)
    params = tuple(_info(slot, specs, followed) for slot in slots)
    params = _with_usage(params, slots, model, analysis)
    params = _with_biases(_with_head(params, followed))
    branches = followed.branches or sum(p.role in RESIDUAL_ROLES for p in params)
    return ModelFacts(
        params,
        layers=len(followed.order),
        branches=branches,
        normalised=any(isinstance(m, _NORMS) for m in model.modules())
        or any(p.role == "norm" for p in params),
        recurrent=any(p.role.startswith("rnn") for p in params),
        traced=followed.traced,
        notes=followed.notes,
    )


def _all_specs(model: nn.Module) -> dict[str, Spec]:
    """Specs by canonical FQN; an outer module's word on an inner tensor counts first."""
    root = type(model).__name__ in _ROOTS
    specs: dict[str, Spec] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for leaf, spec in specs_of(module).items():
            specs.setdefault(canonical(f"{path}.{leaf}" if path else leaf, wrapped_root=root), spec)
    return specs


def _role(spec: Spec | None) -> str:
    return FREE_ROLE if spec is None else spec.role


def _behind_parametrization(
    model: nn.Module, slots: list[Slot], specs: Mapping[str, Spec]
) -> dict[int, str]:
    """Identity of each parameter behind a parametrized weight -> the weight's name."""
    parameters = {canonical(n): p for n, p in model.named_parameters(remove_duplicate=False)}
    return {
        id(parameters[n]): s.name
        for s in slots
        for n in s.through
        if n in parameters and _role(specs.get(s.name)) in WEIGHT_ROLES
    }


def _follow(model: nn.Module, analysis: Analysis, weights: dict[int, str]) -> Followed:
    if analysis.structure is None:
        return replace(follow_modules(model, weights), notes=(analysis.note,))
    named = model.named_parameters(remove_duplicate=False)
    by_name = {n: weights[id(p)] for n, p in named if id(p) in weights}
    return replace(follow_graph(model, analysis.structure, by_name), notes=(analysis.note,))


def _info(slot: Slot, specs: Mapping[str, Spec], followed: Followed) -> ParamInfo:
    spec = specs.get(slot.name, Spec(FREE_ROLE))
    shape = tuple(slot.tensor.shape)
    seen = followed.after.get(slot.name)
    activation, evidence = (seen, followed.evidence) if spec.role in WEIGHT_ROLES else (None, "")
    if spec.nonlinearity and activation is None:
        activation, evidence = followed.named(spec.nonlinearity), "its module applies it"
    role = spec.role
    if slot.name in followed.residual and role in ("linear", "conv", "conv_transpose"):
        role = "ffn_out"
    return ParamInfo(
        name=slot.name,
        shape=shape,
        dtype=str(slot.tensor.dtype).removeprefix("torch."),
        role=role,
        module=slot.owner_name,
        kind=type(slot.owner).__name__.removeprefix("Parametrized"),
        fan=spec.fan,
        torch_fan=shape_fan(shape) if len(shape) > 1 else None,
        groups=spec.groups,
        parts=spec.parts,
        aliases=tuple(slot.aliases),
        alias_roles=tuple(_role(specs.get(a)) for a in slot.aliases),
        activation=activation,
        factor=followed.factors.get(slot.name, 1.0),
        mirror=followed.mirrors.get(slot.name),
        evidence=evidence if spec.role in WEIGHT_ROLES else "",
        default=spec.default,
        through=slot.through,
    )


def _with_usage(
    params: tuple[ParamInfo, ...], slots: list[Slot], model: nn.Module, analysis: Analysis
) -> tuple[ParamInfo, ...]:
    """For bare parameters: what the graph does with them, and what they hold now."""
    structure = analysis.structure
    if structure is None:
        return params
    root = type(model).__name__ in _ROOTS
    indices = {canonical(n, wrapped_root=root): i for n, i in structure.graph.parameters.items()}
    return tuple(
        replace(p, usage=_usage(structure, indices.get(p.name)), present=_present(slot.tensor))
        if p.role == FREE_ROLE
        else p
        for p, slot in zip(params, slots, strict=True)
    )


def _usage(structure: Structure, index: int | None) -> str:
    return "unused" if index is None else structure.usage(index)


def _present(tensor: Tensor) -> Distribution | None:
    if tensor.is_meta or not tensor.numel() or not tensor.is_floating_point() or is_dtensor(tensor):
        return None
    x = tensor.detach().double()
    low, high = float(x.min()), float(x.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    return Constant(low) if low == high else Kept(float(x.mean()), float(x.std(unbiased=False)))


def _with_head(params: tuple[ParamInfo, ...], followed: Followed) -> tuple[ParamInfo, ...]:
    """The last weight that signal passes through is the head, if it is a dense layer on its own."""
    last = followed.order[-1] if followed.order else None
    return tuple(
        replace(p, role="head")
        if p.name == last and p.role == "linear" and p.activation is None
        else p
        for p in params
    )


def _with_biases(params: tuple[ParamInfo, ...]) -> tuple[ParamInfo, ...]:
    """A bias shares its layer's nonlinearity: it is added before it."""
    layers = {p.module: p for p in params if p.role in WEIGHT_ROLES and p.name.endswith("weight")}
    return tuple(
        replace(
            p,
            activation=layers[p.module].activation,
            factor=layers[p.module].factor,
            mirror=layers[p.module].mirror,
        )
        if p.role == "bias" and p.module in layers
        else p
        for p in params
    )
