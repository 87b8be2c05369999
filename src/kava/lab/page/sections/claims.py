"""The words of `kava analyze`, with their numbers. Nothing is judged here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kava.errors import DataError
from kava.lab.analysis.runs import read_mapping
from kava.lab.analysis.study import Study
from kava.lab.page.markup import (
    NONE,
    Html,
    Row,
    counted,
    details,
    join,
    listed,
    missing,
    number,
    p_value,
    paragraph,
    table,
    tag,
)
from kava.lab.page.sections.section import Section

FILE = "EXPERIMENT_REPORT.json"
WORDS = {"supported": "good", "not supported": "bad", "inconclusive": "warn"}
COMMAND = f"kava analyze --output_base FOLDER --save_json FOLDER/{FILE}"
Document = Mapping[str, Any]


def claims(study: Study) -> Section:
    path = find(study)
    if path is None:
        return Section("claims", "Claims", (missing("The runs were not analysed.", COMMAND),))
    data = read_mapping(path)
    try:
        return Section("claims", "Claims", tuple(_parts(study, data)))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no analysis ({type(error).__name__}: {error})", f"make it again: {COMMAND}"
        ) from error


def find(study: Study) -> Path | None:
    """The analysis in a folder of runs, or right above one."""
    folders = [folder for root in study.roots for folder in (root, root.resolve().parent)]
    return next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)


def _parts(study: Study, data: Document) -> list[Html]:
    stale = _stale(study, data)
    if stale:
        words = f"The analysis is of other results ({stale}); it is not shown."
        return [missing(words, COMMAND)]
    head = paragraph(
        f"On {data['dataset']}, {counted(data['items'] or 0, 'item')}, seeds {listed(data['seeds'])}. "
        f"Supported: significant with the claimed sign at {100 * data['alpha']:g} %, two-sided, Holm-corrected over "
        f"{counted(data['corrected_over'], 'comparison')}. Not supported: significant with the other sign, or the 95 % "
        f"interval excludes an effect of {100 * data['margin']:g} points. Inconclusive: everything else."
    )
    parts = [head]
    for source, title in (("guide", "Claims of the guide"), ("ours", "Claims of ours")):
        found = [claim for claim in data["claims"] if (claim["source"] == "guide") == (source == "guide")]
        if found:
            rows = [(claim["sentence"], _word(claim["word"]), _why(claim)) for claim in found]
            parts += [tag("h3", title), table(("claim", "word", "what decides"), rows, title, words=True)]
    comparisons: list[Row] = [_comparison(claim, one) for claim in data["claims"] for one in claim["comparisons"]]
    head_row = ("claim", "comparison", "measure", "word", "seeds", "items", "difference", "95 % interval", "p", "p, Holm",
                "effect d_z", "McNemar p by seed")  # fmt: skip
    behind = table(head_row, comparisons, "Comparisons behind the claims")
    note = paragraph(
        "Differences of accuracy are in points, those of training's restlessness are ratios. Comparisons without a word "
        "stand beside the claim and decide nothing."
    )
    return [*parts, details("Numbers behind these words", behind, note)]


def _word(word: str) -> Html | str:
    return tag("span", word, class_=f"word {WORDS.get(word, '')}".strip()) if word else NONE


def _why(claim: Document) -> Html:
    """The numbers of every comparison that decides, and the reason for the word."""
    lines: list[Any] = []
    for one in (one for one in claim["comparisons"] if one["decides"]):
        ratio = one["measure"] != "accuracy"
        if one.get("difference") is not None:
            words = f"{one['first']} against {one['second']}: {_effect(one['difference'], ratio)}"
            words += " times" if ratio else " points"
            words += "" if one.get("low") is None else f" ({_span(one, ratio)})"
            lines.append(words + ("" if one["p_holm"] is None else f", p\u00a0{_relation(one['p_holm'])}"))
    if claim["reason"]:
        lines.append(tag("span", claim["reason"], class_="sub"))
    return join(lines, "<br>")


def _relation(p: float) -> str:
    """= 0.03 or < 0.0001, not to be broken into lines."""
    shown = p_value(p)
    return (shown if shown.startswith("<") else f"= {shown}").replace(" ", "\u00a0")


def _span(one: Document, ratio: bool) -> str:
    return f"{_effect(one['low'], ratio)} to {_effect(one['high'], ratio)}"


def _comparison(claim: Document, one: Document) -> Row:
    ratio = one["measure"] != "accuracy"
    pairs = one.get("mcnemar") or []
    seeds = one.get("seeds")
    return (
        claim["name"],
        join([one["first"], one["wants"], one["second"]], " "),
        one["measure"],
        _word(one["word"]),
        len(seeds) if seeds else NONE,
        number(one.get("items")),
        _effect(one.get("difference"), ratio),
        NONE if one.get("low") is None else _span(one, ratio),
        NONE if one["p"] is None else p_value(one["p"]),
        NONE if one["p_holm"] is None else p_value(one["p_holm"]),
        number(one.get("d_z"), 3),
        ", ".join(f"{pair['seed']}: {p_value(pair['p'])}" for pair in pairs) or NONE,
    )


def _effect(value: float | None, ratio: bool) -> str:
    if value is None:
        return NONE
    return f"{math.exp(value):.2f}" if ratio else f"{100 * value:+.1f}"


def _stale(study: Study, data: Document) -> str:
    """A member and seed whose accuracy the analysis has otherwise; "" if there is none."""
    members = {member.label: member for member in study.members}
    for row in data["experiments"]:
        member = members.get(row["name"])
        if member is None or data["dataset"] is None:
            continue
        now = {run.seed: result.accuracy for run, result in study.score(member, data["dataset"]).results}
        for one in row["per_seed"]:
            if one["seed"] in now and not math.isclose(now[one["seed"]], one["accuracy"], abs_tol=1e-9):
                return f"{row['name']}, seed {one['seed']}: {number(one['accuracy'])} there, {number(now[one['seed']])} now"
        more = sorted(str(seed) for seed in set(now) - {one["seed"] for one in row["per_seed"]})
        if more:
            return f"{row['name']}: seed {listed(more)} came later"
    return ""
