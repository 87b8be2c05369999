"""Collates encoded examples into a batch of tensors; each segment is padded separately, masks are True for real tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kava.data.encode import Encoded
from kava.data.example import stable_hash
from kava.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


class Collator:
    """`Collator(pad_token_id)(list of Encoded) -> batch`, a dict of tensors:

    question [B, Q] long, question_mask [B, Q] bool
    cot [B, N] long, cot_mask [B, N], cot_result [B, N] bool      N = 0 if no example has a CoT
    tail [B, A] = cue + answer + eos, tail_mask [B, A], tail_answer [B, A] bool = the answer tokens only
    cue_last [B] long = column of the last cue token in tail      (the position of the CODI term)
    cot_step [B, N] long = number of the token's step, 0 for padding (only with `steps`)
    example_id [B] long = stable 63-bit hash of Encoded.id        (seeds the draws of random compressors)
    """

    def __init__(self, pad_token_id: int, padding_side: str = "right", steps: bool = False):
        if padding_side not in ("left", "right"):
            raise DataError(f"padding_side is {padding_side!r}", 'use "left" or "right"')
        self.pad_token_id = int(pad_token_id)
        self.padding_side, self.steps = padding_side, steps

    def __call__(self, examples: Sequence[Encoded]) -> "dict[str, Tensor]":
        import torch

        tails = [[*e.cue, *e.answer, e.eos] for e in examples]
        answers = [[False] * len(e.cue) + [True] * len(e.answer) + [False] for e in examples]
        batch: dict[str, Tensor] = {}
        for name, rows in (
            ("question", [e.question for e in examples]),
            ("cot", [e.cot for e in examples]),
            ("tail", tails),
        ):
            batch[name], batch[f"{name}_mask"] = self.pad(rows)
        batch["cot_result"], _ = self.pad([e.result for e in examples], fill=False)
        batch["tail_answer"], _ = self.pad(answers, fill=False)
        if self.steps:
            begins, real = self.pad([e.begins for e in examples], fill=False)
            batch["cot_step"] = begins.cumsum(1) * real
        start = batch["tail_mask"].int().argmax(1)  # the first real column of each tail
        batch["cue_last"] = start + torch.tensor([len(e.cue) - 1 for e in examples])
        batch["example_id"] = torch.tensor([stable_hash(e.id) for e in examples], dtype=torch.long)
        return batch

    def pad(self, rows: Sequence[Sequence[int]], fill: int | bool | None = None) -> "tuple[Tensor, Tensor]":
        """[B, longest] values and mask; bool rows give a bool tensor."""
        import torch

        is_bool = fill is not None
        width = max(map(len, rows))
        values = torch.full((len(rows), width), self.pad_token_id if fill is None else fill,
                            dtype=torch.bool if is_bool else torch.long)  # fmt: skip
        mask = torch.zeros((len(rows), width), dtype=torch.bool)
        for b, row in enumerate(rows):
            where = slice(width - len(row), width) if self.padding_side == "left" else slice(0, len(row))
            values[b, where] = torch.tensor(row, dtype=values.dtype)
            mask[b, where] = True
        return values, mask
