"""The words of `kava analyze` with their numbers, as its report has them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from kava.errors import DataError
from kava.lab.analysis.claim_data import unequal_words
from kava.lab.analysis.runs import read_mapping
from kava.lab.analysis.study import Study
from kava.lab.page.blocks import Block, Details, Missing, PageSection, Paragraph, Row, Subheading, Table
from kava.lab.page.formats import DASH, counted, join, listed, number, p_value, styled

FILE = "EXPERIMENT_REPORT.json"
WORDS = {"supported": "good", "not supported": "bad", "inconclusive": "warn"}
COMMAND = "kava analyze --output_base FOLDER"
Document = Mapping[str, Any]


def claims(study: Study) -> PageSection:
    path = find_report(study)
    if path is None:
        return PageSection("claims", "Claims", (Missing("The runs were not analysed.", COMMAND),))
    data = read_mapping(path)
    try:
        return PageSection("claims", "Claims", tuple(_parts(study, data)))
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path} is no analysis ({type(error).__name__}: {error})", f"make it again: {COMMAND}"
        ) from error


def find_report(study: Study) -> Path | None:
    """The report of the analysis in a folder of runs, or in the folder above."""
    folders = [folder for root in study.roots for folder in (root, root.resolve().parent)]
    return next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)


def _parts(study: Study, data: Document) -> list[Block]:
    stale = _stale(study, data)
    if stale:
        return [Missing(f"The analysis is of other results ({stale}); it is not shown.", COMMAND)]
    parts: list[Block] = [
        Paragraph(
            f"On {data['dataset']}, {counted(data['items'] or 0, 'item')}, seeds {listed(data['seeds'])}. "
            f"Supported: significant with the claimed sign at {100 * data['alpha']:g} %, two-sided, Holm-corrected over "
            f"{counted(data['corrected_over'], 'comparison')}. Not supported: significant with the other sign, or the 95 % "
            f"interval excludes an effect of {100 * data['margin']:g} points. Inconclusive: everything else."
        )
    ]
    if work := data.get("unequal"):
        parts.insert(0, Paragraph(unequal_words(work)))
    for of_guide, title in ((True, "Claims of the guide"), (False, "Claims of ours")):
        of_source = [claim for claim in data["claims"] if (claim["source"] == "guide") == of_guide]
        rows = [(claim["sentence"], _word(claim["word"]), _why(claim)) for claim in of_source]
        if rows:
            parts += [Subheading(title), Table(("claim", "word", "what decides"), rows, title, wrap=True)]
    comparisons = [_comparison(claim, entry) for claim in data["claims"] for entry in claim["comparisons"]]
    header = ("claim", "comparison", "measure", "word", "seeds", "items", "difference", "95 % interval", "p", "p, Holm",
              "effect d_z", "McNemar p by seed")  # fmt: skip
    note = Paragraph(
        "Differences of accuracy are in points, those of training's restlessness are ratios. Comparisons without a word "
        "stand beside the claim and decide nothing."
    )
    table = Table(header, comparisons, "Comparisons behind the claims")
    return [*parts, Details("Numbers behind these words", (table, note))]


def _word(word: str) -> str:
    return styled(word, f"word {WORDS.get(word, '')}".strip()) if word else DASH


def _why(claim: Document) -> Markup:
    """The numbers of every comparison that decides, and the reason for the word."""
    lines: list[str] = []
    for entry in claim["comparisons"]:
        if entry["decides"] and entry.get("difference") is not None:
            unit = "points" if entry["measure"] == "accuracy" else "times"
            interval = "" if entry.get("low") is None else f" ({_interval(entry)})"
            p = p_value(entry["p_holm"])
            p = ("p " if p.startswith("<") else "p = ") + p
            p = "" if entry["p_holm"] is None else ", " + p.replace(" ", "\u00a0")
            effect = _effect(entry, "difference")
            lines.append(f"{entry['first']} against {entry['second']}: {effect} {unit}{interval}{p}")
    if claim["reason"]:
        lines.append(styled(claim["reason"], "sub"))
    return join(lines, "<br>")


def _comparison(claim: Document, entry: Document) -> Row:
    words = (
        claim["name"],
        join([entry["first"], entry["wants"], entry["second"]]),
        entry["measure"],
        _word(entry["word"]),
    )
    counts = (len(entry.get("seeds") or ()) or DASH, number(entry.get("items")))
    tests = (_effect(entry, "difference"), _interval(entry), p_value(entry["p"]), p_value(entry["p_holm"]))
    by_seed = ", ".join(f"{pair['seed']}: {p_value(pair['p'])}" for pair in entry.get("mcnemar") or [])
    return *words, *counts, *tests, number(entry.get("d_z"), 3), by_seed or DASH


def _effect(entry: Document, key: str) -> str:
    """An accuracy in points, another measure as a ratio."""
    value = entry.get(key)
    if value is None:
        return DASH
    return f"{100 * value:+.1f}" if entry["measure"] == "accuracy" else f"{math.exp(value):.2f}"


def _interval(entry: Document) -> str:
    return DASH if entry.get("low") is None else f"{_effect(entry, 'low')} to {_effect(entry, 'high')}"


def _stale(study: Study, data: Document) -> str:
    """A member and seed whose accuracy differs from the analysis; "" if there is none."""
    members = {member.label: member for member in study.members}
    for row in data["experiments"]:
        member = members.get(row["name"])
        if member is None or data["dataset"] is None:
            continue
        now = {run.seed: result.accuracy for run, result in study.score(member, data["dataset"]).results}
        analysed = {entry["seed"]: entry["accuracy"] for entry in row["per_seed"]}
        for seed, accuracy in analysed.items():
            if seed in now and not math.isclose(now[seed], accuracy, abs_tol=1e-9):
                return f"{row['name']}, seed {seed}: {number(accuracy)} there, {number(now[seed])} now"
        more = sorted(str(seed) for seed in set(now) - set(analysed))
        if more:
            return f"{row['name']}: seed {listed(more)} came later"
    return ""
