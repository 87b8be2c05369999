"""SIM-CoT's term against a plain loop: one step at a time, one latent in front of its tokens, the library's own attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import zoo
from compare import UNEVEN, gradients, load_by_hand, objective, plain_attention, samples
from kava.backbone.families import family_of
from kava.backbone.model import Backbone, LatentModel
from kava.compress import make_compressor
from kava.config import LossConfig
from kava.data.cut import take
from kava.losses import add
from kava.objective.make import latent_objective
from kava.objective.objective import Objective
from kava.objective.step_decoder import NAME

M = 4
STEPS = ([1, 1, 2, 3, 4, 4, 5], [1, 2], [], [1, 1, 1, 2])  # of UNEVEN's chains of thought; one is longer than M


def batch_of(side: str = "right") -> dict[str, Tensor]:
    batch = zoo.batch(UNEVEN, side)
    batch["cot_step"] = torch.zeros_like(batch["cot"])
    for row, numbers in enumerate(STEPS):
        batch["cot_step"][row][batch["cot_mask"][row]] = torch.tensor(numbers, dtype=torch.long)
    return batch


def made(family: str, method: str, packed: bool = True, **loss: float) -> Objective:
    model = zoo.latent_model(family, num_tokens=M, method=method)
    decoder = Backbone(zoo.causal_lm(family, seed=3), family_of(model.config, family)).eval()
    settings = LossConfig(**{"step_decoder": 0.5, "alpha2_kv": 0.0, **loss})
    return latent_objective(model, settings, make_compressor("rkv"), packed, decoder=decoder)


def latents_by_hand(lm, model: LatentModel, question: list[int]) -> Tensor:
    """[1, M, E] the input embeddings of the last pass."""
    hand, (bot, latent) = load_by_hand(), (model.special.bot, model.special.latent)
    if model.latent.method == "sequential":
        out, kv = hand.run(lm, hand.embed(lm, [*question, bot]))
        each = [model.project(out.last_hidden_state[:, -1:])]
        for _ in range(M - 1):
            out, kv = hand.run(lm, each[-1], kv)
            each.append(model.project(out.last_hidden_state[:, -1:]))
        return torch.cat(each, dim=1)
    out, kv = hand.run(lm, hand.embed(lm, [*question, bot, *[latent] * M]))
    embeds, prefix = model.project(out.last_hidden_state[:, len(question) : -1]), hand.cut(kv, 0, len(question) + 1)
    for _ in range(model.latent.num_iterations - 1):
        out, _ = hand.run(lm, embeds, prefix)
        embeds = torch.cat([embeds[:, :1], model.project(out.last_hidden_state[:, :-1])], dim=1)
    return embeds


def by_hand(kind: Objective, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
    """The summed cross-entropy of each step's tokens and eos, and their number."""
    hand, decoder = load_by_hand(), kind.aux_terms[NAME].decoder
    total, count = torch.zeros((), dtype=torch.float64), 0
    with plain_attention(kind.model) as lm, plain_attention(decoder) as writer:
        for sample, numbers in zip(samples(batch), STEPS, strict=True):
            latents = latents_by_hand(lm, kind.model, sample.question)
            for step in range(1, min(max(numbers, default=0), M) + 1):
                ids = [token for token, number in zip(sample.cot, numbers, strict=True) if number == step]
                embeds = torch.cat([latents[:, step - 1 : step], hand.embed(writer, ids)], dim=1)
                logits = writer(inputs_embeds=embeds).logits[0]
                total = total + cross_entropy(logits, torch.tensor([*ids, sample.eos]), reduction="sum")
                count += len(ids) + 1
    return total, count


@pytest.mark.parametrize(
    ("family", "method"), [("llama-gqa", "sequential"), ("llama-gqa", "jacobi"), ("gpt2", "sequential")]
)
def test_the_decoders_term_is_a_plain_loop_over_steps(family: str, method: str) -> None:
    kind = made(family, method)
    total, count = by_hand(kind, batch_of())
    wanted = gradients(total / count, kind)
    for side, packed in (("right", True), ("left", True), ("right", False)):
        kind.view.packed = packed
        (term,) = [term for term in kind(batch_of(side)).terms if term.name == NAME]
        assert (term.count, term.weight) == (count, 0.5)
        assert float(term.total) == pytest.approx(float(total), abs=1e-9)
        grads = gradients(term.value(), kind)
        for name, grad in wanted.items():
            torch.testing.assert_close(grads[name], grad, rtol=1e-9, atol=1e-9, msg=name)
    reached = [name for name, grad in wanted.items() if bool(grad.any())]
    assert {"model.project.layers.0.weight", f"aux_terms.{NAME}.decoder.backbone.lm_head.weight"} & set(reached)
    assert any(name.startswith("model.backbone.") for name in reached)


def test_rows_alone_add_up_and_no_steps_at_all_cost_nothing() -> None:
    kind, batch = made("llama-gqa", "sequential"), batch_of("left")
    whole, parts = kind(batch).terms, [kind(take(batch, [row])).terms for row in range(len(STEPS))]
    for terms in zip(whole, *parts, strict=True):
        assert float(sum(term.total for term in terms[1:])) == pytest.approx(float(terms[0].total), abs=1e-9)
        assert sum(term.count for term in terms[1:]) == terms[0].count
    (nothing,) = [term for term in parts[2] if term.name == NAME]
    assert (float(nothing.total), nothing.count) == (0, 0)
    grads = torch.autograd.grad(nothing.total, list(kind.aux_terms[NAME].decoder.parameters()))  # in every process
    assert not any(bool(grad.any()) for grad in grads)


def test_the_decoder_changes_no_other_term() -> None:
    """It needs neither the teacher mode nor a cross-entropy of the answer."""
    kind, batch = made("llama-gqa", "sequential"), batch_of()
    plain = objective(kind.model, alpha2_kv=0.0)(batch).terms
    assert [(t.name, float(t.total)) for t in kind(batch).terms if t.name != NAME] == [
        (term.name, float(term.total)) for term in plain
    ]
    alone = made("llama-gqa", "sequential", student_ce=0.0, teacher_ce=0.0, alpha1_codi=0.0)
    terms = {term.name: term for term in alone(batch).terms}
    assert set(terms) == {"ce_student", NAME}
    assert float(add([terms[NAME]])) == pytest.approx(0.5 * float(terms[NAME].value()))
