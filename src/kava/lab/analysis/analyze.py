"""The analysis of a folder of runs as one document: experiments, verdicts on claims, and the numbers that support them."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from kava.lab.analysis.claim_data import BUDGET, WORK, ClaimData, claim_data, work_of
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
from kava.lab.analysis.runs import RunResult
from kava.lab.analysis.stats import RESAMPLES, bootstrap, cohens_h, instability, mcnemar, spread, wilson
from kava.lab.analysis.study import StudyMember, label_of
from kava.lab.analysis.validations import held_out_numbers
from kava.provenance import versions

TERMS = {"loss": "loss", "ce": "ce_student", "kv": "kv", "codi": "codi"}
Log = Sequence[Mapping[str, Any]]


def analyse(
    base: Path,
    experiments: Sequence[str] = (),
    dataset: str | None = None,
    margin: float = MARGIN,
    unequal: bool = False,
) -> dict[str, Any]:
    """The whole analysis, ready for JSON: accuracies and differences are fractions, unknown values null."""
    data = claim_data(base, experiments, dataset, unequal)
    members = data.study.members
    evidence = {member.label: _evidence(member, data) for member in members}
    known = claims_of([member.label for member in members])
    claims = [claim for claim in known if claim.source == "guide" or _answerable(claim, members)]
    verdicts = judge(claims, evidence, margin)
    differs = [name for name, fact in WORK.items() if len({fact(run) for run in data.study.runs} - {None}) > 1]
    results = [result for member in members for result in data.study.results(member).values()]
    return {
        "output_base": str(base),
        "dataset": next(iter(data.study.sets), None),
        "rehearsal": any(label_of(result) != result.set for result in results),
        "items": results[0].total if results else None,
        "data_sha256": _first(result.sha256 for result in results),
        "seeds": data.seeds,
        "margin": margin,
        "ratio_margin": RATIO_MARGIN,
        "alpha": ALPHA,
        "corrected_over": num_tested(verdicts),
        "resamples": RESAMPLES,
        "budget": {name: _first(map(fact, data.study.runs)) for name, fact in BUDGET.items()} | dict.fromkeys(differs),
        "unequal": {member.label: work_of(member) for member in members if member.runs} if differs else {},
        "experiments": [_experiment(member, data) for member in members],
        "claims": [_claim(verdict, evidence) for verdict in verdicts],
        "left_out": data.left_out,
        "versions": {"analysis": versions(), **_made_with(data, results)},
    }


def _first(values: Iterable[Any]) -> Any:
    """The first value that is known."""
    return next((value for value in values if value is not None), None)


def _answerable(claim: Claim, members: Sequence[StudyMember]) -> bool:
    """True if some comparison of the claim has runs of both members."""
    with_runs = {member.label for member in members if member.runs}
    return any({comparison.first, comparison.second} <= with_runs for comparison in claim.comparisons)


def _evidence(member: StudyMember, data: ClaimData) -> Evidence:
    """A member's judged items, accuracies, and instabilities as logarithms, since those are compared as ratios."""
    values: dict[str, dict[int, float]] = {}
    for name, key in (("instability", "jumps_ce"), ("instability_loss", "jumps_loss")):
        jumps = {seed: _stability(log)[key] for seed, log in data.study.logs[member.label].items() if seed is not None}
        values[name] = {seed: math.log(value) for seed, value in jumps.items() if value}
    results = data.study.results(member)
    values["accuracy"] = {seed: result.accuracy for seed, result in results.items() if seed is not None}
    return Evidence(data.correct.get(member.label, {}), values)


def _experiment(member: StudyMember, data: ClaimData) -> dict[str, Any]:
    """A row of the table: means over the seeds that have the number, and every seed's own."""
    logs = list(data.study.logs[member.label].values())
    results = data.study.results(member)
    accuracies = [result.accuracy for result in results.values()]
    return {
        "name": member.label,
        "title": member.title,
        "mode": member.mode,
        "status": _status(member, data.absent[member.label]),
        "seeds": [run.seed for run in member.runs if run.seed is not None],
        "absent": data.absent[member.label],
        "terms": {name: _mean([_last(log, term) for log in logs]) for name, term in TERMS.items()},
        "accuracy_mean": fmean(accuracies) if accuracies else None,
        "accuracy_std": spread(accuracies),
        "forward_passes": _mean([result.passes_mean for result in results.values()]),
        "per_seed": [_seed_row(seed, result) for seed, result in results.items()],
        "losses": _means([result.fields.get("losses") or {} for result in results.values()]),
        "held_out": _means([held_out_numbers(log) for log in logs]),
        "stability": _means([_stability(log) for log in logs] or [_stability(())]),
    }


