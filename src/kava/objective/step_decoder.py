"""SIM-CoT's auxiliary decoder: in training only, a second model must write step t of the chain of thought from latent t.

    L = ... + alpha3 CE(decoder([e_t, step t]) -> [step t, eos]),   t = 1 .. min(steps, M)

e_t is latent t as the student's last pass reads it; through it the gradient reaches all that made the latent. Steps beyond
M have no latent and no target. The decoder begins as the student's base model, or its first layers; it reads nothing but
e_t and the step's own tokens, and it is no part of a saved student. Sources name the idea (arXiv 2509.20317); which
vector is e_t, how steps meet latents and the eos are ours [open].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kava.backbone.branches import text
from kava.backbone.masks import positions
from kava.backbone.model import Backbone
from kava.losses import cross_entropy
from kava.objective.aux_terms import AuxTerm
from kava.objective.records import Batch, StudentView
from kava.objective.targets import Target

NAME = "step_decoder"  # of the term, and where its weights are among those of the objective
STEP = "cot_step"  # [B, N] the number of the step that a token of the chain of thought belongs to, 0 for padding


@dataclass(frozen=True)
class StepTexts:
    """Every step with a latent: its row and latent [P], its tokens and eos [P, W], and which of these are real."""

    row: Tensor
    latent: Tensor
    ids: Tensor
    real: Tensor


class StepDecoderTerm(AuxTerm):
    """The summed cross-entropy of the steps' tokens, each step's text from its latent alone."""

    def __init__(self, weight: float, decoder: Backbone, num_latents: int):
        super().__init__()
        self.constant, self.decoder, self.num_latents = weight, decoder, num_latents

    def count(self, batch: Batch, mask: Tensor) -> float:
        step = batch[STEP]
        tokens = ((step > 0) & (step <= self.num_latents)).sum()
        return float(tokens + written(step, self.num_latents).sum())  # and an eos for each step

    def forward(self, batch: Batch, student: StudentView, target: Target) -> Tensor:
        latents, decoder = student.latents, self.decoder
        assert latents is not None
        texts = step_texts(batch, self.num_latents)
        embeds = decoder.embed(texts.ids[:, :-1])
        first = latents[texts.row, texts.latent][:, None].to(embeds.dtype)
        length = texts.ids.shape[1]
        out = decoder.run(torch.cat([first, embeds], dim=1), positions(texts.real), (text(length),))
        return cross_entropy(out.hidden[texts.real], texts.ids[texts.real], decoder.output_head())


def written(step: Tensor, num_latents: int) -> Tensor:
    """[B] how many steps of each row have a latent."""
    most = step.amax(1) if step.shape[1] else step.new_zeros(len(step))
    return most.clamp(max=num_latents)


def step_texts(batch: Batch, num_latents: int) -> StepTexts:
    """The steps of all rows, one after the other, padded at the end. Where no row has a step there is one text, none of it
    real, so that the decoder runs and gets a gradient of 0 in every process."""
    step, cot = batch[STEP], batch["cot"]
    number = torch.arange(num_latents, device=step.device)
    row, latent = (number < written(step, num_latents)[:, None]).nonzero(as_tuple=True)
    nothing = len(row) == 0
    if nothing:
        row = latent = step.new_zeros(1)
    inside = step[row] == latent[:, None] + 1  # [P, N]
    lengths = inside.sum(1)
    width = int(lengths.max()) + 1
    ids = _last_token(batch)[row][:, None].repeat(1, width)
    which, column = inside.nonzero(as_tuple=True)
    place = (inside.cumsum(1) - 1)[which, column]
    ids[which, place] = cot[row[which], column]
    real = torch.arange(width, device=step.device) <= lengths[:, None]
    return StepTexts(row, latent, ids, real & (not nothing))


def _last_token(batch: Batch) -> Tensor:
    """[B] eos, with which each row's tail ends."""
    mask = batch["tail_mask"]
    last = mask.int().argmax(1) + mask.sum(1) - 1
    return batch["tail"].gather(1, last[:, None])[:, 0]
