"""Runs a captured graph on real numbers: what it computes must be what the model computes."""

from __future__ import annotations

import torch

from fanin._graph import Graph, Ref
from fanin._names import ROOTS, canonical


def replayed(
    graph: Graph, model: torch.nn.Module, inputs: list[torch.Tensor]
) -> list[torch.Tensor]:
    """The graph's outputs, from the model's parameters and buffers and the given inputs."""
    tensors: dict[int, torch.Tensor] = dict(zip(graph.inputs, inputs, strict=True))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    wrapped = type(model).__name__ in ROOTS
    parameters = {canonical(n, wrapped_root=wrapped): p for n, p in parameters.items()}
    for name, index in graph.parameters.items():
        tensors[index] = parameters[name].detach()
    with torch.no_grad():
        for node in graph.nodes:
            results = list(_flat(_run(node, graph, tensors)))
            assert len(results) == len(node.outputs), node
            for index, result in zip(node.outputs, results, strict=True):
                value = graph.values[index]
                tensors[index] = result
                if not value.floating:  # some kernels leave out indices that nobody asked for
                    continue
                assert tuple(result.shape) == value.shape, (node, result.shape, value.shape)
                assert str(result.dtype) == f"torch.{value.dtype}", (
                    node,
                    result.dtype,
                    value.dtype,
                )
        return [_tensor(graph, tensors, i) for i in graph.outputs]


def _flat(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)


def _tensor(graph, tensors, index):
    if index not in tensors:
        value = graph.values[index]
        assert value.data is not None, f"value {index} ({value.kind} {value.name}) has no numbers"
        dtype = getattr(torch, value.dtype)
        tensors[index] = torch.as_tensor(value.data.copy()).to(dtype)
    return tensors[index]


def _run(node, graph, tensors):
    def real(name, given):
        if isinstance(given, Ref):
            return _tensor(graph, tensors, given.index)
        if isinstance(given, list):
            return [real(name, item) for item in given]
        if isinstance(given, str) and "dtype" in name:
            return getattr(torch, given)
        if name == "memory_format" and node.op == "contiguous":
            return torch.contiguous_format
        if name == "device" and node.op == "to":
            return torch.device("cpu")
        return None if name in ("device", "layout", "memory_format", "generator") else given

    args = {name: real(name, given) for name, given in node.args.items()}
    if node.op == "view_write":
        return _view_write(args)
    if node.op == "view":  # of a graph without memory every reshape is legal
        return args["x"].reshape(args["size"])
    return _overload(node, args)


def _view_write(args):
    assert args["starts"] is not None, "a write through a view that is no box"
    whole = args["x"].clone()
    runs = zip(args["starts"], args["stops"], args["steps"], strict=True)
    whole[tuple(slice(*run) for run in runs)] = args["value"]
    return whole


def _overload(node, args):
    space, _, name = node.op.rpartition(".")
    packet = getattr(getattr(torch.ops, space or "aten"), name)
    errors = []
    for overload in packet.overloads():
        schema = getattr(packet, overload)._schema
        names = ["x" if a.name in ("self", "input") else a.name for a in schema.arguments]
        if set(names) != set(args) or any(a.is_out for a in schema.arguments):
            continue
        given = [args[n] for n, a in zip(names, schema.arguments, strict=True) if not a.kwarg_only]
        named = {a.name: args[a.name] for a in schema.arguments if a.kwarg_only}
        try:
            return getattr(packet, overload)(*given, **named)
        except (RuntimeError, TypeError) as error:
            errors.append(error)
    raise AssertionError(f"{node.op} with {sorted(args)}: {errors}")