def _status(member: StudyMember, absent: Mapping[int, str]) -> str:
    """One word, or the count of each where they differ: "finished", "4 finished, 1 broken"."""
    seeds = {run.seed for run in member.runs}
    words = [run.status for run in member.runs]
    words += [reason.partition(":")[0] for seed, reason in absent.items() if seed not in seeds]
    kinds = Counter("missing" if word == "no run" else word for word in words)
    if len(kinds) < 2:
        return next(iter(kinds), "missing")
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _last(log: Log, term: str) -> float | None:
    return next((float(line[term]) for line in reversed(log) if isinstance(line.get(term), int | float)), None)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(known) if known else None


def _means(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Name -> mean over the rows that have the number."""
    return {
        name: _mean([row.get(name) for row in rows]) for name in dict.fromkeys(name for row in rows for name in row)
    }


def _stability(log: Log) -> dict[str, float | None]:
    loss, ce = instability(log), instability(log, "ce_student")
    jumps = {"jumps_loss": loss.jumps if loss else None, "jumps_ce": ce.jumps if ce else None}
    return {**jumps, "spikes": loss.spikes if loss else None}


def _seed_row(seed: int | None, result: RunResult) -> dict[str, Any]:
    correct = result.correct if result.correct is not None else round(result.accuracy * result.total)
    interval = wilson(correct, result.total)._asdict()
    return {"seed": seed, "accuracy": result.accuracy, "correct": correct, "total": result.total, **interval}


def _claim(verdict: Verdict, evidence: Mapping[str, Evidence]) -> dict[str, Any]:
    claim = verdict.claim
    return {
        "name": claim.name,
        "sentence": claim.sentence,
        "source": claim.source,
        "word": verdict.word,
        "reason": verdict.reason,
        "comparisons": [_comparison(finding, evidence) for finding in verdict.findings],
    }


def _comparison(finding: Finding, evidence: Mapping[str, Evidence]) -> dict[str, Any]:
    comparison, compared = finding.comparison, finding.compared
    row = asdict(finding)
    row |= row.pop("comparison") | (row.pop("compared") or {})
    if finding.spreads is None:
        del row["spreads"]
    if compared is not None:
        row["d_z"] = compared.d_z
        if comparison.measure == "accuracy" and compared.seeds:
            row |= _by_item(compared.seeds, evidence[comparison.first], evidence[comparison.second])
    return row


def _by_item(seeds: Sequence[int], first: Evidence, second: Evidence) -> dict[str, Any]:
    """Tests over pairs of runs and over items alone, for these very seeds."""
    right = [[np.asarray(member.correct[seed], dtype=bool) for seed in seeds] for member in (first, second)]
    a, b = (np.mean(of_member, axis=0) for of_member in right)
    return {
        "cohens_h": cohens_h(float(a.mean()), float(b.mean())),
        "bootstrap": bootstrap(a, b),
        "mcnemar": [{"seed": seed, **mcnemar(*pair)._asdict()} for seed, *pair in zip(seeds, *right, strict=True)],
    }


def _made_with(data: ClaimData, results: Sequence[RunResult]) -> dict[str, Any]:
    """Every version of the software that trained and evaluated, so that a mix of versions shows."""
    metas = [run.meta for run in data.study.runs if run.meta]
    return {
        "training": _distinct([meta.get("versions") or {} for meta in metas]),
        "training_git": sorted({str(meta["git"]) for meta in metas if meta.get("git")}),
        "training_device": sorted({str(meta["device"]) for meta in metas if meta.get("device")}),
        "evaluation": _distinct([result.fields.get("versions") or {} for result in results]),
    }


def _distinct(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: sorted({str(row[name]) for row in rows if row.get(name) is not None}) for name in names}
