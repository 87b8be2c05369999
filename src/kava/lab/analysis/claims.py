"""Verdicts on claims about a suite's members, each of three words a rule.

A claim rests on comparisons of two members; the deciding ones must all hold. Of a deciding comparison:

supported       the effect has the claimed sign and its two-sided p, corrected by Holm's method over all deciding
                comparisons of the analysis, is below 0.05 (three shared seeds at least)
not supported   it is significant with the other sign, or its 95 % interval excludes an effect as large as the margin
inconclusive    everything else; the reason is given

A claim is supported where all that decide are, not supported where one of them is not, inconclusive otherwise.
Nothing is imputed: a seed that one of the two members lacks is left out of their comparison and named.

A claim may name effects that the guide expects. Each is a separate hypothesis, read off the 95 % intervals without
correction: reached (all of them lie above it), excluded (one lies below it), open.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
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

# instability is that of the student's cross-entropy, which all members share: a large and constant KV term would make the
# whole loss look stable.
Measure = Literal["accuracy", "instability", "instability_loss", "spread"]


@dataclass(frozen=True)
class MemberComparison:
    """`first` is claimed to be above or below `second`; comparisons that do not decide are reported, uncorrected."""

    first: str
    wants: Literal["above", "below"]
    second: str
    measure: Measure = "accuracy"
    decides: bool = True


@dataclass(frozen=True)
class Claim:
    """A sentence and the comparisons that must hold for it. source: guide or ours."""

    name: str
    sentence: str
    comparisons: tuple[MemberComparison, ...]
    source: str = "guide"
    expected: tuple[tuple[str, float], ...] = ()  # of accuracy

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for pair in self.comparisons for name in (pair.first, pair.second)))


def _pairs(
    first: str, wants: Literal["above", "below"], *others: str, measure: Measure = "accuracy", decides: bool = True
) -> tuple[MemberComparison, ...]:
    """`first` against each of the others."""
    return tuple(MemberComparison(first, wants, other, measure, decides) for other in others)


E1, E2, E3, E4, E5 = "E1_baseline", "E2_full_kv", "E3_right_crop", "E4_rkv", "E5_shuffled"
CONTROL = "control"
OURS = (
    ("content_rkv", "The content of R-KV's targets matters: E4 is better than with another question's targets.",
     E4, "rkv_examples"),
    ("content_steps", "The content of the steps' targets matters: steps is better than with another question's targets.",
     "steps", "steps_examples"),
    ("choice", "R-KV's choice of tokens matters: E4 is better than random and than uniform choice.",
     E4, "random", "uniform"),
    ("steps", "Targets from the steps' results help: steps is better than E1.", "steps", E1),
    ("latents", "Latents that are iterated help without a KV term: E1 is better than pause.", E1, "pause"),
    ("thoughts", "Thoughts help: E4 is better than no_cot.", E4, "no_cot"),
)  # fmt: skip
CLAIMS = (
    Claim("compression", "KV compression keeps supervision: E2 is better than E1.", _pairs(E2, "above", E1)),
    Claim(
        "compensation",
        "KV alignment compensates for weak latent supervision: E4 is better than E1.",
        _pairs(E4, "above", E1) + _pairs(E2, "above", E1, decides=False) + _pairs(E3, "above", E1, decides=False),
    ),
    Claim(
        "stability",
        "R-KV is the most stable: E4's cross-entropy jumps less in training than those of E2 and E3.",
        (
            *_pairs(E4, "below", E2, E3, measure="instability"),
            *_pairs(E4, "below", E2, E3, measure="instability_loss", decides=False),
            *_pairs(E4, "below", E2, E3, measure="spread", decides=False),
        ),
    ),
    Claim(CONTROL, "The control: E5, R-KV shuffled in time, is worse than E4.", _pairs(E5, "below", E4)),
    *(Claim(name, sentence, _pairs(first, "above", *others), "ours") for name, sentence, first, *others in OURS),
)
WRITTEN = ("full_cot", "short_cot")  # whose answers come after a chain of thought in text
SHARED = ("no_cot", "pause", "full_cot")  # names of members that e1-e5 and methods have
METHODS = (*SHARED, "short_cot", "codi", "sim_cot", "coconut", "pccot", "kava", "kava_steps")
OF_METHODS = (
    ("kv_rkv", "KaVa's KV term helps: kava is better than pccot, which lacks it alone.", "kava>pccot"),
    ("kv_steps", "The KV term on the steps' results helps: kava_steps is better than pccot.", "kava_steps>pccot"),
    ("targets", "The steps' results teach more than R-KV's choice: kava_steps is better than kava.", "kava_steps>kava"),
    ("one_by_one", "One latent after the other is better than Jacobi rounds: codi is better than pccot.", "codi>pccot"),
    ("teacher", "A teacher is better than a curriculum: codi is better than coconut.", "codi>coconut"),
    ("decoder", "Writing the steps from the latents teaches them: sim_cot is better than codi.", "sim_cot>codi"),
    ("distilled", "Distilled latents are better than pause tokens: codi and pccot are better than pause.",
     "codi>pause", "pccot>pause"),
    ("against_text", "Latents are better than the steps' results in text: kava and kava_steps are better than short_cot.",
     "kava>short_cot", "kava_steps>short_cot"),
    ("needs_thoughts", "The task needs thoughts: full_cot is better than no_cot.", "full_cot>no_cot"),
)  # fmt: skip
SFT, SINGLE, FIXED, SIMILARITY, LEARNABLE, Z = "sft", "single_", "fixed", "similarity", "learnable", "z"
WITH_EXPECTED = ("several", "router")  # the claims for which the guide expects effects of a certain size
LONG = "fixed_3"  # fixed weights for as many updates as the last of three stages has in all
TEACHERS = (SFT, SINGLE, FIXED, "fixed_2", LONG, SIMILARITY, LEARNABLE, Z)  # SINGLE: every member that starts with it


def claims_of(names: Collection[str]) -> tuple[Claim, ...]:
    """The claims about these members: of E1 to E5, of methods and of several teachers where some members are about them."""
    teachers_alone = bool(names) and all(name in TEACHERS or name.startswith(SINGLE) for name in names)
    methods = bool((set(METHODS) - set(SHARED)) & set(names))
    methods_alone = methods and set(names) <= set(METHODS)
    guide = () if teachers_alone or methods_alone else CLAIMS
    return (*guide, *(_about_methods() if methods else ()), *_about_teachers(names))


def _about_methods() -> Iterator[Claim]:
    for name, sentence, *pairs in OF_METHODS:
        sides = [pair.split(">") for pair in pairs]
        yield Claim(name, sentence, tuple(MemberComparison(first, "above", second) for first, second in sides), "ours")


def _about_teachers(names: Collection[str]) -> tuple[Claim, ...]:
    claims = []
    if singles := [name for name in names if name.startswith(SINGLE)]:
        fused = [name for name in (SIMILARITY, LEARNABLE, Z) if name in names]
        beside = [pair for name in fused for pair in _pairs(name, "above", *singles, decides=False)]
        sentence = "Several teachers are better than the best one alone: fixed is better than every single_."
        expected = (("minimum", 0.03), ("ideal", 0.08))
        claims.append(
            Claim(WITH_EXPECTED[0], sentence, (*_pairs(FIXED, "above", *singles), *beside), expected=expected)
        )
    if LEARNABLE in names:
        equal = LONG if LONG in names else FIXED
        weaker = [name for name in (FIXED, SIMILARITY) if name != equal and (name == FIXED or name in names)]
        pairs = _pairs(LEARNABLE, "above", equal) + _pairs(LEARNABLE, "above", *weaker, decides=False)
        sentence = "A trained router is better than fixed weights, with as many updates: learnable is better than"
        expected = (("minimum", 0.015), ("ideal", 0.04))
        claims.append(Claim(WITH_EXPECTED[1], f"{sentence} {equal}.", pairs, expected=expected))
    for name, subject in ((FIXED, "Several teachers"), (Z, "Codes of several teachers")):
        if {SFT, name} <= set(names):
            sentence = f"{subject} are better than plain fine-tuning on the same text: {name} is better than sft."
            claims.append(Claim(f"{name}_sft", sentence, _pairs(name, "above", SFT), "ours"))
    return tuple(claims)


@dataclass(frozen=True)
class Evidence:
    """A member's results: seed -> right or wrong per item (same order for all members), and numbers per run.

    `values` holds "instability" and "instability_loss" as logarithms, and "accuracy" as fractions for its spread.
    """

    correct: Mapping[int, ArrayLike] = field(default_factory=dict)
    values: Mapping[str, Mapping[int, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """A comparison with its test; `word` is "" for one that does not decide."""

    comparison: MemberComparison
    compared: PairedComparison | None
    p: float | None
    p_holm: float | None = None
    word: str = ""
    reason: str = ""
    unpaired: tuple[int, ...] = ()  # seeds that only one of the two has
    spreads: tuple[float | None, float | None] | None = None  # the two sample sds, where spreads are compared


@dataclass(frozen=True)
class Verdict:
    """A claim with its word, the reason for it, and its comparisons."""

    claim: Claim
    word: str
    reason: str
    findings: tuple[Finding, ...]


def judge(claims: Sequence[Claim], evidence: Mapping[str, Evidence], margin: float = MARGIN) -> list[Verdict]:
    """A verdict for every claim. Holm's correction is over all deciding comparisons that have a p."""
    tested = [[_tested(comparison, evidence) for comparison in claim.comparisons] for claim in claims]
    corrected = iter(holm([f.p if f.comparison.decides else None for findings in tested for f in findings]))
    verdicts = []
    for claim, findings in zip(claims, tested, strict=True):
        judged = tuple(_judged(finding, next(corrected), margin) for finding in findings)
        deciding = [finding for finding in judged if finding.comparison.decides]
        words = {finding.word for finding in deciding}
        word = next((word for word in (NOT_SUPPORTED, INCONCLUSIVE) if word in words), SUPPORTED)
        reasons = [finding.reason for finding in deciding if finding.word == word] + [_reached(claim, deciding)]
        verdicts.append(Verdict(claim, word, "; ".join(filter(None, reasons)), judged))
    return verdicts


