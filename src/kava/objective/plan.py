"""What passes need to know of a batch before they run: made where the batch is still on the CPU.

Without it they would ask the device for the longest row and for the places of the targets, and wait for its queue each time.
"""

import torch
from torch import Tensor

from kava.backbone.joined import TEXT_MASK, join_rows
from kava.objective.records import Batch

TEXT_PLACES, TAIL_PLACES = "text_places", "tail_places"  # [2, n]: row and column of each target in the joined rows


def planned(batch: Batch) -> Batch:
    """The batch with these three; each part of its rows is padded on either side."""
    rows, tail = join_rows(batch), join_rows(batch, ("tail",))
    after = rows.after(batch["question_mask"].sum(1))
    return {**batch, TEXT_MASK: rows.mask, TEXT_PLACES: places(after), TAIL_PLACES: places(tail.mask)}


def places(wanted: Tensor) -> Tensor:
    """[2, n] row and column of each True in wanted [B, T]."""
    return torch.stack(wanted.nonzero(as_tuple=True))
