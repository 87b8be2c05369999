"""Coconut's curriculum: at stage k the first k steps are replaced by k * c latents, and the rest of the text is learnt.

    stage k = 0 .. K     Q <bot> latent x k*c <eot> | step k+1 .. last, cue, A, eos           K = M / c
    stage K + 1          Q <bot> latent x M   <eot> | cue, A, eos                             as at answer time

Latents are made one after the other; targets are what stands behind the bar. Each stage takes `latent.stage_share` of the
updates, the last one the rest. A row of fewer than k steps has k * c latents all the same.
Official code (facebookresearch/coconut, args/gsm_coconut.yaml): c_thought, max_latent_stage, epochs_per_stage over
num_epochs, reset_optimizer, pad_latent_to_max for the last stage                                     [known: Coconut]
"""

from dataclasses import replace

import torch
from torch import Tensor

from kava.backbone.joined import TEXT_MASK
from kava.config import LatentConfig
from kava.objective.plan import TAIL_PLACES, TEXT_PLACES
from kava.objective.records import Batch, Step, Views
from kava.objective.student import LatentSlots

LATENTS = "latents"  # of a batch at a stage: how many
ROUNDING = 1e-9  # of a share of the updates, so that a stage begins where its share of them is reached


def stage_at(latent: LatentConfig, progress: float) -> int:
    """The stage at this share of the run."""
    return min(int(progress / latent.stage_share + ROUNDING), latent.last_stage)


def at_stage(batch: Batch, stage: int, latent: LatentConfig) -> Batch:
    """The batch as it is read at a stage: the text that is left of the chain of thought begins the tail."""
    steps_left = batch["cot_step"] > (stage if stage < latent.last_stage else batch["cot_step"].shape[1])
    left = batch["cot_mask"] & steps_left
    first = batch["tail_mask"].int().argmax(1)
    parts = {
        "tail": (batch["cot"], batch["tail"]),
        "tail_mask": (left, batch["tail_mask"]),
        "tail_answer": (torch.zeros_like(left), batch["tail_answer"]),
    }
    own = {
        name: without_gaps(torch.cat(part, dim=1), torch.cat(parts["tail_mask"], dim=1)) for name, part in parts.items()
    }
    nothing = {name: value[:, :0] for name, value in batch.items() if name.startswith("cot")}
    count = torch.tensor(min(stage * latent.stage_latents, latent.num_tokens))  # stays on the CPU
    kept = {name: value for name, value in batch.items() if name not in (TEXT_MASK, TEXT_PLACES, TAIL_PLACES)}
    cue = {"cue_last": left.sum(1) + batch["cue_last"] - first}
    return kept | nothing | own | cue | {LATENTS: count}


def without_gaps(values: Tensor, mask: Tensor) -> Tensor:
    """[B, T] the values with those of the mask first, in their order."""
    return values.gather(1, (~mask).int().argsort(dim=1, stable=True))


class StagedSlots(LatentSlots):
    """Latent slots as many as the stage has."""

    def at(self, batch: Batch, step: Step) -> Batch:
        latent = self.model.latent
        return at_stage(batch, stage_at(latent, step.progress), latent)

    def __call__(self, batch: Batch) -> Views:
        whole = self.model.latent
        self.model.latent = whole.model_copy(update={"num_tokens": int(batch[LATENTS])})
        try:
            student, teacher = super().__call__(batch)
        finally:
            self.model.latent = whole
        assert student is not None
        hidden = student.targets.hidden
        unused = self.model.project(
            hidden[:0]
        ).sum()  # 0: at stage 0 nothing is projected, and DDP waits for a gradient
        return replace(student, targets=replace(student.targets, hidden=hidden + unused.to(hidden.dtype))), teacher
