"""Which elements a rank holds: every layout, one process playing each rank in turn."""

from __future__ import annotations

import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

import fanin
from fanin import FlatRange, IndexVectors
from fanin._errors import InvalidValueError, ModelError
from fanin._fill import fill_
from fanin._shards import index_of
from fanin.distributions import Dirac, Identity, Normal, Orthogonal, Sparse, TruncatedNormal

S, R = Shard, Replicate
LAYOUTS = [
    ((7, 6), (4,), [S(0)]),
    ((7, 6), (4,), [S(1)]),
    ((3, 6), (4,), [S(0)]),  # the last rank holds nothing
    ((5,), (4,), [S(0)]),
    ((), (2,), [R()]),
    ((3, 5, 4), (4,), [S(2)]),
    ((4, 6, 3, 3), (4,), [S(1)]),
    ((8, 6), (2,), [R()]),
    ((8, 6), (2, 2), [S(0), S(1)]),
    ((7, 5), (2, 2), [S(1), S(0)]),
    ((9, 5), (2, 2), [S(0), S(0)]),
    ((8, 6), (2, 2), [R(), S(-1)]),
    ((6, 4, 3), (2, 3), [S(0), S(2)]),
    ((8, 6), (2, 2), [_StridedShard(0, split_factor=2), S(0)]),
    ((6, 4), (2,), [_StridedShard(0, split_factor=3)]),
]


@contextmanager
def rank_of(rank, mesh_shape):
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=math.prod(mesh_shape))
    try:
        yield init_device_mesh("cpu", mesh_shape)
    finally:
        dist.destroy_process_group()


def place(tensor, mesh, placements):
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)


def test_plain_tensors():
    for shape, rows, columns in (
        ((), 1, 1),
        ((5,), 1, 5),
        ((4, 6), 4, 6),
        ((4, 2, 3), 4, 6),
        ((0, 3), 0, 3),
    ):
        shard = index_of(torch.zeros(shape))
        assert (shard.rows, shard.columns, shard.shape) == (range(rows), range(columns), shape)


def test_a_view_has_coordinates_of_its_own():
    shard = index_of(torch.zeros(8, 6).narrow(1, 2, 3))
    assert (shard.rows, shard.columns) == (range(8), range(3))


@pytest.mark.parametrize(("shape", "mesh_shape", "placements"), LAYOUTS, ids=str)
def test_indices_find_the_elements(shape, mesh_shape, placements):
    flat = torch.arange(math.prod(shape)).reshape(shape)
    held = np.zeros(math.prod(shape), int)
    for rank in range(math.prod(mesh_shape)):
        with rank_of(rank, mesh_shape) as mesh:
            tensor = place(flat, mesh, placements)
            shard = index_of(tensor)
        width = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
        found = np.asarray(shard.rows)[:, None] * width + np.asarray(shard.columns)
        assert np.array_equal(found.reshape(-1), shard.local.reshape(-1).numpy())
        held[found.reshape(-1)] += 1
    replicas = math.prod(
        n for n, p in zip(mesh_shape, placements, strict=True) if isinstance(p, Replicate)
    )
    assert (held == replicas).all()


def fits(law, shape):
    try:
        law.std_for(shape)
    except ValueError:
        return False
    return True


LAWS = [Normal(0.02), TruncatedNormal(0.02), Orthogonal(), Sparse(0.4), Identity(), Dirac()]
FILLED = [(*layout, law) for layout in LAYOUTS for law in LAWS if fits(law, layout[0])]


@pytest.mark.parametrize(("shape", "mesh_shape", "placements", "law"), FILLED, ids=str)
def test_shards_are_pieces_of_the_whole(shape, mesh_shape, placements, law):
    whole = fill_(torch.empty(shape), law, key="w", seed=5)
    for rank in range(math.prod(mesh_shape)):
        with rank_of(rank, mesh_shape) as mesh:
            tensor = place(torch.full(shape, math.nan), mesh, placements)
            before = tensor._version
            with CommDebugMode() as communication:
                fill_(tensor, law, key="w", seed=5)
            assert communication.get_total_counts() == 0
            assert tensor._version == before + 1
            assert torch.equal(tensor.to_local(), place(whole, mesh, placements).to_local())


