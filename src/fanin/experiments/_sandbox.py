"""torch as an experiment needs it, and afterwards as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .._preserve import flushes_denormals


@contextmanager
def sandbox(seed: int, *, flush_denormal: bool) -> Iterator[None]:
    """One thread, a seeded default generator, gradients on, float32; all restored at the end.

    One thread, because flush-denormal is a flag of the calling thread alone, because matrices of
    width 100 gain nothing from a second one, and because sums then come out the same each time.

    Args:
        seed: of torch's default generator, which torch's own constructors draw from.
        flush_denormal: numbers below 1.2e-38 count as zero. A network whose gradients vanish
            otherwise computes in denormals, several times slower on most CPUs.
    """
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    flushed = flushes_denormals()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            torch.set_num_threads(1)
            torch.set_default_dtype(torch.float32)
            torch.set_flush_denormal(flush_denormal)
            torch.default_generator.manual_seed(seed)
            yield
        finally:
            torch.set_flush_denormal(flushed)
            torch.set_default_dtype(dtype)
            torch.set_num_threads(threads)
