"""Real ranks on gloo: does every layout hold the bits of one process?

    python tests/ranks.py WORLD [SCENARIO ...]

    python tests/ranks.py --recipe WORLD NUMBER      a script of docs/scale.md, as torchrun would run it

Forks WORLD ranks, has each run the scenarios of that world, and prints rank 0's findings as JSON:
{scenario: "equal" or what is wrong}. Each rank has another torch seed, memory is poisoned with NaN,
and whole tensors are gathered by torch, which knows nothing of fanin.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import fanin
from fanin import _fill
from fanin._facts import PartInfo
from fanin.distributions import (
    DeltaOrthogonal,
    Dirac,
    Identity,
    Normal,
    Orthogonal,
    Sparse,
    TruncatedNormal,
)

SEED = 7
D, FF, V = 24, 42, 101


class Fused(nn.Linear):
    """q, k and v side by side."""


@fanin.register_module(Fused)
def fused(module):
    d = module.in_features
    bounds = {"q": (0, d), "k": (d, d + d // 2), "v": (d + d // 2, 2 * d)}
    parts = tuple(PartInfo(n, 0, a, b, n, fanin.Fan(d, b - a)) for n, (a, b) in bounds.items())
    return {"weight": fanin.Spec("q", fanin.Fan(d, d), parts=parts)}


class Rope(nn.Module):
    def __init__(self, dim, base=10000.0):
        super().__init__()
        self.dim, self.base = dim, base
        table = base ** -(torch.arange(0, dim, 2).float() / dim)
        self.register_buffer("inv_freq", table, persistent=False)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(D)
        self.qkv = Fused(D, 2 * D, bias=False)
        self.out = nn.Linear(D, D, bias=False)
        self.up = nn.Linear(D, FF)
        self.down = nn.Linear(FF, D)
        self.lora_A = nn.Parameter(torch.empty(5, D))
        self.lora_B = nn.Parameter(torch.empty(D, 5))


class Net(nn.Module):
    """Uneven sides, packed rows, ties, buffers, a law of each kind."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, D, padding_idx=50)
        self.rope = Rope(6)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.bn = nn.BatchNorm1d(D)
        self.attend = nn.MultiheadAttention(D, 2)
        self.conv = nn.Conv1d(D, D, 3)
        self.dirac = nn.Conv1d(7, 7, 3)
        self.wide = nn.Linear(2 * D, D, bias=False)
        self.sparse = nn.Linear(D, 9)
        self.eye = nn.Linear(D, D)
        self.head = nn.Linear(D, V, bias=False)
        self.head.weight = self.embed.weight


OVERRIDES = {
    "*lora_A": fanin.initializers.LecunNormal(),
    "*lora_B": fanin.distributions.Constant(0.0),
    "wide.weight": Orthogonal(),
    "conv.weight": DeltaOrthogonal(),
    "dirac.weight": Dirac(),
    "sparse.weight": Sparse(0.5),
    "eye.weight": Identity(),
    "*.up.weight": TruncatedNormal(0.02),
    "*.down.bias": Normal(0.1),
}


@fanin.register_module(Block)
def block(module):
    return {
        "lora_A": fanin.Spec("linear", fanin.Fan(D, 5)),
        "lora_B": fanin.Spec("linear", fanin.Fan(5, D)),
    }


def planned():
    with torch.device("meta"):
        return fanin.plan(Net(), scheme="kaiming", overrides=OVERRIDES)


def on_meta():
    with torch.device("meta"):
        return Net()


def whole():
    model = Net()
    planned().fill_(model, seed=SEED)
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


# layouts: model, world -> the model, sharded ----------------------------------------------------


def fsdp(model, mesh, **options):
    for layer in model.blocks:
        fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def fsdp_rows(model, world):
    return fsdp(model, init_device_mesh("cpu", (world,)))


