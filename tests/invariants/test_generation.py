"""Generation, token for token: batched, cached, left-padded and HF generate all agree; and what the counters say."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

import zoo
from compare import plain_attention, samples
from kava.backbone.model import LatentModel
from kava.infer.checks import MODES
from kava.infer.generate import Generation, generate
from kava.infer.sampling import Sampling

CUE = [51, 52, 53]
LIMIT = 9
QUESTIONS = ((5, 0, 1), (3, 0, 1), (8, 0, 1), (5, 0, 1), (1, 0, 1))
every_family = pytest.mark.parametrize("family", list(zoo.FAMILIES))
every_mode = pytest.mark.parametrize("mode", MODES)


@cache
def model_of(family: str, **latent: object) -> LatentModel:
    return zoo.latent_model(family, **latent)


def questions() -> list[list[int]]:
    return [sample.question for sample in samples(zoo.batch(QUESTIONS))]


def ask(model: LatentModel, eos: int, mode: str, side: str = "right", rows: slice = slice(None)) -> list[Generation]:
    batch = zoo.batch(QUESTIONS, side)
    lead = [] if mode == "cot" else CUE
    return generate(model, batch["question"][rows], batch["question_mask"][rows], lead, eos, LIMIT, mode)


@cache
def slow(family: str, mode: str, row: int, **latent: object) -> tuple[int, ...]:
    """LIMIT greedy tokens with no cache, no batch and no mask: everything is computed again for every token."""
    model = model_of(family, **latent)
    question, special, num_latents = questions()[row], model.special, model.latent.num_tokens
    with plain_attention(model) as lm, torch.no_grad():

        def hidden(embeds: Tensor) -> Tensor:
            return lm.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state

        words = model.embed(torch.tensor([question + ([] if mode == "cot" else [special.bot])]))
        if mode == "latent":
            pause = model.embed(torch.tensor([[special.latent] * num_latents], dtype=torch.long))
            states = hidden(torch.cat([words, pause], dim=1))[:, words.shape[1] - 1 :]
            latents = model.project(states[:, :-1]) if model.feeds_back else pause
            for _ in range(model.latent.num_iterations - 1 if model.feeds_back else 0):
                states = hidden(torch.cat([words, latents], dim=1))[:, words.shape[1] :]
                latents = torch.cat([latents[:, :1], model.project(states[:, :-1])], dim=1)
            words = torch.cat([words, latents], dim=1)
        found = [] if mode == "cot" else [special.eot, *CUE]
        given = len(found)
        while len(found) < given + LIMIT:
            after = model.embed(torch.tensor([found], dtype=torch.long))
            found.append(int(model.head(hidden(torch.cat([words, after], dim=1))[:, -1]).argmax()))
    return tuple(found[given:])


def until(tokens: tuple[int, ...], eos: int) -> list[int]:
    """What is left of a run to the limit when `eos` stops it."""
    return list(tokens[: tokens.index(eos)] if eos in tokens else tokens)


def stopping_token(family: str, mode: str, **latent: object) -> int:
    """A token that stops some of the rows, at different places, and not all of them."""
    runs = [slow(family, mode, row, **latent) for row in range(len(QUESTIONS))]
    for token in range(zoo.VOCAB):
        ends = {run.index(token) if token in run else None for run in runs}
        if len(ends) > 2 or (len(ends) > 1 and None in ends):
            return token
    raise AssertionError("no token tells the rows apart")


@every_family
@every_mode
def test_batched_and_cached_is_what_a_naive_loop_gives(family: str, mode: str) -> None:
    model, eos = model_of(family), stopping_token(family, mode)
    wanted = [until(slow(family, mode, row), eos) for row in range(len(QUESTIONS))]
    assert len({len(tokens) for tokens in wanted}) > 1
    for side in ("right", "left"):
        assert [answer.tokens for answer in ask(model, eos, mode, side)] == wanted


@every_mode
def test_a_batch_is_its_rows(mode: str) -> None:
    family = "llama-gqa"
    eos = stopping_token(family, mode)
    whole = ask(model_of(family), eos, mode)
    alone = [ask(model_of(family), eos, mode, rows=slice(i, i + 1))[0] for i in range(len(QUESTIONS))]
    assert whole == alone


@pytest.mark.parametrize("latent", [{"num_tokens": 0}, {"num_iterations": 0}, {"num_iterations": 1}, {"num_tokens": 1}])
def test_other_numbers_of_latents_and_rounds(latent: dict[str, int]) -> None:
    model, eos = model_of("llama-gqa", **latent), stopping_token("llama-gqa", "latent", **latent)
    wanted = [until(slow("llama-gqa", "latent", row, **latent), eos) for row in range(len(QUESTIONS))]
    for side in ("right", "left"):
        assert [answer.tokens for answer in ask(model, eos, "latent", side)] == wanted


def test_sequential_is_as_many_rounds_as_latents() -> None:
    jacobi, sequential = model_of("llama-gqa", num_iterations=4), model_of("llama-gqa", method="sequential")
    eos = stopping_token("llama-gqa", "latent")
    assert ask(jacobi, eos, "latent") == ask(sequential, eos, "latent")


@every_mode
def test_counters_follow_the_methods_rule(mode: str) -> None:
    eos = stopping_token("llama-gqa", mode)
    model = model_of("llama-gqa")
    calls: list[int] = []
    handle = model.decoder.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    rounds = 3 if mode == "latent" else 0
    for row in range(len(QUESTIONS)):
        run = slow("llama-gqa", mode, row)
        calls.clear()
        answer = ask(model, eos, mode, rows=slice(row, row + 1))[0]
        generated = len(until(run, eos)) + (eos in run)  # eos counts
        assert answer.truncated == (eos not in run)
        assert answer.forward_passes == 1 + rounds + generated
        assert answer.executed == len(calls) == answer.forward_passes - 1
    handle.remove()


def test_eos_as_the_first_token_is_an_empty_answer_and_not_a_cut_one() -> None:
    run = slow("llama-gqa", "latent", 0)
    answer = ask(model_of("llama-gqa"), run[0], "latent")[0]
    assert answer == Generation(tokens=[], forward_passes=5, executed=4, truncated=False)


def test_no_step_is_made_for_rows_that_are_done() -> None:
    model = model_of("llama-gqa")
    widths: list[int] = []
    handle = model.decoder.layers[0].register_forward_pre_hook(lambda _, args: widths.append(len(args[0])))
    eos = stopping_token("llama-gqa", "latent")
    answers = ask(model, eos, "latent")
    handle.remove()
    steps = [sum(answer.executed - 4 > step for answer in answers) for step in range(LIMIT - 1)]
    assert widths[4:] == [rows for rows in steps if rows]


@every_family
def test_transformers_generates_the_same_from_embeddings(family: str) -> None:
    """[Q, <bot>, latents, <eot>, cue] as prompt embeddings: any server that takes them can serve the model."""
    model, batch = model_of(family), zoo.batch(QUESTIONS)
    for row, question in enumerate(questions()):
        latents = thought(model, batch["question"][row : row + 1], batch["question_mask"][row : row + 1])
        before = model.embed(torch.tensor([[*question, model.special.bot]]))
        after = model.embed(torch.tensor([[model.special.eot, *CUE]]))
        with plain_attention(model) as lm:
            embeds = torch.cat([before, latents, after], dim=1)
            limit = {"max_new_tokens": LIMIT, "eos_token_id": -1, "pad_token_id": 0}
            out = lm.generate(inputs_embeds=embeds, do_sample=False, **limit)
        assert tuple(out[0].tolist()) == slow(family, "latent", row)


@torch.no_grad()
def thought(model: LatentModel, question: Tensor, mask: Tensor) -> Tensor:
    """The latents' input embeddings [1, M, E], from the objective's student pass."""
    from kava.objective.records import PassOutputs
    from kava.objective.unpacked import run_student

    row = {"question": question, "question_mask": mask, "tail": torch.tensor([[51]]), "tail_mask": mask[:, :1],
           "cue_last": torch.tensor([0])}  # fmt: skip
    latents = run_student(model, row, PassOutputs(teacher=False, student=True, kv=False, codi=False)).latents
    assert latents is not None
    return latents


def test_sampling_is_seeded_and_top_p_keeps_the_likeliest() -> None:
    model, batch = model_of("llama-gqa"), zoo.batch(QUESTIONS)

    def draw(**settings: float) -> list[list[int]]:
        sampling = Sampling(**settings, seed=3)  # type: ignore[arg-type]
        out = generate(model, batch["question"], batch["question_mask"], CUE, 0, LIMIT, "latent", sampling)
        return [answer.tokens for answer in out]

    assert draw(temperature=1.5) == draw(temperature=1.5) != draw(temperature=0.0)
    assert draw(temperature=1.5, top_p=1e-6) == draw(temperature=0.0)
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    for top_p, allowed in ((0.4, {0}), (0.7, {0, 1}), (1.0, {0, 1, 2})):
        torch.manual_seed(0)
        assert {int(Sampling(temperature=1.0, top_p=top_p).choose(logits)) for _ in range(60)} == allowed


def test_the_question_is_read_once_and_nothing_else_than_latents_and_cue_after_it() -> None:
    model, batch = model_of("llama-gqa"), zoo.batch(QUESTIONS)
    seen: list[int] = []
    handle = model.decoder.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    generate(model, batch["question"], batch["question_mask"], CUE, 0, 1)
    handle.remove()
    assert seen == [batch["question"].shape[1] + 1 + 4, 4, 4, 4 + 1 + len(CUE)]


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="mode"):
        ask(model_of("llama-gqa"), 1, "telepathy")
