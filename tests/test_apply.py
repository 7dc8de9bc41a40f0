"""A plan written into a model: exactly its values, in exactly its parameters, or nothing at all."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import fanin
from fanin import InitPlan, ModelError, PlanError
from fanin.distributions import Normal, Orthogonal


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(model, before):
    now = model.state_dict()
    return before.keys() == now.keys() and all(torch.equal(v, now[k]) for k, v in before.items())


def net():
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def test_values_depend_on_seed_and_name_alone():
    a, b = net(), nn.Sequential()
    for name in ("3", "1", "0"):  # another order of construction
        b.add_module(name, net()[int(name)])
    fanin.initialize_(a, scheme="kaiming", seed=3)
    torch.randn(7)
    fanin.initialize_(b, scheme="kaiming", seed=3)
    # module order differs, so compare rows whose distribution does not depend on it
    assert torch.equal(a[3].weight, b.get_submodule("3").weight)
    fanin.initialize_(b, scheme="xavier", seed=3)
    fanin.initialize_(a, scheme="xavier", seed=3)
    assert all(torch.equal(p, b.get_parameter(n)) for n, p in a.named_parameters())
    fanin.initialize_(b, scheme="xavier", seed=4)
    assert not torch.equal(a[0].weight, b.get_parameter("0.weight"))


def test_buffers_and_rng_state_are_untouched():
    model = net()
    model(torch.randn(9, 8))
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    rng = torch.get_rng_state()
    fanin.initialize_(model, seed=1)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, dict(model.named_buffers())[k]) for k, v in buffers.items())


def test_a_row_is_what_fill_draws():
    model = net()
    plan = fanin.initialize_(model, scheme="kaiming", seed=7)
    expected = fanin.fill_(
        torch.empty(16, 8), plan["0.weight"].distribution, key="0.weight", seed=7
    )
    assert torch.equal(model[0].weight, expected)


def test_a_slice_has_a_stream_of_its_own():
    model = nn.MultiheadAttention(8, 2)
    plan = fanin.initialize_(model, scheme="xavier", seed=7)
    for p in plan["in_proj_weight"].packed:
        expected = fanin.fill_(
            torch.empty(8, 8), p.distribution, key=f"in_proj_weight:{p.name}", seed=7
        )
        assert torch.equal(model.in_proj_weight[p.start : p.stop], expected)


def test_json_plan_gives_the_same_bits():
    a, b = net(), net()
    plan = fanin.initialize_(a, torch.randn(4, 8), seed=5)
    InitPlan.from_json(plan.to_json()).fill_(b, seed=5)
    assert all(torch.equal(p, b.get_parameter(n)) for n, p in a.named_parameters())


def test_only():
    model = net()
    before = snapshot(model)
    plan = fanin.plan(model)
    plan.fill_(model, only="3.*")
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[3].weight, before["3.weight"])
    plan.fill_(model, only=["0.weight"])
    whole = net()
    plan.fill_(whole)
    assert torch.equal(model[0].weight, whole[0].weight)  # not a function of what else is written
    with pytest.raises(PlanError, match="matches no parameter"):
        plan.fill_(model, only="nothing*")


def test_a_selection_fills_its_part():
    model = net()
    before = snapshot(model)
    fanin.plan(model).select("0.*").fill_(model)
    assert torch.equal(model[3].weight, before["3.weight"])


def test_a_plan_for_another_model_lists_the_differences_and_writes_nothing():
    plan = fanin.plan(net())
    other = nn.Sequential(
        nn.Linear(8, 17),
        nn.BatchNorm1d(17),
        nn.ReLU(),
        nn.Linear(17, 3, bias=False),
        nn.Linear(2, 2),
    )
    before = snapshot(other)
    with pytest.raises(PlanError) as caught:
        plan.fill_(other)
    message = str(caught.value)
    assert "nothing was written" in message
    assert "0.weight has shape [17, 8], the plan says [16, 8]" in message
    assert "the model has no 3.bias" in message
    assert "the plan has no 4.weight (shape [2, 2])" in message
    assert same(other, before)


def test_ties_must_agree():
    untied = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    tied = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    tied["b"].weight = tied["a"].weight
    with pytest.raises(PlanError, match=r"a\.weight is tied with nothing, the plan says b\.weight"):
        fanin.plan(tied).fill_(untied)


@pytest.mark.parametrize("wrong", ["meta", "integer", "expanded"])
def test_what_cannot_be_written_is_found_before_the_first_write(wrong):
    model = net()
    plan = fanin.plan(model)
    last = {
        "meta": lambda: nn.Parameter(torch.empty(3, 16, device="meta")),
        "integer": lambda: nn.Parameter(torch.zeros(3, 16, dtype=torch.int64), requires_grad=False),
        "expanded": lambda: nn.Parameter(torch.zeros(1, 16).expand(3, 16)),
    }[wrong]()
    model[3].weight = last
    before = model[0].weight.clone()
    with pytest.raises(ModelError, match=r"3\.weight.*Nothing was written"):
        plan.fill_(model)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "a"])
def test_a_bad_seed_writes_nothing(seed):
    model = net()
    before = snapshot(model)
    with pytest.raises(ValueError, match="seed"):
        fanin.initialize_(model, seed=seed)
    assert same(model, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_float_value_rounded_once(dtype):
    wide, narrow = net(), net().to(dtype)
    fanin.initialize_(wide, scheme="kaiming")
    fanin.initialize_(narrow, scheme="kaiming")
    assert torch.equal(wide[0].weight.to(dtype), narrow[0].weight)


def test_channels_last_gets_the_same_values():
    a, b = (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()) for _ in range(2))
    b = b.to(memory_format=torch.channels_last)
    fanin.initialize_(a, scheme="kaiming")
    fanin.initialize_(b, scheme="kaiming")
    assert torch.equal(a[0].weight, b[0].weight)
    assert b[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_weight_norm_is_written_through():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 6)), nn.ReLU())
    plan = fanin.initialize_(model, scheme="kaiming")
    expected = fanin.fill_(torch.empty(6, 8), plan["0.weight"].distribution, key="0.weight")
    assert torch.allclose(model[0].weight, expected, rtol=1e-6, atol=0)


def test_orthogonal_parametrization_is_written_through():
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8, bias=False)))
    fanin.initialize_(model, overrides={"0.weight": Orthogonal(1.0)})
    expected = fanin.fill_(torch.empty(8, 8), Orthogonal(1.0), key="0.weight")
    assert torch.allclose(model[0].weight, expected, atol=1e-5)


def test_spectral_norm_is_written_through():
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 6)))
    plan = fanin.initialize_(model, scheme="kaiming")
    expected = fanin.fill_(torch.empty(6, 8), plan["0.weight"].distribution, key="0.weight")
    assert torch.equal(model[0].parametrizations.weight.original, expected)


@pytest.mark.parametrize("dim", [0, 1, None])
def test_hook_based_norms_are_written_through(dim):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 6), dim=dim))
    fanin.initialize_(model, overrides={"0.weight": Normal(0.3)})
    model(torch.randn(2, 8))
    expected = fanin.fill_(torch.empty(6, 8), Normal(0.3), key="0.weight")
    assert torch.allclose(model[0].weight, expected, rtol=1e-5)
    spectral = nn.Sequential(nn.utils.spectral_norm(nn.Linear(8, 6)))
    fanin.initialize_(spectral, overrides={"0.weight": Normal(0.3)})
    assert torch.equal(spectral[0].weight_orig, expected)


def test_a_parametrization_without_inverse_is_a_clear_error():
    class Double(nn.Module):
        def forward(self, x):
            return 2 * x

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    parametrize.register_parametrization(model[1], "weight", Double())
    before = snapshot(model)
    with pytest.raises(ModelError, match=r"1\.weight is computed by the parametrization Double"):
        fanin.initialize_(model)
    assert same(model, before)


def test_sharded_parameters():
    """A DTensor gets its part, of slices too."""
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))

        def sharded(model):
            for module in model.modules():
                for name, p in list(module.named_parameters(recurse=False)):
                    split = distribute_tensor(p.detach(), mesh, [Shard(0)], src_data_rank=None)
                    setattr(module, name, nn.Parameter(split))
            return model

        whole, split = nn.Linear(6, 8), sharded(nn.Linear(6, 8))
        fanin.initialize_(whole, scheme="kaiming", seed=3)
        fanin.initialize_(split, scheme="kaiming", seed=3)
        assert torch.equal(split.weight.to_local(), whole.weight[4:])
        whole, split = nn.MultiheadAttention(8, 2), sharded(nn.MultiheadAttention(8, 2))
        fanin.initialize_(whole, scheme="kaiming", seed=3)
        fanin.initialize_(split, scheme="kaiming", seed=3)
        assert torch.equal(split.in_proj_weight.to_local(), whole.in_proj_weight[12:])
    finally:
        dist.destroy_process_group()