def fsdp_columns(model, world):
    def choose(p):
        return Shard(1) if p.dim() > 1 and p.shape[1] % world == 0 else Shard(0)

    return fsdp(model, init_device_mesh("cpu", (world,)), shard_placement_fn=choose)


def tensor_parallel(model, mesh):
    styles = {
        "qkv": ColwiseParallel(),
        "out": RowwiseParallel(),
        "up": ColwiseParallel(),
        "down": RowwiseParallel(),
    }
    for layer in model.blocks:
        parallelize_module(layer, mesh, styles)
    parallelize_module(model, mesh, {"wide": ColwiseParallel(), "sparse": RowwiseParallel()})
    return model


def tp(model, world):
    return tensor_parallel(model, init_device_mesh("cpu", (world,)))


def two_dims(model, world):
    mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("fsdp", "tp"))
    return fsdp(tensor_parallel(model, mesh["tp"]), mesh["fsdp"])


def hsdp(model, world):
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("copy", "split"))
    return fsdp(model, mesh)


LAYOUTS = {
    "fsdp": (fsdp_rows, (1, 2, 3, 4)),
    "fsdp columns": (fsdp_columns, (1, 2, 4)),
    "tp": (tp, (2, 3, 4)),
    "fsdp x tp": (two_dims, (4, 6, 8)),
    "hsdp": (hsdp, (4,)),
}


def poisoned(tensor, *args, **kwargs):
    made = EMPTY_LIKE(tensor, *args, **kwargs)
    if not made.is_meta and made.is_floating_point():
        local = made.to_local() if isinstance(made, DTensor) else made
        local.detach().copy_(torch.tensor(math.nan))
    return made


EMPTY_LIKE = torch.empty_like


def sharded(make, world):
    """The layout is filled without a word between ranks, equals the whole, and is verified."""
    plan, expected, drawn = planned(), whole(), []
    model = make(on_meta(), world)
    write = _fill._write

    def counted(tensor, law, shard, sample):
        drawn.append(shard.local.numel())
        write(tensor, law, shard, sample)

    _fill._write = counted
    torch.empty_like = poisoned
    try:
        with CommDebugMode() as communication:
            plan.materialize_(model, seed=SEED)
    finally:
        torch.empty_like, _fill._write = EMPTY_LIKE, write
    assert communication.get_total_counts() == 0, communication.get_comm_counts()
    compare(model, expected)
    parameters = list(model.parameters())
    local = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)
    # a padding row is drawn twice: with the table, then as zeros
    assert sum(drawn) <= local + 2 * D, (sum(drawn), local)
    assert model.head.weight is model.embed.weight
    check_verify(plan, model)


def compare(model, expected):
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        assert torch.equal(found, expected[name]), name


def check_verify(plan, model):
    """Right as it is; then one bit is flipped on the last rank, which all ranks name."""
    calls = []
    reduce = dist.all_reduce

    def counted(tensor, *args, **kwargs):
        calls.append(tensor.numel() * tensor.element_size())
        return reduce(tensor, *args, **kwargs)

    dist.all_reduce = counted
    try:
        plan.verify(model, SEED)
        dims = max(
            (p.device_mesh.ndim for p in model.parameters() if isinstance(p, DTensor)), default=0
        )
        assert len(calls) <= dims + 2, calls
        assert max(calls, default=0) <= 8 * (len(plan) + 1), calls
    finally:
        dist.all_reduce = reduce
    plan.verify(model, None)
    for name in ("blocks.1.norm.weight", "embed.weight", "blocks.0.qkv.weight", "bn.bias"):
        parameter = model.get_parameter(name)
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        holder = torch.tensor(dist.get_rank() if local.numel() else -1)
        dist.all_reduce(holder, dist.ReduceOp.MAX)
        flip = dist.get_rank() == int(holder)
        for seed in (SEED, None):
            if seed is None and dist.get_world_size() == 1:
                continue
            turn(local, flip)
            named = refused(lambda seed=seed: plan.verify(model, seed))
            turn(local, flip)
            replicated = any(
                n > 1
                for p in [parameter]
                for n in ([dist.get_world_size()] if not isinstance(p, DTensor) else copies(p))
            )
            if seed is not None or replicated:
                assert f"\n  {name}: " in named, (name, seed, named)
    plan.verify(model, SEED)
    assert (
        "different plans or seeds" in refused(lambda: plan.verify(model, SEED + dist.get_rank()))
        or dist.get_world_size() == 1
    )


