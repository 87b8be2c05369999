"""CODI and PCCoT as the suite `methods` sets them: the losses of their official codes, on fixed tensors, in both forms.

The passes here are the library's own, one sample at a time; the formulas are those of zhenyi4/codi src/model.py
(distill_loss_div_std) and of whyNLP/PCCoT models/modeling_llama.py (use_layerwise_std), whose deviations are of a batch.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

import zoo
from compare import (
    UNEVEN,
    Measured,
    assert_same,
    load_by_hand,
    measure,
    measured,
    plain_attention,
    samples,
)
from kava.backbone.model import LatentModel
from kava.compress import make_compressor
from kava.config import LossConfig, load_recipe
from kava.lab.plan import SUITES
from kava.objective.make import latent_objective

both_forms = pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])


def loss_of(name: str) -> tuple[LossConfig, str]:
    """The loss of a member, with the deviations of the official codes, and how its latents are made."""
    base = load_recipe("llama1b_aug")
    (member,) = [member for member in SUITES["methods"].members(base) if member.name == name]
    recipe = load_recipe("llama1b_aug", [*member.settings, "loss.std_scope=batch"])
    return recipe.loss, recipe.latent.method


def one_by_one(lm, prj, sample, tail: list[int], settings):
    """[Q, bot], then every latent by a pass of its own, then [eot, tail]: cross-entropy and hidden states at the cue."""
    hand, (bot, _, eot) = load_by_hand(), settings.special
    out, kv = hand.run(lm, hand.embed(lm, [*sample.question, bot]))
    for _ in range(settings.num_latents):
        out, kv = hand.run(lm, prj(out.last_hidden_state[:, -1:]), kv)
    out, _ = hand.run(lm, hand.embed(lm, [eot, *tail]), kv)
    cue = [hidden[0, len(sample.cue)] for hidden in out.hidden_states]
    return hand.ce(lm, out.last_hidden_state[:, :-1], tail), cue


def official(model: LatentModel, batch: dict[str, Tensor], weight: float) -> tuple[Measured, Tensor]:
    """Terms and gradients, and the distance of each layer, the embeddings first, divided by the batch's deviation."""
    hand, latent = load_by_hand(), model.latent
    special = (model.special.bot, model.special.latent, model.special.eot)
    settings = hand.Settings(special, latent.num_tokens, latent.num_iterations)
    answers, teachers, students, student_ce, teacher_ce = 0, [], [], 0.0, 0.0
    with plain_attention(model) as lm:
        for sample in samples(batch):
            tail = [*sample.cue, *sample.answer, sample.eos]
            place = len(sample.question + sample.cot + sample.cue) - 1
            text, _ = hand.run(lm, hand.embed(lm, sample.question + sample.cot + tail))
            if latent.method == "sequential":
                ce, cue = one_by_one(lm, model.project, sample, tail, settings)
            else:
                student = hand.run_student(lm, model.project, sample, tail, settings)
                ce, cue = student["ce"], [hand.embed(lm, sample.cue)[0, -1], *student["cue"]]
            student_ce, answers = student_ce + ce, answers + len(tail)
            teacher_ce = teacher_ce + hand.run_teacher(lm, sample, tail)["ce"]
            teachers.append(torch.stack([hidden[0, place] for hidden in text.hidden_states]).detach())
            students.append(torch.stack(cue))
        layers = []
        for student, teacher in zip(torch.stack(students, 1), torch.stack(teachers, 1), strict=True):  # [B, E] each
            layers.append(smooth_l1_loss(student, teacher) / teacher.std())
        distances = torch.stack(layers)
        everything = answers + int(batch["cot_mask"].sum())
        terms = {
            "ce_student": student_ce / answers,
            "ce_teacher": teacher_ce / everything,
            "codi": distances[1:].mean(),
        }
        loss = terms["ce_student"] + terms["ce_teacher"] + weight * terms["codi"]
        return measured(terms, loss, model, by_term=False), distances.detach()


@both_forms
@pytest.mark.parametrize("name", ["codi", "pccot"])
def test_a_methods_loss_is_that_of_its_official_code(name: str, packed: bool) -> None:
    """CODI's code takes the mean over L + 1 states; the embeddings of one cue token are alike, so it is ours x L / (L + 1)."""
    loss, method = loss_of(name)
    model, batch = zoo.latent_model("llama-gqa", method=method), zoo.batch(UNEVEN)
    wanted, distances = official(model, batch, loss.alpha1_codi)
    kind = latent_objective(model, loss, make_compressor("rkv"), packed)
    assert_same(measure(kind, batch), wanted, 1e-9)
    assert loss.layerwise_std
    assert float(distances[0]) == 0
    layers = len(distances) - 1
    assert float(distances.mean()) == pytest.approx(float(wanted[0]["codi"]) * layers / (layers + 1), abs=1e-12)
