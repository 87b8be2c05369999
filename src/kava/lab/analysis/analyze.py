"""What a folder of runs says about the claims, as one document: experiments, verdicts, and the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from kava.lab.analysis.claim_data import BUDGET, Gathered, Member, gather
from kava.lab.analysis.claims import (
    ALPHA,
    MARGIN,
    RATIO_MARGIN,
    Claim,
    Evidence,
    Finding,
    Verdict,
    claims_of,
    judge,
    num_tested,
)
from kava.lab.analysis.stats import (
    RESAMPLES,
    Instability,
    PairedComparison,
    bootstrap,
    cohens_h,
    instability,
    mcnemar,
    spread,
    wilson,
)
from kava.lab.analysis.validations import held_out_numbers
from kava.provenance import versions

TERMS = {"loss": "loss", "ce": "ce_student", "kv": "kv", "codi": "codi"}


def analyse(
    base: Path, experiments: Sequence[str] = (), dataset: str | None = None, margin: float = MARGIN
) -> dict[str, Any]:
    """The whole analysis, ready for JSON: accuracies and differences are fractions, what is unknown is null."""
    found = gather(base, experiments, dataset)
    evidence = {member.name: _evidence(member, found) for member in found.members}
    known = claims_of([member.name for member in found.members])
    asked = [claim for claim in known if claim.source == "guide" or _answerable(claim, found)]
    verdicts = judge(asked, evidence, margin)
    results = found.results()
    return {
        "output_base": str(base),
        "dataset": found.set,
        "items": results[0].total if results else None,
        "data_sha256": next((result.sha256 for result in results if result.sha256), None),
        "seeds": found.seeds,
        "margin": margin,
        "ratio_margin": RATIO_MARGIN,
        "alpha": ALPHA,
        "corrected_over": num_tested(verdicts),
        "resamples": RESAMPLES,
        "budget": _budget(found),
        "experiments": [_experiment(member) for member in found.members],
        "claims": [_claim(verdict, evidence) for verdict in verdicts],
        "left_out": found.left_out,
        "versions": {"analysis": versions(), **_made_with(found)},
    }


def _budget(found: Gathered) -> dict[str, Any]:
    """What all runs share, as far as they say it."""
    known = {name: [fact(run) for run in found.runs()] for name, fact in BUDGET.items()}
    return {name: next((value for value in values if value is not None), None) for name, values in known.items()}


def _answerable(claim: Claim, found: Gathered) -> bool:
    """Claims of ours are asked where some comparison has runs of both members."""
    there = {member.name for member in found.members if member.runs}
    return any({one.first, one.second} <= there for one in claim.comparisons)


def _evidence(member: Member, found: Gathered) -> Evidence:
    """Instabilities as logarithms: they are compared as ratios."""
    values: dict[str, dict[int, float]] = {"instability": {}, "instability_loss": {}, "accuracy": {}}
    for seed, lines in member.logs.items():
        if seed is None:
            continue
        for name, term in (("instability", "ce_student"), ("instability_loss", "loss")):
            measured = instability(lines, term)
            if measured is not None and measured.jumps > 0:
                values[name][seed] = math.log(measured.jumps)
    values["accuracy"] = {seed: result.accuracy for seed, result in member.results.items() if seed is not None}
    return Evidence(found.correct.get(member.name, {}), values)


def _experiment(member: Member) -> dict[str, Any]:
    """A row of the table: means over the seeds that have the number, and every seed's own."""
    logs = list(member.logs.values())
    accuracies = [result.accuracy for result in member.results.values()]
    passes = [result.passes_mean for result in member.results.values() if result.passes_mean is not None]
    return {
        "name": member.name,
        "title": member.title,
        "mode": member.mode,
        "status": _status(member),
        "seeds": [seed for seed in member.runs if seed is not None],
        "absent": member.absent,
        "terms": {name: _mean([_last(lines, term) for lines in logs]) for name, term in TERMS.items()},
        "accuracy_mean": fmean(accuracies) if accuracies else None,
        "accuracy_std": spread(accuracies),
        "forward_passes": fmean(passes) if passes else None,
        "per_seed": [_seed_row(seed, member) for seed in member.results],
        "losses": _losses(member),
        "held_out": _held_out(logs),
        "stability": _stability([(instability(x), instability(x, "ce_student")) for x in logs]),
    }


def _status(member: Member) -> str:
    """One word, or how many of each where they differ: "finished", "4 finished, 1 broken"."""
    words = [run.status for run in member.runs.values()]
    words += [reason.partition(":")[0] for seed, reason in member.absent.items() if seed not in member.runs]
    kinds = ["missing" if word == "no run" else word for word in words]
    if len(set(kinds)) < 2:
        return kinds[0] if kinds else "missing"
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