def copies(tensor):
    """How many ranks hold each element: along mesh dims that do not split, and beyond the mesh."""
    held = dist.get_world_size()
    for dim, placement in enumerate(tensor.placements):
        if hasattr(placement, "dim"):
            held //= tensor.device_mesh.size(dim)
    return [held]


def turn(local, flip):
    with torch.no_grad():
        if flip:
            local.view(torch.int32).reshape(-1)[-1:].bitwise_xor_(
                1
            ) if local.is_contiguous() else None


def refused(call):
    try:
        call()
    except fanin.FaninError as error:
        return str(error)
    return "nothing was refused"


# other scenarios --------------------------------------------------------------------------------


def pipeline(world):
    """Each stage holds some of the model under its own names; the tied table lies on both."""
    plan, expected = planned(), whole()
    stage = on_meta()
    gone = ("blocks.1", "bn", "attend", "conv", "dirac", "wide", "head")
    if dist.get_rank():
        gone = ("embed", "blocks.0", "rope", "sparse", "eye")
    for name in gone:
        path, _, leaf = name.rpartition(".")
        owner = stage.get_submodule(path)
        if isinstance(owner, nn.ModuleList):
            owner[int(leaf)] = nn.Identity()
        else:
            delattr(owner, leaf)
    plan.within(stage).materialize_(stage, seed=SEED)
    expected["head.weight"] = expected["embed.weight"]
    compare(stage, expected)
    plan.verify(stage, SEED)
    if dist.get_rank() == 1:
        turn(stage.head.weight, True)
    assert "embed.weight: the ranks hold different values" in refused(
        lambda: plan.verify(stage, SEED)
    )


def ddp(world):
    """A wrapper changes names, not values."""
    model = nn.parallel.DistributedDataParallel(Net())
    torch.manual_seed(dist.get_rank())
    planned().fill_(model, seed=SEED)
    compare(model.module, whole())
    planned().verify(model, SEED)


def missing(world):
    """What is filled does not depend on what else is missing, nor on its order."""
    plan, expected = planned(), whole()
    model = fsdp_rows(on_meta(), world)
    model.to_empty(device="cpu")
    keys = [n for n, _ in model.named_parameters()][::-1]
    for some in (keys[::3], keys[1::3], keys[2::3]):
        plan.fill_(model, seed=SEED, only=some)
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor.full_tensor(), expected[name]), name


def grown(world):
    """A sharded table gets rows; the old ones keep their bits, the new ones are the plan's."""
    plan, expected = planned(), whole()
    model = fsdp_rows(on_meta(), world) if world > 9 else tp(on_meta(), world)
    plan.materialize_(model, seed=SEED)
    name = "blocks.0.up.weight"
    larger = fanin.grow_(model, name, (FF + 7, D + 4), plan=plan, seed=SEED)
    assert larger[name].shape == (FF + 7, D + 4)
    found = model.get_parameter(name)
    assert tuple(map(str, found.placements)) == ("S(0)",), found.placements
    fresh = fanin.fill_(torch.empty(FF + 7, D + 4), plan[name].distribution, key=name, seed=SEED)
    assert torch.equal(found.full_tensor(), fresh)
    assert torch.equal(found.full_tensor()[:FF, :D], expected[name])


