"""How often the host waits for a number from the device: each wait empties the device's queue."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SYNCHRONIZES = "synchronizing CUDA operation"
READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "bincount", "is_nonzero")


@dataclass
class HostReads:
    """The number of reads so far. `paused`: none is counted, except on CUDA, where torch tells true ones apart."""

    count: int = 0
    paused: bool = False


@contextmanager
def counted_reads(device: torch.device) -> Iterator[HostReads]:
    """Counts reads inside the block: on CUDA those that torch warns of, elsewhere the operations that would be reads."""
    reads = HostReads()
    if device.type != "cuda":
        with ReadCounter(reads):
            yield reads
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield reads
        finally:
            torch.cuda.set_sync_debug_mode(before)
            reads.count += sum(SYNCHRONIZES in str(warning.message) for warning in heard)


class ReadCounter(TorchDispatchMode):
    """Counts operations whose result, or its shape, depends on numbers that the device has to deliver first."""

    def __init__(self, reads: HostReads):
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not self.reads.paused:
            self.reads.count += name.startswith(READS) or (name.startswith("index") and _by_mask(args))
        return func(*args, **(kwargs or {}))


def _by_mask(args: Any) -> bool:
    """Whether one of the indices is a mask, whose places have to be known."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


def host_reads(run: Callable[[], object], device: torch.device) -> int:
    """The reads of one call."""
    with counted_reads(device) as reads:
        run()
    return reads.count