def _last(lines: Sequence[Mapping[str, Any]], term: str) -> float | None:
    return next((float(line[term]) for line in reversed(lines) if isinstance(line.get(term), int | float)), None)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(known) if known else None


def _seed_row(seed: int | None, member: Member) -> dict[str, Any]:
    result = member.results[seed]
    correct = result.correct if result.correct is not None else round(result.accuracy * result.total)
    low, high = wilson(correct, result.total)
    return {
        "seed": seed,
        "accuracy": result.accuracy,
        "correct": correct,
        "total": result.total,
        "low": low,
        "high": high,
    }


def _losses(member: Member) -> dict[str, float | None]:
    """Held-out terms, where the results have them."""
    found = [result.fields.get("losses") or {} for result in member.results.values()]
    return {
        name: _mean([one.get(name) for one in found]) for name in dict.fromkeys(name for one in found for name in one)
    }


def _held_out(logs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, float | None]:
    """The last validations' numbers: cross-entropy, and of mixtures the distances to the teachers and their weights."""
    found = [held_out_numbers(lines) for lines in logs]
    names = dict.fromkeys(name for one in found for name in one)
    return {name: _mean([one.get(name) for one in found]) for name in names}


def _stability(found: Sequence[tuple[Instability | None, Instability | None]]) -> dict[str, float | None]:
    return {
        "jumps_loss": _mean([loss.jumps if loss else None for loss, _ in found]),
        "jumps_ce": _mean([ce.jumps if ce else None for _, ce in found]),
        "spikes": _mean([loss.spikes if loss else None for loss, _ in found]),
    }


def _claim(verdict: Verdict, evidence: Mapping[str, Evidence]) -> dict[str, Any]:
    return {
        "name": verdict.claim.name,
        "sentence": verdict.claim.sentence,
        "source": verdict.claim.source,
        "word": verdict.word,
        "reason": verdict.reason,
        "comparisons": [_comparison(finding, evidence) for finding in verdict.findings],
    }


def _comparison(found: Finding, evidence: Mapping[str, Evidence]) -> dict[str, Any]:
    one = found.comparison
    row: dict[str, Any] = {
        "first": one.first,
        "wants": one.wants,
        "second": one.second,
        "measure": one.measure,
        "decides": one.decides,
        "word": found.word,
        "reason": found.reason,
        "p": found.p,
        "p_holm": found.p_holm,
        "unpaired": list(found.unpaired),
    }
    if found.spreads is not None:
        row["spreads"] = list(found.spreads)
    if found.compared is not None:
        row |= _numbers(found.compared)
        if one.measure == "accuracy" and found.compared.seeds:
            row |= _by_item(found.compared.seeds, evidence[one.first], evidence[one.second])
    return row


def _numbers(compared: PairedComparison) -> dict[str, Any]:
    return {
        "seeds": list(compared.seeds),
        "items": compared.items,
        "differences": list(compared.differences),
        "difference": compared.mean,
        "error": compared.error,
        "low": compared.low,
        "high": compared.high,
        "p_flip": compared.p_flip,
        "d_z": compared.effect,
    }


def _by_item(seeds: Sequence[int], first: Evidence, second: Evidence) -> dict[str, Any]:
    """What pairs of runs and the items alone say; the seeds are taken as given here."""
    a, b = (np.array([one.correct[seed] for seed in seeds], dtype=float).mean(0) for one in (first, second))
    pairs = [mcnemar(np.asarray(first.correct[s]).tolist(), np.asarray(second.correct[s]).tolist()) for s in seeds]
    return {
        "cohens_h": cohens_h(float(a.mean()), float(b.mean())),
        "bootstrap": list(bootstrap(a, b)),
        "mcnemar": [{"seed": seed, **pair._asdict()} for seed, pair in zip(seeds, pairs, strict=True)],
    }


def _made_with(found: Gathered) -> dict[str, Any]:
    """What trained and evaluated: every version that occurs, so that a mixture shows."""
    trained = [run.meta for run in found.runs() if run.meta]
    asked = [result.fields for result in found.results()]
    return {
        "training": _distinct([meta.get("versions") or {} for meta in trained]),
        "training_git": sorted({str(meta["git"]) for meta in trained if meta.get("git")}),
        "training_device": sorted({str(meta["device"]) for meta in trained if meta.get("device")}),
        "evaluation": _distinct([fields.get("versions") or {} for fields in asked]),
    }


def _distinct(found: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    names = dict.fromkeys(name for one in found for name in one)
    return {name: sorted({str(one[name]) for one in found if one.get(name) is not None}) for name in names}
