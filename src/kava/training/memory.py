"""Batches in pieces: little padding, and less memory at once. Terms are sums with counts, so the update stays the same."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kava.config import Recipe
from kava.data.cut import cut, row_lengths
from kava.errors import ConfigError, RunError
from kava.training.processes import whole_batches_key

log = logging.getLogger("kava.train")
Batch = dict[str, Tensor]

# tokens_per_piece: auto. On a CPU smaller pieces cost Python's overhead, larger ones padding (docs/LOG.md, 2026-11-29);
# a GPU has to be filled: about 8,000 tokens keep its matrix products busy, and a batch of 128 rows stays in a few pieces.
AUTO = {"cpu": 1024}
OTHERWISE = 8192


class Pieces:
    """Cuts batches into pieces of at most `budget` tokens (None: whole). The budget is halved whenever memory runs out,
    but not where there is a reason `why_not`."""

    def __init__(self, budget: int | None, why_not: str | None):
        self.budget, self.why_not = budget, why_not
        self.window: list[Batch] = []  # batches of the present update so far
        self._cut: dict[int, list[Batch]] = {}  # pieces of the batches of an update, by id()

    def begin(self, batches: Sequence[Batch]) -> None:
        """A new update, of these batches."""
        self.window = []
        self._cut = {id(batch): cut(batch, self.budget) for batch in batches}

    def of(self, batch: Batch) -> list[Batch]:
        """The batch in pieces of the present size."""
        return self._cut.get(id(batch)) or cut(batch, self.budget)

    def run(self, batch: Batch, step: Callable[[Batch, bool], Tensor], undo: Callable[[], None]) -> Tensor:
        """The sum of `step(piece, is it the batch's last)` over the pieces. When memory runs out, `undo` resets the update
        and it starts again."""
        self.window.append(batch)
        batches = [batch]
        while True:
            piece = batch
            try:
                for each in batches:
                    pieces, losses = self.of(each), []
                    for piece in pieces:
                        losses.append(step(piece, piece is pieces[-1]))
                return torch.stack(losses).sum()
            except torch.OutOfMemoryError as error:
                self._halve(piece, error)
            undo()
            torch.cuda.empty_cache()
            batches = self.window

    def _halve(self, piece: Batch, error: torch.OutOfMemoryError) -> None:
        lengths = row_lengths(piece)
        rows, tokens = len(lengths), len(lengths) * max(lengths)
        reason = (str(error).strip() or "out of memory").splitlines()[0]
        if self.why_not or rows == 1:
            hint = self.why_not or "one example at a time is too much already"
            raise RunError(
                f"out of memory with {rows} examples at once ({reason})",
                f"{hint}; lower training.batch_size and raise training.gradient_accumulation_steps, or set "
                "training.gradient_checkpointing=true; the last checkpoint is untouched (--resume auto)",
            ) from error
        self.budget, self._cut = tokens // 2, {}
        advice = "going on with %d tokens at a time; batch, loss and updates stay the same"
        log.warning(
            f"out of memory with %d examples of up to %d tokens at once: {advice}", rows, max(lengths), tokens // 2
        )


def pieces_of(recipe: Recipe, world_size: int, device: torch.device) -> Pieces:
    """The Pieces of a run, with the reason where its batches may not be cut when memory runs out."""
    budget = token_budget(recipe, device)
    sharded = world_size > 1 and recipe.system.sharding != "none"
    if sharded and budget is not None:  # its collectives need as many passes on every process
        if recipe.training.tokens_per_piece != "auto":
            log.info("system.sharding=%s: batches stay whole", recipe.system.sharding)
        budget = None
    if recipe.training.on_oom == "error":
        return Pieces(budget, "set training.on_oom=reduce_batch to go on in smaller pieces")
    if (key := whole_batches_key(recipe)) is not None:
        return Pieces(budget, f"{key} needs its batches whole")
    return Pieces(budget, "processes that run together cannot cut their batches apart" if world_size > 1 else None)


def token_budget(recipe: Recipe, device: torch.device) -> int | None:
    """The most tokens of a piece; None where batches stay whole: as the recipe says, or because the loss needs them so."""
    asked = recipe.training.tokens_per_piece
    if asked == "none" or whole_batches_key(recipe) is not None:
        return None
    return auto_budget(device) if asked == "auto" else asked


def auto_budget(device: torch.device) -> int:
    """The tokens of a piece where nothing else is said."""
    return AUTO.get(device.type, OTHERWISE)


def check_budget(recipe: Recipe, train: Any) -> None:
    """Raises where a budget that was set is smaller than the longest training example (unknown of a stream)."""
    asked = recipe.training.tokens_per_piece
    if not isinstance(asked, int) or not hasattr(train, "lengths"):
        return
    longest = (
        int((train.lengths("question") + train.lengths("cot") + train.lengths("answer")).max()) + len(train.cue) + 1
    )
    if asked < longest:
        problem = f"training.tokens_per_piece is {asked}, but the longest training example has {longest} tokens"
        hint = f"set {longest} or more, or auto; or skip longer examples with dataset.max_length={asked}"
        raise ConfigError(problem, hint)
