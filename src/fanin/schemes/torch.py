"""`torch`: what today's PyTorch constructors do, as a plan."""

from __future__ import annotations

from .._facts import ModelFacts, ParamInfo
from .._recipes import Choice, Scheme, always
from ..distributions import Constant


def default(info: ParamInfo, _: ModelFacts) -> Choice | None:
    """Each tensor as its module's ``reset_parameters`` fills it, packed ones as a whole."""
    if info.default is None:
        return None
    padding = {"padding": always(Constant(0.0))}
    return Choice(always(info.default), f"default of torch.nn.{info.kind}", padding, sliced=False)


SCHEME = Scheme(
    "torch",
    "today's PyTorch default",
    "torch/nn/modules/*.py, reset_parameters: Linear and Conv kaiming_uniform_(a=sqrt(5))",
    (default,),
)