PACKED = nn.MultiheadAttention(6, 2), nn.LSTM(5, 6), nn.Embedding(9, 6, padding_idx=4)


@pytest.mark.parametrize("whole", PACKED, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize(
    ("mesh_shape", "placements"),
    [((4,), [S(0)]), ((3,), [S(-1)]), ((2, 2), [_StridedShard(0, split_factor=2), S(0)])],
    ids=str,
)
def test_slices_of_shards_are_pieces_of_the_whole(whole, mesh_shape, placements):
    plan = fanin.initialize_(whole, scheme="kaiming", seed=2)
    assert any(row.packed for row in plan)
    strided = any(isinstance(p, _StridedShard) for p in placements)
    for rank in range(math.prod(mesh_shape)):
        with rank_of(rank, mesh_shape) as mesh:
            wholes = {
                n: p.detach()
                for n, p in whole.named_parameters()
                if p.dim() > -min(s.dim for s in placements) and not (strided and p.shape[0] % 4)
            }
            expected = {n: place(t, mesh, placements) for n, t in wholes.items()}
            found = {
                n: place(torch.full_like(t, math.nan), mesh, placements) for n, t in wholes.items()
            }
            with CommDebugMode() as communication:
                plan.fill_(found, seed=2, only=list(found))
            assert communication.get_total_counts() == 0
            for name, tensor in found.items():
                assert torch.equal(tensor.to_local(), expected[name].to_local()), name


@pytest.mark.parametrize("law", [Normal(0.02), Orthogonal(), Sparse(0.4), Identity()], ids=str)
@pytest.mark.parametrize("shape", [(7, 6), (5, 2, 3), (11,), (4, 3, 2, 2)], ids=str)
def test_flat_ranges_are_pieces_of_the_flattened_whole(shape, law):
    if not fits(law, shape):
        pytest.skip("another shape's law")
    whole = fill_(torch.empty(shape), law, key="w", seed=3).flatten()
    for ranks in (1, 2, 3, 5):
        for start, part in enumerate_chunks(torch.full_like(whole, math.nan), ranks):
            fill_(part, law, key="w", seed=3, held=FlatRange(shape, start))
            assert torch.equal(part, whole[start : start + part.numel()])


def enumerate_chunks(flat, ranks):
    size = -(-flat.numel() // ranks)
    for k in range(ranks):
        yield min(k * size, flat.numel()), flat[k * size : (k + 1) * size]


def test_flat_ranges_of_packed_rows():
    model = nn.MultiheadAttention(6, 2)
    plan = fanin.initialize_(model, scheme="kaiming", seed=4)
    whole = {n: p.detach().flatten() for n, p in model.named_parameters()}
    found = {n: torch.full_like(t[3:-2], math.nan) for n, t in whole.items()}
    plan.fill_(found, seed=4, held={r.name: FlatRange(r.shape, 3) for r in plan})
    assert all(torch.equal(found[n], whole[n][3:-2]) for n in whole)


def test_a_whole_matrix_is_drawn_once_for_all_pieces_of_a_flat_range(monkeypatch):
    from fanin import _drawers

    drawn = []
    haar = _drawers.rng.haar
    monkeypatch.setattr(_drawers.rng, "haar", lambda *a, **k: drawn.append(a) or haar(*a, **k))
    fill_(torch.empty(20), Orthogonal(), key="w", held=FlatRange((6, 5), 3))
    assert len(drawn) == 1


def test_megatron_strides():
    """A gated layer's halves, each split over the ranks: rows 0-1 and 4-5 of 8 on rank 0 of 2."""
    whole = fill_(torch.empty(8, 5), Normal(1.0), key="w")
    for rank in range(2):
        rows = [2 * rank, 2 * rank + 1, 2 * rank + 4, 2 * rank + 5]
        part = fill_(
            torch.empty(4, 5), Normal(1.0), key="w", held=IndexVectors((8, 5), (rows, range(5)))
        )
        assert torch.equal(part, whole[rows])


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: IndexVectors((4, 3), (range(4),)), InvalidValueError, "needs 2 index vectors"),
        (
            lambda: IndexVectors((4, 3), (range(5), range(3))),
            InvalidValueError,
            r"wrong along dims \[0\]",
        ),
        (lambda: FlatRange((4, 3), 13), InvalidValueError, r"start must lie in \[0, 12\]"),
        (lambda: FlatRange((4, 3), 9).shards(torch.empty(4)), ModelError, "at most 3 elements"),
        (lambda: IndexVectors((4,), (range(3),)).shards(torch.empty(4)), ModelError, "lengths"),
    ],
)
def test_what_does_not_fit_is_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_a_plan_refuses_a_layout_by_name_and_writes_nothing():
    with rank_of(0, (2,)) as mesh:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        plan = fanin.plan(model, scheme="kaiming")
        summands = DTensor.from_local(torch.ones(4, 4), mesh, [Partial()])
        model[1].weight = nn.Parameter(summands)
        before = model[0].weight.clone()
        with pytest.raises(ModelError, match=r"1\.weight: placement .*Nothing was written"):
            plan.fill_(model)
        assert torch.equal(model[0].weight, before)


