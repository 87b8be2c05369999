"""Out of memory: repeats the batch in smaller pieces. Terms are sums with counts, so only the time changes."""

import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kava.config import Recipe
from kava.errors import RunError
from kava.training.processes import whole_batches_key

log = logging.getLogger("kava.train")
Batch = dict[str, Tensor]


class Pieces:
    """Cuts batches into pieces; their size is halved whenever memory runs out, but not where there is a reason `why_not`."""

    def __init__(self, why_not: str | None):
        self.why_not = why_not
        self.size: int | None = None
        self.window: list[Batch] = []  # batches of the present update so far; emptied when it begins

    def of(self, batch: Batch) -> Iterator[Batch]:
        """The batch in pieces of the present size."""
        rows = len(batch["example_id"])
        size = self.size or rows
        for start in range(0, rows, size):
            yield {name: value[start : start + size] for name, value in batch.items()}

    def run(self, batch: Batch, step: Callable[[Batch], Tensor], undo: Callable[[], None]) -> Tensor:
        """The sum of `step` over the pieces. When memory runs out, `undo` resets the update and it starts again."""
        self.window.append(batch)
        batches = [batch]
        while True:
            try:
                return [torch.stack([step(piece) for piece in self.of(part)]).sum() for part in batches][-1]
            except torch.OutOfMemoryError as error:
                self._halve(batch, error)
            undo()
            torch.cuda.empty_cache()
            batches = self.window

    def _halve(self, batch: Batch, error: torch.OutOfMemoryError) -> None:
        rows = self.size or len(batch["example_id"])
        reason = (str(error).strip() or "out of memory").splitlines()[0]
        if self.why_not or rows == 1:
            hint = self.why_not or "one example at a time is too much already"
            raise RunError(
                f"out of memory with {rows} examples at once ({reason})",
                f"{hint}; lower training.batch_size and raise training.gradient_accumulation_steps, or set "
                "training.gradient_checkpointing=true; the last checkpoint is untouched (--resume auto)",
            ) from error
        self.size = rows // 2
        advice = "going on with %d at a time; batch, loss and updates stay the same"
        log.warning(f"out of memory with %d examples at once: {advice}", rows, self.size)


def pieces_of(recipe: Recipe, world_size: int) -> Pieces:
    """The Pieces of a run, with the reason where its batches may not be cut."""
    if recipe.training.on_oom == "error":
        return Pieces("set training.on_oom=reduce_batch to go on in smaller pieces")
    if (key := whole_batches_key(recipe)) is not None:
        return Pieces(f"{key} needs its batches whole")
    return Pieces("processes that run together cannot cut their batches apart" if world_size > 1 else None)
