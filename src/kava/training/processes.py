"""Several processes that train one student: what they agree on, and how an update's examples are shared out among them."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import distributed

from kava.config import Recipe
from kava.errors import CheckpointError, KavaError

T = TypeVar("T")


def together() -> bool:
    """Is this one of several processes that have met?"""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_main_process() -> bool:
    """Is this the process that writes files and speaks? Alone, it is."""
    return distributed.get_rank() == 0 if together() else os.environ.get("RANK", "0") == "0"


def main_process_decides(decide: Callable[[], T]) -> T:
    """What `decide` gives in the first process, in all of them. Where it refuses, all end, and the first one says why."""
    if not together():
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


def largest(number: int) -> int:
    """The largest of the numbers that the processes give."""
    if not together():
        return number
    box = torch.tensor(number, device="cuda" if "nccl" in distributed.get_backend() else "cpu")
    distributed.all_reduce(box, distributed.ReduceOp.MAX)
    return int(box)


class Layout(NamedTuple):
    """Examples per process and micro-batch, and micro-batches per update."""

    batch_size: int
    steps: int

    def at_once(self, processes: int) -> int:
        """Examples in an update."""
        return self.batch_size * self.steps * processes


def lay_out(recipe: Recipe, processes: int, examples: int | None = None) -> Layout:
    """How so many processes make an update of `examples`, the number a run was begun with; None: as the recipe says.

    The order of the examples depends on the seed and the epoch alone, so that with as many of them in an update every
    example is still seen once an epoch. Micro-batches get no larger than the recipe has them.
    """
    training = recipe.training
    usual = Layout(training.batch_size, training.gradient_accumulation_steps)
    if examples is None or usual.at_once(processes) == examples:
        return usual
    asked = f"the run was begun with {examples} examples in an update, {processes} process(es) would have "
    asked += str(usual.at_once(processes))
    if recipe.dataset.streaming:
        raise CheckpointError(f"{asked}, and a stream cannot be shared out anew", "use as many processes as before")
    if recipe.rkv.shuffle == "examples" or recipe.loss.std_scope == "batch":
        key = "rkv.shuffle=examples" if recipe.rkv.shuffle == "examples" else "loss.std_scope=batch"
        raise CheckpointError(f"{asked}, and {key} needs the same micro-batches", "use as many processes as before")
    fewest = math.ceil(examples / (training.batch_size * processes))
    steps = next((n for n in range(fewest, examples + 1) if examples % (n * processes) == 0), None)
    if steps is None:
        raise CheckpointError(
            f"{asked}, and {examples} cannot be shared out evenly among them", "use as many processes as before"
        )
    return Layout(examples // (steps * processes), steps)


class PaddedBatchSampler:
    """The batches of a sampler, filled up to a multiple of `processes` with batches of one row that do not count."""

    drop_last = True  # nothing is left over, so accelerate need not fill up anything

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
    """Every example of `loader` once an epoch, where accelerate would show some of them twice to make the shares even.

    Returns how many processes have a batch that counts at the end of an epoch; the others are given one that does not.
    """
    shard: Any = getattr(loader, "batch_sampler", None)
    if not hasattr(shard, "batch_sampler"):  # a stream
        return processes
    shard.batch_sampler = evened = PaddedBatchSampler(shard.batch_sampler, processes)
    shard.sampler = evened.sampler  # where it is asked for after skipped batches, to be told the epoch
    shard.batch_size, shard.drop_last = None, True  # batches may be of any size
    return evened.real % processes or processes
