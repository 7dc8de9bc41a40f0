"""Programs in LLVM's language -> machine code, in this process and for this processor.

Importing this file imports llvmlite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from .vector import I64


@dataclass(frozen=True)
class Machine:
    """What to compile for.

    Args:
        cpu: LLVM's name of the processor, such as "haswell".
        features: what it has and lacks, such as "+avx2,-avx512f".
        triple: architecture, vendor and system; empty for this one's.
    """

    cpu: str
    features: str
    triple: str = ""


def this_machine() -> Machine:
    """The processor that runs this, with what its operating system lets it use."""
    return Machine(llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())


@dataclass(frozen=True, eq=False)
class Code:
    """Machine code.

    Args:
        address: of the program's function.
        engine: owns the memory.
    """

    address: int
    engine: Any


def load(module: ir.Module, entry: str, machine: Machine | None = None) -> Code:
    """Compile a program and make it ready to run.

    Args:
        module: the program.
        entry: its function.
        machine: None for this one.

    Raises:
        OSError: this system lets no process write code for itself.
    """
    llvm.check_jit_execution()
    engine = llvm.create_mcjit_compiler(*_compiled(module, machine))
    engine.finalize_object()
    return Code(engine.get_function_address(entry), engine)


def assembly(module: ir.Module, machine: Machine | None = None) -> str:
    """The instructions of a program, to be read."""
    parsed, target = _compiled(module, machine)
    return target.emit_assembly(parsed)


def function(module: ir.Module, entry: str, arguments: list[Any]) -> tuple[Any, list[Any]]:
    """A new function of a program, without a result: (where its instructions go, its arguments)."""
    kind = ir.FunctionType(ir.VoidType(), arguments)
    made = ir.Function(module, kind, entry)
    made.attributes.add("nounwind")
    return ir.IRBuilder(made.append_basic_block()), list(made.args)


class Loop:
    """``for index in range(start, stop)``, with numbers that each turn hands to the next."""

    def __init__(self, b: Any, start: Any, stop: Any, *carried: Any) -> None:
        self.b, before = b, b.block
        self.head = b.append_basic_block()
        body, self.after = b.append_basic_block(), b.append_basic_block()
        b.branch(self.head)
        b.position_at_end(self.head)
        self.index = b.phi(I64)
        self.carried = [b.phi(x.type) for x in carried]
        for phi, first in zip((self.index, *self.carried), (start, *carried), strict=True):
            phi.add_incoming(first, before)
        b.cbranch(b.icmp_signed("<", self.index, stop), body, self.after)
        b.position_at_end(body)

    def close(self, *carried: Any) -> None:
        """The end of a turn; what follows runs after the last."""
        index = self.b.add(self.index, I64(1))
        for phi, value in zip((self.index, *self.carried), (index, *carried), strict=True):
            phi.add_incoming(value, self.b.block)
        self.b.branch(self.head)
        self.b.position_at_end(self.after)


def _compiled(module: ir.Module, machine: Machine | None) -> tuple[Any, Any]:
    machine = machine or this_machine()
    if machine.triple:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
    else:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(machine.triple or llvm.get_process_triple())
    options = {"cpu": machine.cpu, "features": machine.features, "opt": 2, "jit": True}
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    return parsed, target.create_target_machine(**options)