def num_tested(verdicts: Sequence[Verdict]) -> int:
    """The number of comparisons that the correction is over."""
    return sum(finding.p_holm is not None for verdict in verdicts for finding in verdict.findings)


def _tested(comparison: MemberComparison, evidence: Mapping[str, Evidence]) -> Finding:
    first, second = (evidence.get(name, Evidence()) for name in (comparison.first, comparison.second))
    if comparison.measure == "spread":
        groups = [list(member.values.get("accuracy", {}).values()) for member in (first, second)]
        return Finding(comparison, None, brown_forsythe(groups), spreads=(spread(groups[0]), spread(groups[1])))
    if comparison.measure == "accuracy":
        seeds = set(first.correct) ^ set(second.correct)
        compared = compare_items(first.correct, second.correct)
    else:
        a, b = (member.values.get(comparison.measure, {}) for member in (first, second))
        seeds, compared = set(a) ^ set(b), compare_values(a, b)
    return Finding(comparison, compared, compared.p, unpaired=tuple(sorted(seeds)))


def _judged(finding: Finding, p_holm: float | None, margin: float) -> Finding:
    """The finding with its corrected p and, if it decides, its word and reason."""
    if not finding.comparison.decides:
        return finding
    smallest = margin if finding.comparison.measure == "accuracy" else math.log1p(RATIO_MARGIN)
    word, reason = _word(finding, p_holm, smallest)
    return replace(finding, p_holm=p_holm, word=word, reason=reason)


