"""Coconut's stages: what is read and learnt at each, token by token, and its loss by a plain loop."""

from __future__ import annotations

import pytest
import torch
from test_step_decoder_oracle import STEPS, batch_of

import zoo
from compare import gradients, load_by_hand, plain_attention, samples
from kava.compress import make_compressor
from kava.config import LossConfig, load_recipe
from kava.data.cut import take
from kava.errors import ConfigError
from kava.objective.make import latent_objective
from kava.objective.objective import Objective
from kava.objective.records import Step
from kava.objective.stages import at_stage, stage_at

M, C, SHARE = 4, 2, 0.2  # stages 0, 1, 2 of 0, 2 and 4 latents, and the last, without any step
LATENTS = (0, 2, 4, 4)
OFF = ("loss.teacher_ce=0", "loss.alpha1_codi=0", "loss.alpha2_kv=0")


def made(packed: bool = True, use_projection: bool = True) -> Objective:
    model = zoo.latent_model(
        "llama-gqa", use_projection, num_tokens=M, method="sequential", stage_share=SHARE, stage_latents=C
    )
    off = LossConfig(teacher_ce=0.0, alpha1_codi=0.0, alpha2_kv=0.0)
    return latent_objective(model, off, make_compressor("rkv"), packed)


def left_of(sample, numbers: list[int], stage: int) -> list[int]:
    """The tokens of the steps that a stage leaves as text."""
    return [] if stage == 3 else [t for t, number in zip(sample.cot, numbers, strict=True) if number > stage]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("stage", range(4))
def test_what_is_left_of_the_steps_begins_the_tail(stage: int, side: str) -> None:
    batch, model = batch_of(side), made().model
    staged = at_stage(batch, stage, model.latent)
    assert int(staged["latents"]) == LATENTS[stage]
    for row, (sample, numbers) in enumerate(zip(samples(batch), STEPS, strict=True)):
        real = staged["tail_mask"][row]
        wanted = [*left_of(sample, numbers, stage), *sample.cue, *sample.answer, sample.eos]
        assert staged["tail"][row][real].tolist() == wanted
        assert staged["tail"][row][staged["tail_answer"][row]].tolist() == sample.answer
        assert int(staged["tail"][row][staged["cue_last"][row]]) == sample.cue[-1]
    assert staged["cot"].shape[1] == staged["cot_mask"].shape[1] == staged["cot_step"].shape[1] == 0


def test_a_stage_has_its_share_of_the_updates_and_the_last_one_the_rest() -> None:
    latent = made().model.latent
    assert [stage_at(latent, update / 10) for update in range(10)] == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("use_projection", [True, False], ids=["projection", "none"])
@pytest.mark.parametrize("stage", range(4))
def test_the_loss_of_a_stage_is_a_plain_loop(stage: int, use_projection: bool) -> None:
    """[Q, bot], one latent after the other, then [eot, what is left, cue, A, eos]; all behind eot is learnt."""
    hand, step = load_by_hand(), Step(progress=stage * SHARE, log=False)
    kind = made(use_projection=use_projection)
    total, count, model = torch.zeros((), dtype=torch.float64), 0, kind.model
    with plain_attention(model) as lm:
        for sample, numbers in zip(samples(batch_of()), STEPS, strict=True):
            out, kv = hand.run(lm, hand.embed(lm, [*sample.question, model.special.bot]))
            for _ in range(LATENTS[stage]):
                out, kv = hand.run(lm, model.project(out.last_hidden_state[:, -1:]), kv)
            text = [*left_of(sample, numbers, stage), *sample.cue, *sample.answer, sample.eos]
            out, _ = hand.run(lm, hand.embed(lm, [model.special.eot, *text]), kv)
            total, count = total + hand.ce(lm, out.last_hidden_state[:, :-1], text), count + len(text)
    wanted = gradients(total / count, model)
    for side, packed in (("right", True), ("left", True), ("right", False)):
        kind.view.packed = packed
        (term,) = kind(batch_of(side), step).terms
        assert (term.name, term.count) == ("ce_student", count)
        assert kind.counts(batch_of(side), step)["ce_student"] == count
        assert float(term.total.detach()) == pytest.approx(float(total.detach()), abs=1e-9)
        for name, grad in gradients(term.value(), model).items():
            torch.testing.assert_close(grad, wanted[name], rtol=1e-9, atol=1e-9, msg=name)
    rows = [kind(take(batch_of("left"), [row]), step).terms[0] for row in range(len(STEPS))]
    assert float(sum(term.total for term in rows).detach()) == pytest.approx(float(total.detach()), abs=1e-9)
    assert model.latent.num_tokens == M


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("latent.stage_share=0.3", "latent.stage_latents=1"), "the stages are longer than the run"),
        (("latent.stage_share=0.1", "latent.stage_latents=2"), "is no multiple of latent.stage_latents = 2"),
        (("latent.stage_share=0.1", "latent.stage_latents=1", "loss.teacher_ce=1"), "set loss.teacher_ce=0"),
        (("latent.stage_latents=1",), "latent.stage_latents has no effect"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(settings: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_recipe("embedded", [*OFF, "latent.method=sequential", *settings])
    assert said in f"{refused.value.message}; {refused.value.hint}"


def test_rounds_are_refused_with_stages() -> None:
    with pytest.raises(ConfigError) as refused:
        load_recipe("embedded", [*OFF, "latent.stage_share=0.1", "latent.stage_latents=1"])
    assert "latent.method=sequential" in str(refused.value.hint)
