"""Rows of a batch: as if collated alone, and in pieces of like lengths, so that little of a piece is padding."""

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    Batch = dict[str, Tensor]

SEGMENTS = {"question": (), "cot": ("cot_result",), "tail": ("tail_answer",)}  # with the masks that go along


def row_lengths(batch: "Batch") -> list[int]:
    """Real tokens of each row: question, chain of thought and tail."""
    total = sum(batch[f"{part}_mask"].sum(1) for part in SEGMENTS)
    return total.tolist()  # type: ignore[union-attr]


def cut(batch: "Batch", budget: int | None) -> "list[Batch]":
    """The batch in pieces of rows of like lengths, longest first, each of at most `budget` tokens: rows x longest row.

    A longer row is a piece of its own. A batch that fits or is one row, and any without a budget, is returned as it is.
    """
    lengths = row_lengths(batch) if budget is not None else []
    if budget is None or len(lengths) == 1 or len(lengths) * max(lengths) <= budget:
        return [batch]
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    sizes = _even([lengths[row] for row in order], budget)
    starts = [0, *accumulate(sizes)]
    return [take(batch, order[start : start + size]) for start, size in zip(starts, sizes, strict=False)]


def _even(falling: Sequence[int], budget: int) -> list[int]:
    """Rows of each piece: as few pieces as the budget allows, and those as even as can be."""
    sizes, low, high = _greedy(falling, budget), 1, budget
    while low < high:
        middle = (low + high) // 2
        if len(fewer := _greedy(falling, middle)) == len(sizes):
            sizes, high = fewer, middle
        else:
            low = middle + 1
    return sizes


def _greedy(falling: Sequence[int], budget: int) -> list[int]:
    """Rows of each piece that takes as many as it may; lengths are falling, so its first row is its longest."""
    sizes, start = [], 0
    while start < len(falling):
        size = min(max(1, budget // falling[start]), len(falling) - start)
        sizes.append(size)
        start += size
    return sizes


def take(batch: "Batch", rows: Sequence[int]) -> "Batch":
    """These rows as they would have been collated without the others: no column is padding in all of them."""
    chosen = {name: value[list(rows)] for name, value in batch.items()}
    spans = {}
    for prefix in [
        name.removesuffix("question") for name in batch if name.endswith("question")
    ]:  # "", or a teacher's "t0."
        for part, others in SEGMENTS.items():
            span = spans[prefix + part] = _real_columns(chosen[f"{prefix}{part}_mask"])
            for name in (part, f"{part}_mask", *others):
                chosen[prefix + name] = chosen[prefix + name][:, span]
        chosen[f"{prefix}cue_last"] = chosen[f"{prefix}cue_last"] - spans[f"{prefix}tail"].start
    if "cot_step" in batch:
        chosen["cot_step"] = chosen["cot_step"][:, spans["cot"]]
    for name in [name for name in batch if name.endswith(".iou")]:
        own = spans[name.removesuffix("iou") + "cot"]
        chosen[name] = chosen[name][:, spans["cot"], own]
    return chosen


def _real_columns(mask: "Tensor") -> slice:
    """From the first to the last column with a real token."""
    columns = mask.any(0).nonzero().flatten().tolist()
    return slice(columns[0], columns[-1] + 1) if columns else slice(0, 0)
