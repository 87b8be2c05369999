"""`look(student, questions)`: everything the lens measures, as one report. The batch size changes nothing but the time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from kava import answers
from kava.config import Recipe
from kava.data.encode import Encoder
from kava.data.example import Example
from kava.data.load import load_rows
from kava.errors import ConfigError, DataError
from kava.evaluation.score import cue_of, verdict
from kava.infer.ablate import ABLATIONS, ablated
from kava.infer.checks import check_count, check_questions, untrained
from kava.infer.generate import Sampling, generate, think_with_prefix
from kava.infer.student import Student
from kava.lens.answer import Said, Thought, attention_of, say
from kava.lens.chain import diagonal_of, match_chains
from kava.lens.records import Effect, EffectSummary, LensReport, QuestionLens
from kava.lens.rounds import Pieces, rounds_of
from kava.progress import track

GREEDY = Sampling()
MOST_TOP = 100


@dataclass
class _Row:
    """A question on its way to a record."""

    example: Example
    own_ids: list[int]
    gold_ids: list[int] | None
    view: QuestionLens
    effects: list[Effect] = field(default_factory=list)


def look(
    student: Student | str | Path,
    questions: Sequence[str] | Sequence[Example] | Sequence[Mapping[str, Any]],
    *,
    top: int = 5,
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    progress: bool = False,
) -> LensReport:
    """The lens on a student that thinks in latents; answers are greedy.

    student      a Student, or a student's folder
    questions    texts; or rows {"question", "steps", "answer"} or Examples, which also have a gold answer and a chain of
                 thought to compare with
    top          so many nearest tokens of every latent
    """
    check_count("top", top, 1, MOST_TOP)
    check_count("batch_size", batch_size)
    check_count("max_new_tokens", max_new_tokens)
    student = student if isinstance(student, Student) else Student.from_pretrained(student)
    check_thinks(student.recipe)
    examples = as_examples(questions, student.recipe)
    texts = [example.question for example in examples]
    for i, problem in student.too_long(texts, "latent", max_new_tokens).items():
        raise DataError(f"question {i + 1}: {problem}", "ask a shorter question, or lower max_new_tokens")
    size = batch_size or student.recipe.evaluation.batch_size
    thought = student.think(texts, size, progress)
    lens = _Lens(student, top, max_new_tokens or student.recipe.evaluation.max_new_tokens)
    kinds = [kind for kind in ABLATIONS if kind == "zero" or len(examples) > 1]
    ids = [example.id for example in examples]
    others = {kind: ablated(kind, thought, ids) for kind in kinds}
    places = student.by_length(texts)
    batches = [places[start : start + size] for start in range(0, len(places), size)]
    views: dict[int, QuestionLens] = {}
    for batch in track(batches, "lens", unit="batches", show=progress):
        replaced = {kind: latents[batch] for kind, latents in others.items()}
        views |= zip(batch, lens.batch([examples[i] for i in batch], replaced), strict=True)
    return report_of(student, [views[i] for i in range(len(examples))], top)


def check_thinks(recipe: Recipe) -> None:
    """Raises for a student without latents that carry a thought."""
    if recipe.explicit.enabled:
        raise ConfigError(
            "a student of the explicit line has no latents to look into", "kava selection shows its chain"
        )
    if not recipe.latent.feeds_back:
        why = "M = 0: it has no latents" if recipe.latent.num_tokens == 0 else "T = 0: its latents are pause tokens"
        raise ConfigError(f"this student thinks nothing to look into ({why})", "give a student that feeds states back")


def as_examples(questions: Any, recipe: Recipe) -> list[Example]:
    """Examples of texts, rows or Examples; texts have neither gold answer nor steps."""
    if isinstance(questions, Sequence) and not isinstance(questions, str | bytes) and questions:
        if all(isinstance(question, Example) for question in questions):
            return list(questions)
        if all(isinstance(question, Mapping) for question in questions):
            return load_rows(questions, "questions", recipe.dataset.cot_type)
    check_questions(questions)
    if not questions:
        raise DataError("there is no question", 'give a list: ["3+4?", ...]')
    return [Example(f"question/{i}", text, (), "") for i, text in enumerate(questions)]


class _Lens:
    """The lens with its student, for one batch after the other."""

    def __init__(self, student: Student, top: int, limit: int):
        self.student, self.top, self.limit = student, top, limit
        self.model, self.tokenizer, self.recipe = student.answering(), student.tokenizer, student.recipe
        self.encoder = Encoder.of(self.tokenizer, self.recipe.dataset)
        self.lead, self.cue = student.lead("latent"), cue_of(self.recipe, "latent")

    def batch(self, examples: Sequence[Example], replaced: Mapping[str, Tensor]) -> list[QuestionLens]:
        """The records of one batch; `replaced` [B, M, E] of each kind of ablation."""
        questions = [example.question for example in examples]
        ids, mask = self.student.padded(self.student.encode(questions))
        passes: Pieces = []
        with torch.inference_mode():
            latents, prefix, known = think_with_prefix(
                self.model, ids, mask, watch=lambda embeds, hidden: passes.append((embeds, hidden))
            )
        thought = Thought(latents, prefix, known)
        made = generate(self.model, ids, mask, self.lead, self.student.eos, self.limit, "latent", GREEDY, latents)
        own = [[*one.tokens, *([] if one.truncated else [self.student.eos])] for one in made]
        said = say(self.model, thought, self.lead, own)
        count = latents.shape[1]
        passes.append((latents, said.out.hidden[:, :count]))
        with torch.inference_mode():
            rounds = rounds_of(self.model, self.tokenizer, passes, self.top)
        attention = attention_of(self.model, self.tokenizer, thought, said, self.lead, own)
        chains = match_chains(self.model, self.tokenizer, self.encoder, self.recipe, examples, thought, said)
        gold = [self._gold_ids(example) for example in examples]
        gold_said = self._say_gold(thought, gold)
        rows = []
        for b, example in enumerate(examples):
            answer = self.student.read(made[b], "latent")
            view = QuestionLens(
                id=example.id, question=example.question, gold=example.answer or None, answer=answer.text,
                correct=self._correct(answer.text, example), forward_passes=answer.forward_passes,
                own_logprob=said.logprob[b], gold_logprob=gold_said[b], rounds=rounds[b], attention=attention[b],
                chain=chains[b], effects=[],
            )  # fmt: skip
            rows.append(_Row(example, own[b], gold[b], view))
        for kind, latents_of_kind in replaced.items():
            self._effects(rows, thought, kind, latents_of_kind.to(latents))
        return [replace(row.view, effects=row.effects) for row in rows]

    def _effects(self, rows: Sequence[_Row], thought: Thought, kind: str, other: Tensor) -> None:
        """Adds to every row what it loses with each slot replaced, then with all of them."""
        own, gold = [row.own_ids for row in rows], [row.gold_ids for row in rows]
        for slot in (*range(other.shape[1]), None):
            latents = other if slot is None else thought.latents.clone()
            if slot is not None:
                latents[:, slot] = other[:, slot]
            changed = replace(thought, latents=latents)
            said, gold_said = say(self.model, changed, self.lead, own), self._say_gold(changed, gold)
            texts: list[str | None] = [None] * len(rows)
            if slot is None:  # the call of `kava evaluate --ablate`
                questions = [row.example.question for row in rows]
                made = self.student.answer(questions, "latent", len(rows), self.limit, GREEDY, other)
                texts = [answer.text for answer in made]
            for b, row in enumerate(rows):
                after, text = gold_said[b], texts[b]
                row.effects.append(
                    Effect(
                        kind=kind,
                        slot=slot,
                        own_loss=row.view.own_logprob - said.logprob[b],
                        gold_loss=None if after is None else (row.view.gold_logprob or 0.0) - after,
                        kept=said.likeliest[b],
                        answer=text,
                        correct=None if text is None else self._correct(text, row.example),
                    )
                )

    def _gold_ids(self, example: Example) -> list[int] | None:
        """The gold answer as the student is trained to give it: behind the cue, where the cue is not given, with it."""
        if not example.answer:
            return None
        row = self.encoder(example)
        return [*([] if self.lead else row.cue), *row.answer, row.eos]

    def _say_gold(self, thought: Thought, gold: Sequence[list[int] | None]) -> list[float | None]:
        """The log-probability of each gold answer; None where there is none."""
        places = [b for b, ids in enumerate(gold) if ids is not None]
        if not places:
            return [None] * len(gold)
        said: Said = say(
            self.model, thought, self.lead, [ids if ids is not None else [self.student.eos] for ids in gold]
        )
        return [said.logprob[b] if b in places else None for b in range(len(gold))]

    def _correct(self, text: str, example: Example) -> bool | None:
        """As `kava evaluate` judges; None without a gold number."""
        if answers.number(example.answer) is None:
            return None
        return bool(verdict(text, example.answer, self.cue)["correct"])


def report_of(student: Student, views: list[QuestionLens], top: int) -> LensReport:
    """What the questions show together."""
    model, recipe = student.model, student.recipe
    notes = []
    if len(views) == 1:
        notes.append("mean, swap and noise are made of several questions: with one there is only zero")
    if any(view.chain for view in views) and (note := untrained(recipe, "cot")):
        notes.append(f"chain of thought: {note}")
    return LensReport(
        checkpoint=None if student.folder is None else str(student.folder),
        recipe=recipe.about.name,
        method=recipe.latent.method,
        num_tokens=recipe.latent.num_tokens,
        num_rounds=model.rounds,
        layers=model.kv_shape.num_layers,
        top=top,
        accuracy=_mean([view.correct for view in views]),
        diagonal=diagonal_of([view.chain for view in views]),
        attention=_mean_attention(views),
        effects=list(_summaries(views)),
        notes=notes,
        questions=views,
    )


def _mean_attention(views: Sequence[QuestionLens]) -> list[list[float]]:
    rows = torch.stack([torch.tensor(view.attention.heads).mean(1) for view in views])
    return rows.mean(0).tolist()


def _summaries(views: Sequence[QuestionLens]) -> Iterator[EffectSummary]:
    for place, effect in enumerate(views[0].effects):
        same = [view.effects[place] for view in views]
        yield EffectSummary(
            kind=effect.kind,
            slot=effect.slot,
            own_loss=fmean(one.own_loss for one in same),
            gold_loss=_mean([one.gold_loss for one in same]),
            kept=fmean(one.kept for one in same),
            accuracy=_mean([one.correct for one in same]),
        )


def _mean(values: Sequence[float | bool | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return fmean(known) if known else None
