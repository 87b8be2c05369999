"""Several processes that train one student: decisions made once for all, and how an update's examples are split."""

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import distributed

from kava.compress import make_compressor
from kava.config import Recipe
from kava.errors import CheckpointError, ConfigError, KavaError

T = TypeVar("T")


def check_variables(environ: Mapping[str, str]) -> None:
    """Raises where the variables that torchrun sets for each process are no numbers, or not all there."""
    hint = "start with torchrun, or unset them for one process"
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        text = environ.get(name, "0")
        if not text.isdecimal() and (name, text) != ("LOCAL_RANK", "-1"):
            raise ConfigError(f"the environment variable {name} = {text!r} is no number", hint)
    size, rank = (int(environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not environ.get(name)]
    if size > 1 and missing:
        raise ConfigError(f"WORLD_SIZE = {size}, but not set: {', '.join(missing)}", hint)
    if rank >= max(size, 1) or size == 0:
        raise ConfigError(f"RANK = {rank} is none of WORLD_SIZE = {size} processes, which count from 0", hint)


def is_distributed() -> bool:
    """True in a process group of two or more."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_main_process() -> bool:
    """True on rank 0 and in single-process runs."""
    return distributed.get_rank() == 0 if is_distributed() else os.environ.get("RANK", "0") == "0"


def main_process_decides(decide: Callable[[], T]) -> T:
    """Rank 0's value of `decide()`, on every rank. A KavaError on rank 0 terminates every rank."""
    if not is_distributed():
        return decide()
    box: list[Any] = [None, False]
    if is_main_process():
        try:
            box = [decide(), False]
        except KavaError:
            distributed.broadcast_object_list([None, True])
            raise
    distributed.broadcast_object_list(box)
    if box[1]:
        sys.exit(2)
    return box[0]


def max_over_processes(number: int) -> int:
    """The largest `number` of all processes."""
    if not is_distributed():
        return number
    box = torch.tensor(number, device="cuda" if "nccl" in distributed.get_backend() else "cpu")
    distributed.all_reduce(box, distributed.ReduceOp.MAX)
    return int(box)


def shard_world(processes: int, environ: Mapping[str, str] = os.environ) -> int:
    """Processes that divide a sharded model among them: all, or of several nodes those of one, whose links are fast."""
    on_this_node = int(environ.get("LOCAL_WORLD_SIZE") or processes)
    return on_this_node if 1 < on_this_node < processes and processes % on_this_node == 0 else processes


class BatchLayout(NamedTuple):
    """Examples per process and micro-batch, and micro-batches per update."""

    batch_size: int
    steps: int

    def examples(self, processes: int) -> int:
        """Examples in an update."""
        return self.batch_size * self.steps * processes


def whole_batches_key(recipe: Recipe) -> str | None:
    """The setting for which the loss depends on which examples share a micro-batch; None if it does not."""
    if recipe.rkv.shuffle == "examples":
        return "rkv.shuffle=examples"
    if make_compressor(recipe.rkv.method).crosses_samples:
        return f"rkv.method={recipe.rkv.method}"
    return "loss.std_scope=batch" if recipe.loss.std_scope == "batch" else None


def batch_layout(recipe: Recipe, processes: int, examples: int | None = None) -> BatchLayout:
    """The batches with which `processes` make an update of `examples`, as the run began; None: as the recipe says.

    The order of the examples depends on the seed and the epoch alone, so updates of the same size still use every
    example once an epoch. Micro-batches are never larger than the recipe's.
    """
    training = recipe.training
    usual = BatchLayout(training.batch_size, training.gradient_accumulation_steps)
    if examples is None or usual.examples(processes) == examples:
        return usual
    problem = f"the run was begun with {examples} examples in an update, {processes} process(es) would have "
    problem += str(usual.examples(processes))
    fewest = math.ceil(examples / (training.batch_size * processes))
    steps = next((n for n in range(fewest, examples + 1) if examples % (n * processes) == 0), None)
    if recipe.dataset.streaming:
        why = "a stream cannot be shared out anew"
    elif (key := whole_batches_key(recipe)) is not None:
        why = f"{key} needs the same micro-batches"
    elif steps is None:
        why = f"{examples} cannot be shared out evenly among them"
    else:
        return BatchLayout(examples // (steps * processes), steps)
    raise CheckpointError(f"{problem}, and {why}", "use as many processes as before")


class PaddedBatchSampler:
    """A sampler's batches, padded to a multiple of `processes` with batches of one row that have no weight."""

    drop_last = True  # nothing is left over, so accelerate pads nothing

    def __init__(self, batches: Any, processes: int):
        self.batches, self.sampler, self.processes = batches, batches.sampler, processes

    @property
    def real(self) -> int:
        return len(self.batches)

    def __len__(self) -> int:
        return math.ceil(self.real / self.processes) * self.processes

    def __iter__(self) -> Iterator[Sequence[int]]:
        batch: Sequence[int] = []
        for batch in self.batches:
            yield batch
        for _ in range(len(self) - self.real):
            yield batch[:1]


def share_out(loader: Any, processes: int) -> int:
    """Makes `loader` give every example once an epoch, where accelerate would repeat some to make the shares even.

    Returns how many processes have a real batch at the end of an epoch; the others get one without weight.
    """
    shard: Any = getattr(loader, "batch_sampler", None)
    if not hasattr(shard, "batch_sampler"):  # a stream
        return processes
    shard.batch_sampler = padded = PaddedBatchSampler(shard.batch_sampler, processes)
    shard.sampler = padded.sampler  # accelerate tells it the epoch, also after skipped batches
    shard.batch_size, shard.drop_last, shard.even_batches = None, True, False  # batches may be of any size
    return padded.real % processes or processes
