"""One teacher-forced pass over question, chain of thought, cue and answer, by teachers and explicit students."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kava.backbone.joined import Rows, at, join_rows
from kava.backbone.kv import Pass
from kava.backbone.masks import pick
from kava.backbone.model import Backbone


@dataclass(frozen=True)
class TextPass:
    """The pass over joined rows; what it says of one part (question, cot, tail) is [B, N] as the batch pads that part."""

    out: Pass
    rows: Rows

    def keys(self, part: str) -> list[Tensor]:
        """Keys [B, H, N, D] of each layer."""
        return [at(entries, self.rows.columns[part]) for entries in self.out.keys]

    def values(self, part: str) -> list[Tensor]:
        return [at(entries, self.rows.columns[part]) for entries in self.out.values]

    def queries(self, part: str) -> list[Tensor]:
        """Queries [B, H*R, N, D] of each layer."""
        return [at(entries, self.rows.columns[part]) for entries in self.out.queries]

    def hidden(self, part: str) -> Tensor:
        """Hidden states [B, N, E] after the last layer."""
        columns = self.rows.columns[part]
        return self.out.hidden.gather(1, columns[..., None].expand(*columns.shape, self.out.hidden.shape[-1]))

    def cue(self, batch: dict[str, Tensor]) -> Tensor:
        """[B, L, E] hidden states after each layer at the last cue token."""
        return cue_states(self.out, self.rows.columns["tail"].gather(1, batch["cue_last"][:, None])[:, 0])


def teacher_forced_pass(model: Backbone, batch: dict[str, Tensor], all_layers: bool = False) -> TextPass:
    """Teacher forcing over a batch of data/collate.py; each part may be padded on either side."""
    rows = join_rows(batch)
    return TextPass(model.run_text(rows.ids, rows.mask, all_layers), rows)


def cue_states(out: Pass, column: Tensor) -> Tensor:
    """[B, L, E] hidden states after each layer at one column per sample."""
    assert out.layers is not None
    return torch.stack([pick(layer, column) for layer in out.layers], dim=1)
