"""The rows of a batch without gaps: question, chain of thought and tail follow each other, padding is at the end.

A batch of `data/collate.py` pads each part by itself, which is how keys of the chain of thought are compared; a pass
over it reads the parts joined, so that the shorter part of one row makes room for the longer part of another.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kava.backbone.masks import positions

PARTS = ("question", "cot", "tail")
TEXT_MASK = "text_mask"  # in a planned batch: the mask of its joined rows, whose width nobody has to ask the device for


@dataclass(frozen=True)
class Rows:
    """ids and mask [B, T]; `columns`: for each part the column [B, N] of each of its tokens in the batch (0 at padding)."""

    ids: Tensor
    mask: Tensor
    columns: dict[str, Tensor]

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    def after(self, tokens: Tensor) -> Tensor:
        """[B, T] the real columns after the first `tokens` [B] of each row."""
        return self.mask & (torch.arange(self.length, device=self.mask.device) >= tokens[:, None])


def join_rows(batch: dict[str, Tensor], parts: tuple[str, ...] = PARTS) -> Rows:
    """The named parts of each row, one behind the other; each may be padded on either side in the batch."""
    ids, mask = (torch.cat([batch[part + of] for part in parts], dim=1) for of in ("", "_mask"))
    lengths = mask.sum(1)
    if len(parts) == 1:
        width = ids.shape[1]
    elif parts == PARTS and TEXT_MASK in batch:
        width = batch[TEXT_MASK].shape[1]
    else:
        width = int(lengths.max())
    column = positions(mask)
    joined = ids.new_zeros(len(ids), width + 1)  # the last column takes what is padding
    joined.scatter_(1, column.masked_fill(~mask, width), ids)
    column = column.masked_fill(~mask, 0)
    columns = dict(zip(parts, column.split([batch[part].shape[1] for part in parts], dim=1), strict=True))
    return Rows(joined[:, :width], torch.arange(width, device=ids.device) < lengths[:, None], columns)


def at(entries: Tensor, columns: Tensor) -> Tensor:
    """entries [B, H, T, D] at columns [B, N] -> [B, H, N, D]."""
    return entries.gather(2, columns[:, None, :, None].expand(-1, entries.shape[1], -1, entries.shape[3]))