def _word(finding: Finding, p_holm: float | None, margin: float) -> tuple[str, str]:
    compared, label = finding.compared, f"{finding.comparison.first} against {finding.comparison.second}"
    if compared is None or not compared.seeds:
        return INCONCLUSIVE, f"{label}: no seed that both have"
    if compared.p is None or compared.difference is None or compared.low is None or compared.high is None:
        few = len(compared.seeds)
        seeds = f"only {few} shared seed{'s' if few > 1 else ''}, {FEWEST_SEEDS} are needed"
        return INCONCLUSIVE, f"{label}: {seeds if few < FEWEST_SEEDS else 'a single item'}"
    above = finding.comparison.wants == "above"
    gain, most = (compared.difference, compared.high) if above else (-compared.difference, -compared.low)
    if p_holm is not None and p_holm < ALPHA:
        return (SUPPORTED, "") if gain > 0 else (NOT_SUPPORTED, f"{label}: significantly the other way round")
    if most < margin:
        return NOT_SUPPORTED, f"{label}: the interval excludes an effect as large as the margin"
    if compared.p < ALPHA and gain > 0:
        return INCONCLUSIVE, f"{label}: not significant after the correction"
    return INCONCLUSIVE, f"{label}: the interval is too wide, it holds both no effect and one as large as the margin"


def _reached(claim: Claim, deciding: Sequence[Finding]) -> str:
    """Which of the effects that the guide expects the intervals of the deciding comparisons reach or exclude."""
    compared = [finding.compared for finding in deciding if finding.compared is not None]
    lows = [pair.low for pair in compared if pair.low is not None]
    highs = [pair.high for pair in compared if pair.high is not None]
    parts = []
    for label, effect in claim.expected:
        reached = len(lows) == len(deciding) and all(low > effect for low in lows)
        word = "excluded" if any(high < effect for high in highs) else "reached" if reached else "open"
        parts.append(f"{label} of {100 * effect:g} points {word}")
    return "the guide's " + ", ".join(parts) if parts else ""
