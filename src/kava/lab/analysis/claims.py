"""What a suite's results say about claims, in three words that each stand for a rule.

A claim rests on comparisons of two members; those that decide must all hold. Of a deciding comparison:

supported       the effect has the claimed sign and its two-sided p, corrected by Holm's method over all deciding
                comparisons of the analysis, is below 0.05 (three shared seeds at least)
not supported   it is significant with the other sign, or its 95 % interval excludes an effect as large as the margin
inconclusive    everything else; the reason is given

A claim is supported where all that decide are, not supported where one of them is not, inconclusive otherwise.
Nothing is imputed: a seed that one of two members lacks is left out of their comparison and named.

A claim may name effects that the guide expects of it. Each is a hypothesis of its own, read off the 95 % intervals without
a correction: reached (all of them lie above it), excluded (one lies below it), open.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from numpy.typing import ArrayLike

from kava.lab.analysis.stats import (
    FEWEST_SEEDS,
    PairedComparison,
    brown_forsythe,
    compare_items,
    compare_values,
    holm,
    spread,
)

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = "supported", "not supported", "inconclusive"
ALPHA = 0.05
MARGIN = 0.02  # of accuracy: the guide's tolerance when its tables are reproduced
RATIO_MARGIN = 0.10  # of instability, which is compared as a ratio

# instability is that of the student's cross-entropy, which all members share: beside a KV term that is large and stands
# still the whole loss hardly moves, and that would pass for calm.
Measure = Literal["accuracy", "instability", "instability_loss", "spread"]


@dataclass(frozen=True)
class Comparison:
    """`first` is claimed to be above or below `second`; what does not decide stands beside, uncorrected."""

    first: str
    wants: Literal["above", "below"]
    second: str
    measure: Measure = "accuracy"
    decides: bool = True


@dataclass(frozen=True)
class Claim:
    """A sentence and what must hold for it. source: guide or ours."""

    name: str
    sentence: str
    comparisons: tuple[Comparison, ...]
    source: str = "guide"
    expected: tuple[tuple[str, float], ...] = ()  # of accuracy

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for one in self.comparisons for name in (one.first, one.second)))


def _beside(first: str, wants: Literal["above", "below"], second: str, measure: Measure = "accuracy") -> Comparison:
    return Comparison(first, wants, second, measure, decides=False)


E1, E2, E3, E4, E5 = "E1_baseline", "E2_full_kv", "E3_right_crop", "E4_rkv", "E5_shuffled"
CONTROL = "control"
CLAIMS = (
    Claim("compression", "KV compression keeps supervision: E2 is better than E1.", (Comparison(E2, "above", E1),)),
    Claim(
        "compensation",
        "KV alignment compensates for weak latent supervision: E4 is better than E1.",
        (Comparison(E4, "above", E1), _beside(E2, "above", E1), _beside(E3, "above", E1)),
    ),
    Claim(
        "stability",
        "R-KV is the most stable: E4's cross-entropy jumps less in training than those of E2 and E3.",
        (
            Comparison(E4, "below", E2, "instability"),
            Comparison(E4, "below", E3, "instability"),
            _beside(E4, "below", E2, "instability_loss"),
            _beside(E4, "below", E3, "instability_loss"),
            _beside(E4, "below", E2, "spread"),
            _beside(E4, "below", E3, "spread"),
        ),
    ),
    Claim(CONTROL, "The control: E5, R-KV shuffled in time, is worse than E4.", (Comparison(E5, "below", E4),)),
    Claim(
        "content_rkv",
        "The content of R-KV's targets matters: E4 is better than with another question's targets.",
        (Comparison(E4, "above", "rkv_examples"),),
        "ours",
    ),
    Claim(
        "content_steps",
        "The content of the steps' targets matters: steps is better than with another question's targets.",
        (Comparison("steps", "above", "steps_examples"),),
        "ours",
    ),
    Claim(
        "choice",
        "R-KV's choice of tokens matters: E4 is better than random and than uniform choice.",
        (Comparison(E4, "above", "random"), Comparison(E4, "above", "uniform")),
        "ours",
    ),
    Claim(
        "steps",
        "Targets from the steps' results help: steps is better than E1.",
        (Comparison("steps", "above", E1),),
        "ours",
    ),
    Claim(
        "latents",
        "Latents that are iterated help without a KV term: E1 is better than pause.",
        (Comparison(E1, "above", "pause"),),
        "ours",
    ),
    Claim("thoughts", "Thoughts help: E4 is better than no_cot.", (Comparison(E4, "above", "no_cot"),), "ours"),
)
SFT, SINGLE, FIXED, SIMILARITY, LEARNABLE, Z = "sft", "single_", "fixed", "similarity", "learnable", "z"
WITH_EXPECTED = ("several", "router")  # the claims of which the guide expects effects of a size
LONG = "fixed_3"  # fixed weights for as many updates as the third of three stages has had
TEACHERS = (SFT, SINGLE, FIXED, "fixed_2", LONG, SIMILARITY, LEARNABLE, Z)  # SINGLE: every member that starts with it


def claims_of(names: Collection[str]) -> tuple[Claim, ...]:
    """The claims about these members: of E1 to E5, and where some have several teachers those about them."""
    several = [name for name in names if name in TEACHERS or name.startswith(SINGLE)]
    about_teachers = _about_teachers(names) if several else ()
    return about_teachers if several and len(several) == len(names) else (*CLAIMS, *about_teachers)


def _about_teachers(names: Collection[str]) -> tuple[Claim, ...]:
    found = []
    singles = [name for name in names if name.startswith(SINGLE)]
    if singles:
        beside = [_beside(one, "above", name) for one in (SIMILARITY, LEARNABLE, Z) if one in names for name in singles]
        sentence = "Several teachers are better than the best one alone: fixed is better than every single_."
        compared = (*(Comparison(FIXED, "above", name) for name in singles), *beside)
        found.append(Claim(WITH_EXPECTED[0], sentence, compared, expected=(("minimum", 0.03), ("ideal", 0.08))))
    equal = LONG if LONG in names else FIXED
    if LEARNABLE in names:
        compared = (Comparison(LEARNABLE, "above", equal),)
        compared += (_beside(LEARNABLE, "above", FIXED),) if equal != FIXED else ()
        compared += (_beside(LEARNABLE, "above", SIMILARITY),) if SIMILARITY in names else ()
        sentence = (
            f"A trained router is better than fixed weights, with as many updates: learnable is better than {equal}."
        )
        found.append(Claim(WITH_EXPECTED[1], sentence, compared, expected=(("minimum", 0.015), ("ideal", 0.04))))
    for name, sentence in (
        (FIXED, "Several teachers are better than plain fine-tuning on the same text: fixed is better than sft."),
        (Z, "Codes of several teachers are better than plain fine-tuning on the same text: z is better than sft."),
    ):
        if {SFT, name} <= set(names):
            found.append(Claim(f"{name}_sft", sentence, (Comparison(name, "above", SFT),), "ours"))
    return tuple(found)


@dataclass(frozen=True)
class Evidence:
    """What is known of a member: seed -> right or wrong per item (same order for all members), and numbers per run.

    `values` holds "instability" and "instability_loss" as logarithms, and "accuracy" as fractions for its spread.
    """

    correct: Mapping[int, ArrayLike] = field(default_factory=dict)
    values: Mapping[str, Mapping[int, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """A comparison and what came of it; word is "" for one that stands beside."""

    comparison: Comparison
    compared: PairedComparison | None
    p: float | None
    p_holm: float | None = None
    word: str = ""
    reason: str = ""
    unpaired: tuple[int, ...] = ()  # seeds that only one of the two has
    spreads: tuple[float | None, float | None] | None = None  # sample sd of both, where spreads are compared


@dataclass(frozen=True)
class Verdict:
    claim: Claim
    word: str
    reason: str
    findings: tuple[Finding, ...]


def margin_of(measure: Measure, margin: float) -> float:
    """The smallest effect worth the word, on the scale that is compared: points, or the logarithm of a ratio."""
    return margin if measure == "accuracy" else math.log1p(RATIO_MARGIN)


def judge(claims: Sequence[Claim], evidence: Mapping[str, Evidence], margin: float = MARGIN) -> list[Verdict]:
    """A word for every claim. Only deciding comparisons that have a p count in the correction."""
    findings = [[_found(one, evidence) for one in claim.comparisons] for claim in claims]
    deciding = [one for group in findings for one in group if one.comparison.decides and one.p is not None]
    corrected = dict(
        zip(map(id, deciding), holm([one.p for one in deciding if one.p is not None]), strict=True),
    )
    verdicts = []
    for claim, group in zip(claims, findings, strict=True):
        judged = tuple(_judged(one, corrected.get(id(one)), margin) for one in group)
        word, reason = _together([one for one in judged if one.comparison.decides])
        reason = "; ".join(part for part in (reason, _reached(claim, judged)) if part)
        verdicts.append(Verdict(claim, word, reason, judged))
    return verdicts


def num_tested(verdicts: Sequence[Verdict]) -> int:
    """How many comparisons the correction is over."""
    return sum(one.p_holm is not None for verdict in verdicts for one in verdict.findings)


def _found(comparison: Comparison, evidence: Mapping[str, Evidence]) -> Finding:
    first, second = (evidence.get(name, Evidence()) for name in (comparison.first, comparison.second))
    if comparison.measure == "accuracy":
        compared = compare_items(first.correct, second.correct)
        unpaired = set(first.correct) ^ set(second.correct)
        return Finding(comparison, compared, compared.p, unpaired=tuple(sorted(unpaired)))
    if comparison.measure == "spread":
        groups = [list(one.values.get("accuracy", {}).values()) for one in (first, second)]
        sds = (spread(groups[0]), spread(groups[1]))
        return Finding(comparison, None, brown_forsythe(groups), spreads=sds)
    a, b = (one.values.get(comparison.measure, {}) for one in (first, second))
    compared = compare_values(a, b)
    return Finding(comparison, compared, compared.p, unpaired=tuple(sorted(set(a) ^ set(b))))


def _judged(found: Finding, p_holm: float | None, margin: float) -> Finding:
    """The finding with its word, if it decides, and the reason for that word."""
    word, reason = "", ""
    if found.comparison.decides:
        word, reason = _word(found, p_holm, margin_of(found.comparison.measure, margin))
    return replace(found, p_holm=p_holm, word=word, reason=reason)


def _word(found: Finding, p_holm: float | None, margin: float) -> tuple[str, str]:
    compared, label = found.compared, f"{found.comparison.first} against {found.comparison.second}"
    if compared is None or not compared.seeds:
        return INCONCLUSIVE, f"{label}: no seed that both have"
    if compared.p is None or compared.mean is None or compared.low is None or compared.high is None:
        few = len(compared.seeds)
        seeds = f"only {few} shared seed{'s' if few > 1 else ''}, {FEWEST_SEEDS} are needed"
        return INCONCLUSIVE, f"{label}: {seeds if few < FEWEST_SEEDS else 'a single item'}"
    above = found.comparison.wants == "above"
    gain, most = (compared.mean, compared.high) if above else (-compared.mean, -compared.low)
    if p_holm is not None and p_holm < ALPHA:
        return (SUPPORTED, "") if gain > 0 else (NOT_SUPPORTED, f"{label}: significantly the other way round")
    if most < margin:
        return NOT_SUPPORTED, f"{label}: the interval excludes an effect as large as the margin"
    if compared.p < ALPHA and gain > 0:
        return INCONCLUSIVE, f"{label}: not significant after the correction"
    return INCONCLUSIVE, f"{label}: the interval is too wide, it holds both no effect and one as large as the margin"


def _reached(claim: Claim, findings: Sequence[Finding]) -> str:
    """What the intervals of the deciding comparisons say of the effects that the guide expects."""
    deciding = [one.compared for one in findings if one.comparison.decides]
    known = [one for one in deciding if one is not None and one.low is not None and one.high is not None]
    parts = []
    for label, least in claim.expected:
        if any(one.high < least for one in known if one.high is not None):
            word = "excluded"
        elif len(known) == len(deciding) and all(one.low > least for one in known if one.low is not None):
            word = "reached"
        else:
            word = "open"
        parts.append(f"{label} of {100 * least:g} points {word}")
    return "the guide's " + ", ".join(parts) if parts else ""


def _together(deciding: Sequence[Finding]) -> tuple[str, str]:
    words = [one.word for one in deciding]
    if NOT_SUPPORTED in words:
        word = NOT_SUPPORTED
    else:
        word = SUPPORTED if all(one == SUPPORTED for one in words) else INCONCLUSIVE
    return word, "; ".join(one.reason for one in deciding if one.word == word and one.reason)
