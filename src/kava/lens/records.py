"""What the lens measures, as records; `to_dict` of a report is what `kava lens --output data.json` writes.

Lists are in the order of the axes named; a number that does not exist is None, never 0.
"""

from dataclasses import asdict, dataclass
from typing import Any

Grid = list[list[float]]


@dataclass(frozen=True)
class Near:
    """A token and how near it is: a probability (through the head) or a cosine (of an embedding)."""

    token: str
    id: int
    value: float


@dataclass(frozen=True)
class ThoughtRound:
    """One pass over the latents. Round 0 is the pass over the question and the empty slots, which have no embedding yet.

    says    [latents][K]: the model's head on each latent's hidden state, as probabilities of the next token
    reads   [latents][K]: cosine of each latent's input embedding with every row of the embedding matrix; None in round 0
    """

    number: int
    says: list[list[Near]]
    reads: list[list[Near]] | None


@dataclass(frozen=True)
class AnswerAttention:
    """Attention of the answer to the latents in the last pass.

    `tokens` are the inputs that read, from <eot> on; the last of the `cue` + 1 first ones predicts the first token of the
    answer. mean, most: [layers][tokens][latents], over heads; heads: [layers][heads][latents], mean over the tokens that
    predict the answer; question: [layers], the share of their attention on the question, also mean over heads.
    """

    tokens: list[str]
    cue: int
    mean: list[Grid]
    most: list[Grid]
    heads: list[Grid]
    question: list[float]


@dataclass(frozen=True)
class ChainMatch:
    """Latents beside the row's own chain of thought, read by the student's teacher mode.

    keys, values   [layers][latents][chain tokens], cosine of each head, mean over heads
    by_step        [latents][steps], mean over layers, keys and values; of a step's tokens the nearest
    best_token, best_step    where each latent's mean cosine is largest
    diagonal       the step on the diagonal of each latent; None where there is none
    on_diagonal    of the latents that have one, the share whose best step it is
    chance         its mean over all orders of the latents; None where no latent has a step on the diagonal
    """

    tokens: list[str]
    steps: list[str]
    step_of_token: list[int]
    keys: list[Grid]
    values: list[Grid]
    by_step: Grid
    best_token: list[int]
    best_step: list[int]
    diagonal: list[int | None]
    on_diagonal: float | None
    chance: float | None


@dataclass(frozen=True)
class Effect:
    """What the answers lose when a slot (None: all of them) is replaced: the log-probability before minus after.

    `kept`: every token of the own answer is still the likeliest, so the student would still give it.
    `answer`, `correct`: generated, with all slots replaced, as `kava evaluate --ablate` generates it; else None.
    """

    kind: str
    slot: int | None
    own_loss: float
    gold_loss: float | None
    kept: bool
    answer: str | None = None
    correct: bool | None = None


@dataclass(frozen=True)
class QuestionLens:
    """Everything about one question. own_logprob, gold_logprob: of the answer with its end, with the latents as thought."""

    id: str
    question: str
    gold: str | None
    answer: str
    correct: bool | None
    forward_passes: int
    own_logprob: float
    gold_logprob: float | None
    rounds: list[ThoughtRound]
    attention: AnswerAttention
    chain: ChainMatch | None
    effects: list[Effect]


@dataclass(frozen=True)
class EffectSummary:
    """Means of an effect over the questions; `accuracy` only where all slots are replaced and there are gold answers."""

    kind: str
    slot: int | None
    own_loss: float
    gold_loss: float | None
    kept: float
    accuracy: float | None


@dataclass(frozen=True)
class DiagonalSummary:
    """Shares over all latents of all questions with a step on the diagonal; `p`: the share of random orders of each
    question's latents (10,000 draws, one added) that are as diagonal."""

    latents: int
    on_diagonal: float
    chance: float
    p: float


@dataclass(frozen=True)
class LensReport:
    """The lens on a student: `questions` one by one, and what they show together."""

    checkpoint: str | None
    recipe: str
    method: str
    num_tokens: int
    num_rounds: int
    layers: int
    top: int
    accuracy: float | None
    diagonal: DiagonalSummary | None
    attention: Grid  # [layers][latents], mean over heads, tokens that predict the answer, and questions
    effects: list[EffectSummary]
    notes: list[str]
    questions: list[QuestionLens]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and dicts, for JSON."""
        return {"kava_lens": 1, **asdict(self)}
