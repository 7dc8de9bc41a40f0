"""fanin gives every weight of a PyTorch model the right starting value, and shows why.

plan = fanin.plan(model, inputs)          # see the decision
fanin.initialize_(model, inputs)          # act on it
report = fanin.check(model, inputs)       # predict the signal, without running the model
report = fanin.probe(model, inputs)       # measure it
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import distributions as distributions
    from . import experiments as experiments
    from . import init as init
    from . import initializers as initializers
    from . import moments as moments
    from . import nn as nn
    from . import schemes as schemes
    from ._api import initialize_ as initialize_
    from ._api import plan as plan
    from ._buffers import register_buffers as register_buffers
    from ._calibrate import lsuv_ as lsuv_
    from ._check import check as check
    from ._errors import FaninError as FaninError
    from ._errors import InvalidValueError as InvalidValueError
    from ._errors import MissingExtraError as MissingExtraError
    from ._errors import ModelError as ModelError
    from ._errors import PlanError as PlanError
    from ._errors import TargetError as TargetError
    from ._errors import UncoveredParameterError as UncoveredParameterError
    from ._fans import Fan as Fan
    from ._fill import fill_ as fill_
    from ._findings import Limits as Limits
    from ._grow import grow_ as grow_
    from ._inputs import Inputs as Inputs
    from ._layouts import Spec as Spec
    from ._layouts import fan_of as fan_of
    from ._layouts import register_module as register_module
    from ._no_init import no_init as no_init
    from ._nonlinearity import depth_scales as depth_scales
    from ._nonlinearity import edge_of_chaos as edge_of_chaos
    from ._nonlinearity import gain as gain
    from ._nonlinearity import register_nonlinearity as register_nonlinearity
    from ._plan import InitPlan as InitPlan
    from ._plan import PlanDiff as PlanDiff
    from ._probe import probe as probe
    from ._report import Finding as Finding
    from ._report import Layer as Layer
    from ._report import Signal as Signal
    from ._report import SignalReport as SignalReport
    from ._rows import Packed as Packed
    from ._rows import Row as Row
    from ._shards import FlatRange as FlatRange
    from ._shards import IndexVectors as IndexVectors

# Where each public name lives. They are imported on first use (PEP 562), so that `fanin --help`
# does not wait for torch.
_HOME = {
    "Fan": "_fans",
    "FaninError": "_errors",
    "Finding": "_report",
    "FlatRange": "_shards",
    "IndexVectors": "_shards",
    "InitPlan": "_plan",
    "Inputs": "_inputs",
    "InvalidValueError": "_errors",
    "Layer": "_report",
    "Limits": "_findings",
    "MissingExtraError": "_errors",
    "ModelError": "_errors",
    "Packed": "_rows",
    "PlanDiff": "_plan",
    "PlanError": "_errors",
    "Row": "_rows",
    "Signal": "_report",
    "SignalReport": "_report",
    "Spec": "_layouts",
    "TargetError": "_errors",
    "UncoveredParameterError": "_errors",
    "check": "_check",
    "depth_scales": "_nonlinearity",
    "edge_of_chaos": "_nonlinearity",
    "fan_of": "_layouts",
    "fill_": "_fill",
    "gain": "_nonlinearity",
    "grow_": "_grow",
    "initialize_": "_api",
    "lsuv_": "_calibrate",
    "no_init": "_no_init",
    "plan": "_api",
    "probe": "_probe",
    "register_buffers": "_buffers",
    "register_module": "_layouts",
    "register_nonlinearity": "_nonlinearity",
}
_SUBMODULES = (
    "distributions",
    "experiments",
    "init",
    "initializers",
    "moments",
    "nn",
    "schemes",
)

__all__ = ["__version__", *_HOME, *_SUBMODULES]  # noqa: PLE0604 - strings all, by the table


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(
            f"module 'fanin' has no attribute {name!r}; it has {', '.join(__all__)}."
        )
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