def test_parameters_that_require_grad_stay_leaves():
    with rank_of(1, (2,)) as mesh:
        weight = torch.nn.Parameter(place(torch.zeros(6, 4), mesh, [S(0)]))
        fill_(weight, Normal(1.0), key="w")
        assert weight.is_leaf
        assert weight.requires_grad
        assert torch.equal(weight.to_local(), fill_(torch.empty(6, 4), Normal(1.0), key="w")[3:])


@pytest.mark.parametrize("shape", [(4, 4), ()])
def test_partial_is_refused(shape):
    with rank_of(0, (2,)) as mesh:
        tensor = DTensor.from_local(torch.ones(shape), mesh, [Partial()])
        with pytest.raises(ModelError, match="Partial tensor holds summands"):
            fill_(tensor, Normal(1.0), key="w")
        assert torch.equal(tensor.to_local(), torch.ones(shape))


def test_a_split_that_torch_cannot_make_is_refused(monkeypatch):
    """Some versions of torch assert on uneven strided shards."""

    def refuses(*_, **__):
        raise AssertionError

    with rank_of(0, (2,)) as mesh:
        tensor = place(torch.ones(8, 4), mesh, [S(0)])
        monkeypatch.setattr("torch.distributed.tensor.distribute_tensor", refuses)
        with pytest.raises(ModelError, match="cannot split dim 0 of length 8"):
            index_of(tensor)


def test_a_local_piece_of_the_wrong_shape_is_refused():
    with rank_of(0, (2,)) as mesh:
        tensor = DTensor.from_local(
            torch.ones(3, 4), mesh, [S(0)], run_check=False, shape=torch.Size((8, 4)), stride=(4, 1)
        )
        with pytest.raises(ModelError, match=r"holds a piece of shape \(3, 4\)"):
            fill_(tensor, Normal(1.0), key="w")


def test_meta_shards_are_refused():
    with rank_of(0, (2,)) as mesh:
        tensor = place(torch.empty(8, 4, device="meta"), mesh, [S(0)])
        with pytest.raises(ModelError, match="holds no numbers"):
            fill_(tensor, Normal(1.0), key="w")


def _gloo_rank(rank, world, address, queue):
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    torch.manual_seed(rank)  # must not matter
    mesh = init_device_mesh("cpu", (world,))
    tensors = [place(torch.empty(7, 6), mesh, placement) for placement in ([S(0)], [S(1)], [R()])]
    for tensor in tensors:
        fill_(tensor, Normal(0.02), key="w")
    whole = [t.full_tensor() for t in tensors]
    queue.put((rank, [t.numpy().tobytes() for t in whole]))
    dist.destroy_process_group()


@pytest.mark.slow
def test_real_ranks_agree_with_one_process(tmp_path):
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    workers = mp.spawn(
        _gloo_rank, args=(2, f"file://{tmp_path}/store", queue), nprocs=2, join=False
    )
    found = dict(queue.get() for _ in range(2))
    workers.join()
    expected = fill_(torch.empty(7, 6), Normal(0.02), key="w").numpy().tobytes()
    assert found == {rank: [expected] * 3 for rank in range(2)}
