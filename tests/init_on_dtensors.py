"""One rank of a mesh of four, alone: does each DTensor get its slice of the single-device values?

    python tests/init_on_dtensors.py fanin.init RANK

Prints JSON, {"function placements": "equal" | "differs" | name of the exception}. The process
group is torch's fake one, which moves nothing: whatever needs communication cannot come out right.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import (
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
    init_device_mesh,
)
from torch.testing._internal.distributed.fake_pg import FakeStore

WORLD = 4
CALLS = {
    "uniform_": ((8, 6), ()),
    "normal_": ((8, 6), ()),
    "trunc_normal_": ((8, 6), ()),
    "zeros_": ((8, 6), ()),
    "eye_": ((8, 6), ()),
    "dirac_": ((8, 6, 3), (2,)),
    "xavier_normal_": ((7, 6), ()),
    "kaiming_uniform_": ((8, 5), ()),
    "orthogonal_": ((8, 6), ()),
    "sparse_": ((8, 6), (0.5,)),
    "delta_orthogonal_": ((8, 6, 3), ()),
    "variance_scaling_": ((9, 6), (1.0, "fan_avg", "truncated_normal")),
}
MODULES = {
    "Embedding weight": lambda: nn.Embedding(8, 6, padding_idx=3),
    "MultiheadAttention in_proj_weight": lambda: nn.MultiheadAttention(4, 2),
    "LSTM weight_hh_l0": lambda: nn.LSTM(3, 5),
    "LSTM bias_hh_l0": lambda: nn.LSTM(3, 5),
    "Conv2d weight": lambda: nn.Conv2d(8, 8, 3, groups=4),
}


def layouts():
    """Meshes and placements: rows, columns, a grid, rows twice, replicas of rows."""
    line, grid = init_device_mesh("cpu", (WORLD,)), init_device_mesh("cpu", (2, 2))
    yield from ((line, [Shard(0)]), (line, [Shard(1)]), (line, [Replicate()]))
    yield from (
        (grid, [Shard(0), Shard(1)]),
        (grid, [Shard(0)] * 2),
        (grid, [Replicate(), Shard(0)]),
    )


def sharded(tensor, mesh, placements):
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def drawn(function, tensor, arguments):
    torch.manual_seed(0)
    return function(tensor, *arguments)


def outcome(function, shape, arguments, mesh, placements) -> str:
    whole = drawn(function, torch.full(shape, 5.0), arguments)
    parameter = nn.Parameter(sharded(torch.full(shape, 5.0), mesh, placements))
    result = drawn(function, parameter, arguments)
    assert result is parameter
    mine, expected = parameter.to_local(), sharded(whole, mesh, placements).to_local()
    return "equal" if mine.shape == expected.shape and mine.equal(expected) else "differs"


def shard_rows(_, module, mesh):
    for name, parameter in list(module.named_parameters(recurse=False)):
        local = nn.Parameter(sharded(parameter.detach(), mesh, [Shard(0)]))
        module.register_parameter(name, local)


def module_outcome(init, make, name, mesh) -> str:
    function = init.normal_ if "bias" in name else init.orthogonal_
    whole, module = make(), distribute_module(make(), mesh, shard_rows)
    for target in (whole, module):
        torch.manual_seed(0)
        function(target, name=name)
    expected = sharded(getattr(whole, name).detach(), mesh, [Shard(0)]).to_local()
    return "equal" if getattr(module, name).to_local().equal(expected) else "differs"


def rows_outcome(init, mesh) -> str:
    """A slice of a DTensor is gathered from other ranks: writing into it must not pass silently."""
    parameter = nn.Parameter(sharded(torch.full((8, 6), 5.0), mesh, [Shard(0)]))
    init.zeros_(parameter[:2])
    expected = torch.full((8, 6), 5.0)
    expected[:2] = 0.0
    return (
        "equal"
        if parameter.to_local().equal(sharded(expected, mesh, [Shard(0)]).to_local())
        else "differs"
    )


def attempt(run, *arguments) -> str:
    try:
        return run(*arguments)
    except Exception as error:
        return type(error).__name__


def main(name: str, rank: int) -> dict[str, str]:
    warnings.simplefilter("ignore")
    init = importlib.import_module(name)
    dist.init_process_group("fake", rank=rank, world_size=WORLD, store=FakeStore())
    found = {}
    for mesh, placements in layouts():
        for function, (shape, arguments) in CALLS.items():
            if hasattr(init, function):
                key = f"{function} {', '.join(map(str, placements))}"
                call = (getattr(init, function), shape, arguments, mesh, placements)
                found[key] = attempt(outcome, *call)
    line = init_device_mesh("cpu", (WORLD,))
    found["rows"] = attempt(rows_outcome, init, line)
    if name == "fanin.init":
        for key, make in MODULES.items():
            found[key] = attempt(module_outcome, init, make, key.split()[1], line)
    dist.destroy_process_group()
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
