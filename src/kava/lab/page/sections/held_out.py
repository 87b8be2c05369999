"""Loss terms of the test items: how near every student's latents are to every compressor's targets."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from kava.lab.analysis.stats import spread
from kava.lab.analysis.study import Study, StudyMember, panels, value
from kava.lab.page.markup import NONE, Heading, Html, Row, counted, listed, missing, paragraph, table, tag
from kava.lab.page.sections.section import Section

KV = "kv_"
PPL = "ppl"  # exp(ce_student): nothing of its own
COMMAND = "kava evaluate --checkpoint RUN/best_checkpoint --dataset SET --losses"


def held_out(study: Study) -> Section:
    parts: list[Html] = []
    for label in study.sets:
        found = {member.label: _losses(study, member, label) for member in study.members}
        if any(found.values()):
            parts += [tag("h3", label)] if len(study.sets) > 1 else []
            parts += [_table(study, label, found), _about(study, label, found)]
    nothing = missing("No results hold losses.", COMMAND)
    return Section("held-out", "Held-out losses", tuple(parts) or (nothing,))


def _losses(study: Study, member: StudyMember, label: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for _, result in study.score(member, label).results:
        for name, loss in (result.fields.get("losses") or {}).items():
            if isinstance(loss, int | float) and name != PPL:
                found.setdefault(name, []).append(float(loss))
    return found


def _table(study: Study, label: str, found: dict[str, dict[str, list[float]]]) -> Html:
    names = list(dict.fromkeys(name for losses in found.values() for name in losses))
    names.sort(key=lambda name: name.startswith(KV))
    groups = panels([member for member in study.members if found[member.label]])
    means = {name: [fmean(losses[name]) for losses in found.values() if name in losses] for name in names}
    rows: list[Row] = []
    for group in groups:
        rows += [Heading(group.title)] if group.title else []
        for member in group.members:
            losses = found[member.label]
            seeds = max(map(len, losses.values()))
            cells = [_cell(member, name, losses.get(name, []), means[name]) for name in names]
            rows.append((member.label, seeds, *cells))
    return table(("member", "seeds", *names), rows, f"Held-out losses on {label}")


def _cell(member: StudyMember, name: str, values: list[float], column: list[float]) -> Any:
    """Mean (sd); distances are shaded, the nearest of the column darkest; a member's own targets are bold."""
    if not values:
        return NONE
    mean, sd = fmean(values), spread(values)
    small = f' <span class="sub">({_decimals(sd, column)})</span>' if sd is not None else ""
    words = Html(_decimals(mean, column) + small)
    if not name.startswith(KV):
        return words
    low, high = min(column), max(column)
    near = 0.0 if high == low else (high - mean) / (high - low)
    own = member.group != "none" and name == KV + str(value(member.runs[0].recipe, "rkv.method"))
    return tag("span", tag("b", words) if own else words, class_="heat", style=f"--h: {near:.2f}")


def _decimals(value: float, column: list[float]) -> str:
    """As many for a whole column: three digits of its smallest mean, three decimals at least."""
    small = min((abs(mean) for mean in column if mean), default=1.0)
    return f"{value:.{max(3, 1 - math.floor(math.log10(small)))}f}"


def _about(study: Study, label: str, found: dict[str, dict[str, list[float]]]) -> Html:
    words = [
        "Means over seeds (sample standard deviation). kv_ columns: mean squared distance of the latents' keys and values "
        "to what the compressor keeps of the teacher's cache, divided by the teacher's variance; about 1 for the best "
        "constant. Darker is nearer, column by column; bold is the compressor that the member was trained on."
    ]
    shown = [member for member in study.members if found[member.label]]
    thinking = [member for member in shown if any(name.startswith(KV) for name in found[member.label])]
    sizes = {value(run.recipe, "latent.num_tokens") for member in thinking for run in member.runs} - {None}
    if len(sizes) > 1:
        words.append("These members differ in M, and distances compare between students of one M only.")
    items: dict[str, dict[str, None]] = {}
    for member in shown:
        for _, result in study.score(member, label).results:
            for name, count in (result.fields.get("losses_items") or {}).items():
                items.setdefault(counted(int(count), "item"), {})[name] = None
    words += [f"{listed(list(names))} measured on {count}." for count, names in items.items()]
    return paragraph(*words, class_="note")