def checkpoint(world):
    """A sharded checkpoint holds the plan's seed and hash; what is missing in it is drawn again."""
    import torch.distributed.checkpoint as dcp

    plan, expected = planned(), whole()
    model = plan.materialize_(fsdp_rows(on_meta(), world), seed=SEED)
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder)
    state = {n: p for n, p in model.state_dict().items() if not n.startswith("blocks.1.")}
    written = {"model": state, "init": {"seed": SEED, "plan": plan.to_json(), "hash": plan.hash()}}
    dcp.save(written, checkpoint_id=folder[0])
    again = fsdp_rows(on_meta(), world)
    again.to_empty(device="cpu")
    for buffer, value in zip(again.buffers(), model.buffers(), strict=True):
        buffer.copy_(value)
    held = {n: p for n, p in again.state_dict().items() if n in state}
    read = {"model": held, "init": {"seed": 0, "plan": "", "hash": ""}}
    dcp.load(read, checkpoint_id=folder[0])
    same = fanin.InitPlan.from_json(read["init"]["plan"])
    assert same.hash() == read["init"]["hash"] == plan.hash()
    lost = [n for n, _ in again.named_parameters() if n not in held and n != "head.weight"]
    same.fill_(again, seed=read["init"]["seed"], only=lost)
    compare(again, expected)
    same.verify(again, read["init"]["seed"])


def trained(world):
    """Uneven shards run forward and backward as the whole model does."""

    def make():
        return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5))

    whole = make()
    plan = fanin.initialize_(whole, scheme="xavier", seed=SEED)
    with torch.device("meta"):
        model = make()
    mesh = init_device_mesh("cpu", (world,))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    plan.materialize_(model, seed=SEED)
    x = torch.linspace(-1, 1, 18).reshape(3, 6)
    found, expected = model(x), whole(x)
    assert torch.equal(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for mine, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(mine.grad.full_tensor(), theirs.grad, rtol=1e-5, atol=1e-6)


OTHERS = {
    "trained": (trained, (2, 3, 4)),
    "pipeline": (pipeline, (2,)),
    "ddp": (ddp, (2,)),
    "missing": (missing, (2, 3)),
    "grown": (grown, (2, 3)),
    "checkpoint": (checkpoint, (2,)),
}


def scenarios(world):
    found = {
        name: (lambda make=make: sharded(make, world))
        for name, (make, worlds) in LAYOUTS.items()
        if world in worlds
    }
    found |= {
        name: (lambda run=run: run(world))
        for name, (run, worlds) in OTHERS.items()
        if world in worlds
    }
    return found


def rank_main(rank, world, store, chosen):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    found = {}
    for name, run in scenarios(world).items():
        if chosen and name not in chosen:
            continue
        torch.manual_seed(1000 + rank)
        try:
            run()
            mine = "equal"
        except Exception:
            mine = f"rank {rank}: {traceback.format_exc()}"
        said = [None] * world
        dist.all_gather_object(said, mine)
        found[name] = "equal" if set(said) == {"equal"} else next(s for s in said if s != "equal")
    if rank == 0:
        print(json.dumps(found), flush=True)
    dist.destroy_process_group()


def forked(world, run):
    """The worst exit code of ``run(rank)`` in a process of its own for each rank."""
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            try:
                run(rank)
                os._exit(0)
            except SystemExit as done:
                os._exit(int(done.code or 0))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def main(world, chosen):
    with tempfile.TemporaryDirectory() as folder:
        return forked(world, lambda rank: rank_main(rank, world, f"{folder}/store", chosen))


def recipes():
    """The scripts of docs/scale.md, in order."""
    page = Path(__file__).parents[1] / "docs" / "scale.md"
    return re.findall(
        r"^```py\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def recipe(world, number):
    code = compile(recipes()[number], f"recipe {number}", "exec")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def run(rank):
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
        }
        torch.manual_seed(1000 + rank)
        exec(code, {"__name__": "__main__"})

    return forked(world, run)


if __name__ == "__main__":
    if sys.argv[1] == "--recipe":
        sys.exit(recipe(int(sys.argv[2]), int(sys.argv[3])))
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
