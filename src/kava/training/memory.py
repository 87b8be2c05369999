"""Batches in pieces: little padding, and less memory at once. Terms are sums with counts, so the update stays the same."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kava.config import Recipe
from kava.data.cut import cut, row_lengths
from kava.errors import ConfigError, RunError
from kava.objective.plan import planned
from kava.training.processes import max_over_processes, whole_batches_key

log = logging.getLogger("kava.train")
Batch = dict[str, Tensor]
IDLE = "idle"  # a batch or piece that its process was given to keep step with the others; it does not count

# tokens_per_piece: auto. On a CPU smaller pieces cost Python's overhead, larger ones padding (docs/LOG.md, 2026-11-29);
# a GPU has to be filled: about 8,000 tokens keep its matrix products busy, and a batch of 128 rows stays in a few pieces.
AUTO = {"cpu": 1024}
OTHERWISE = 8192


class Pieces:
    """Cuts batches into pieces of at most `budget` tokens (None: whole). The budget is halved whenever memory runs out,
    but not where there is a reason `why_not`."""

    def __init__(self, budget: int | None, why_not: str | None, in_step: bool = False):
        """in_step: every process needs as many pieces as the others."""
        self.budget, self.why_not, self.in_step = budget, why_not, in_step
        self.window: list[Batch] = []  # batches of the present update so far
        self._cut: dict[int, list[Batch]] = {}  # pieces of the batches of an update, by id()

    def begin(self, batches: Sequence[Batch]) -> None:
        """A new update, of these batches."""
        self.window = []
        self._cut = {
            id(batch): self._in_step([planned(piece) for piece in cut(batch, self.budget)]) for batch in batches
        }

    def _in_step(self, pieces: list[Batch]) -> list[Batch]:
        """The pieces, and where another process has more of them its last one again, which then does not count."""
        missing = max_over_processes(len(pieces)) - len(pieces) if self.in_step else 0
        idle = pieces[-1] | {IDLE: torch.ones_like(pieces[-1]["example_id"])}
        return pieces + [idle | {} for _ in range(missing)]

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
    together, why_not = world_size > 1, None
    if recipe.training.on_oom == "error":
        why_not = "set training.on_oom=reduce_batch to go on in smaller pieces"
    elif (key := whole_batches_key(recipe)) is not None:
        why_not = f"{key} needs its batches whole"
    elif together:
        why_not = "processes that run together cannot cut their batches apart"
    in_step = together and recipe.system.sharding != "none" and budget is not None  # shards are gathered by all at once
    return Pieces(budget, why_not, in_step)


def token_budget(recipe: Recipe, device: torch.device) -> int | None:
    """The most tokens of a piece; None where batches stay whole: as the recipe says, or because the loss needs them so."""
    setting = recipe.training.tokens_per_piece
    if setting == "none" or whole_batches_key(recipe) is not None:
        return None
    return auto_budget(device) if setting == "auto" else setting


def auto_budget(device: torch.device) -> int:
    """The tokens of a piece where nothing else is said."""
    return AUTO.get(device.type, OTHERWISE)


def check_budget(recipe: Recipe, train: Any) -> None:
    """Raises where a budget that was set is smaller than the longest training example (unknown of a stream)."""
    setting = recipe.training.tokens_per_piece
    if not isinstance(setting, int) or not hasattr(train, "lengths"):
        return
    longest = (
        int((train.lengths("question") + train.lengths("cot") + train.lengths("answer")).max()) + len(train.cue) + 1
    )
    if setting < longest:
        problem = f"training.tokens_per_piece is {setting}, but the longest training example has {longest} tokens"
        hint = f"set {longest} or more, or auto; or skip longer examples with dataset.max_length={setting}"
        raise ConfigError(problem, hint)
