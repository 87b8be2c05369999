"""A report for the terminal: plain ASCII, 80 columns; the first questions one by one, all of them together."""

import textwrap
from collections.abc import Iterator, Sequence

from kava.lens.records import AnswerAttention, ChainMatch, LensReport, Near, QuestionLens, ThoughtRound
from kava.text_table import number, percent, table

WIDTH = 80
SHOWN = 3  # questions told one by one


def report_text(report: LensReport) -> str:
    """The whole text."""
    return "\n".join([*_together(report), *(line for view in report.questions[:SHOWN] for line in _question(view, report)),
                      *_rest(report)])  # fmt: skip


def _together(report: LensReport) -> Iterator[str]:
    count = len(report.questions)
    accuracy = "" if report.accuracy is None else f", {percent(report.accuracy)} % correct"
    yield f"{count} question{'s' if count != 1 else ''}{accuracy}: {report.num_tokens} latents, {report.num_rounds} rounds"
    yield f"({report.method}), {report.layers} layers"
    yield from (line for note in report.notes for line in textwrap.wrap(f"note: {note}", WIDTH))
    yield ""
    yield "What the answers lose when latents are replaced (nats of log-probability)"
    rows = [
        [effect.kind, _slot(effect.slot), number(effect.own_loss, 3), number(effect.gold_loss, 3), percent(effect.kept),
         percent(effect.accuracy)]
        for effect in report.effects
    ]  # fmt: skip
    yield table(rows, ["by", "latent", "own", "gold", "same answer %", "correct %"], left=2)
    yield ""
    yield "Attention of the answer to each latent (mean over heads and questions)"
    yield _layers(report.attention)
    if report.diagonal is not None:
        yield ""
        told = report.diagonal
        words = (
            f"Diagonal: {percent(told.on_diagonal)} % of {told.latents} latents are nearest to the step on their "
            f"diagonal, {percent(told.chance)} % with the latents of each question in random order (p = {told.p:.2g})"
        )
        yield from textwrap.wrap(words, WIDTH)


def _question(view: QuestionLens, report: LensReport) -> Iterator[str]:
    yield ""
    yield "-" * WIDTH
    yield from textwrap.wrap(f"{view.id}: {view.question!a}", WIDTH)
    gold = "" if view.gold is None else f" (gold {view.gold!a}, log-probability {number(view.gold_logprob, 3)})"
    own = f"answer {view.answer!a}, log-probability {view.own_logprob:.3f}, {view.forward_passes} forward passes{gold}"
    yield from textwrap.wrap(own, WIDTH)
    yield ""
    yield "Nearest tokens: said (head, probability) | read (embedding, cosine)"
    for thought in view.rounds:
        yield from _round(thought, report.top)
    yield from _attention(view.attention)
    if view.chain is not None:
        yield from _chain(view.chain)


def _round(thought: ThoughtRound, top: int) -> Iterator[str]:
    shown = min(top, 3)
    for i, says in enumerate(thought.says):
        lead = f"round {thought.number}  " if i == 0 else " " * (len(f"round {thought.number}") + 2)
        reads = "" if thought.reads is None else f" | {_near(thought.reads[i][:shown])}"
        yield f"{lead}z{i + 1}  {_near(says[:shown])}{reads}"[:WIDTH]


def _near(tokens: Sequence[Near]) -> str:
    return "  ".join(f"{near.token!a} {near.value:.2f}" for near in tokens)


def _attention(view: AnswerAttention) -> Iterator[str]:
    yield ""
    yield "Attention that predicts the answer: to each latent, and to the question in all"
    means = [[sum(column) / len(layer) for column in zip(*layer, strict=True)] for layer in view.heads]
    yield _layers(means, {"question": view.question})


def _layers(rows: Sequence[Sequence[float]], more: dict[str, list[float]] | None = None) -> str:
    """A table of layers by latents: the first 8, if there are more."""
    more, most = more or {}, 8
    names = [f"z{i + 1}" for i in range(len(rows[0]))]
    cells = [
        [str(layer), *(f"{weight:.3f}" for weight in row[:most]), *(f"{column[layer]:.3f}" for column in more.values())]
        for layer, row in enumerate(rows)
    ]
    cut = f"\n(latents {most + 1} to {len(names)}: --output)" if len(names) > most else ""
    return table(cells, ["layer", *names[:most], *more], left=1) + cut


def _chain(chain: ChainMatch) -> Iterator[str]:
    yield ""
    yield "Nearest step of the chain of thought (cosine of K and V; * on the diagonal)"
    for i, (step, token) in enumerate(zip(chain.best_step, chain.best_token, strict=True)):
        mark = "*" if chain.diagonal[i] == step else " "
        line = f"z{i + 1} {mark} step {step + 1} {chain.steps[step]!a}, cosine {chain.by_step[i][step]:.2f}, "
        yield from textwrap.wrap(line + f"at token {token + 1} {chain.tokens[token]!a}", WIDTH)


def _rest(report: LensReport) -> Iterator[str]:
    if len(report.questions) > SHOWN:
        yield ""
        yield f"{len(report.questions) - SHOWN} more questions: --output page.html or data.json"


def _slot(slot: int | None) -> str:
    return "all" if slot is None else f"z{slot + 1}"
