"""The head of the page: what is compared, and everyone at one look, broken and missing runs included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kava.lab.analysis.runs import RunResult
from kava.lab.analysis.study import COUNTED, Study, StudyMember, panels, plain, value
from kava.lab.page.markup import (
    NONE,
    Heading,
    Html,
    Row,
    code,
    counted,
    join,
    listed,
    mean_sd,
    missing,
    number,
    paragraph,
    seed_name,
    table,
    tag,
    text,
)

MISSING = "missing"


def head(study: Study) -> Html:
    """What is compared in sentences and facts, then the table of everyone."""
    return join([_sentence(study), _facts(study), _overview(study), _spread_note(study)])


def default_title(study: Study) -> str:
    for suite in study.suites.values():
        if suite.get("suite"):
            return f"Suite {suite['suite']}" + (f" on {suite['config']}" if suite.get("config") else "")
    return f"Report on {listed([m.label for m in study.members])}" if len(study.members) < 4 else "Report"


def _sentence(study: Study) -> Html:
    finished = sum(run.status in COUNTED for run in study.runs)
    seeds = f" over {counted(len(study.seeds), 'seed')}" if study.seeds else ""
    words = f"{counted(len(study.members), 'member')}{seeds}, {counted(len(study.runs), 'run')}"
    others = len(study.runs) - finished
    words += f", {others} of them not finished." if others else ", all of them finished." if finished > 1 else "."
    return paragraph(words, class_="lead")


def _facts(study: Study) -> Html:
    rows: list[tuple[str, Any]] = []
    for label in study.sets:
        found = [r for m in study.entries for _, r in study.score(m, label).results]
        if found:
            rows.append((f"set {label}", _about_set(found)))
    if study.left_out:
        words = f"{listed(study.left_out)}: parts of a set, or sets not asked for; --dataset NAME shows one"
        rows.append(("left out", words))
    configs = _distinct(value(run.recipe, "about.name") for run in study.runs)
    configs = configs or _distinct(r.fields.get("config") for run in study.runs for r in run.results)
    rows.append(("config", listed(configs) or NONE))
    models = _distinct(value(run.recipe, "model.name") for run in study.runs)
    rows.append(("model", listed(models) or NONE))
    rows.append(("seeds", listed(study.seeds) or NONE))
    rows.append(("versions", _versions(study) or NONE))
    return tag("dl", join(join([tag("dt", name), tag("dd", words)], "") for name, words in rows))


def _about_set(found: Sequence[RunResult]) -> Html:
    whole = {int(r.fields["set_size"]) for r in found if r.fields.get("set_size")}
    size = counted(found[0].total, "item")
    if whole and whole != {found[0].total}:
        size += f" of {number(max(whole))}"
    cues = _distinct(r.fields.get("cue") for r in found)
    modes = _distinct(r.mode for r in found)
    words = f"{size}, answered in mode {listed(modes)}" + (f", cue {listed(cues)}" if cues else "")
    sha = found[0].sha256
    return join([text(words), *([Html(f", data {code(sha[:12])}")] if sha else [])], "")


def _versions(study: Study) -> str:
    """Those of the results, else of the training; several of one library are all named."""
    found: dict[str, dict[str, None]] = {}
    sources = [r.fields.get("versions") or {} for run in study.runs for r in run.results]
    for one in [*sources, *[run.meta.get("versions") or {} for run in study.runs]]:
        for name, version in one.items():
            if version is not None:
                found.setdefault(name, {})[str(version)] = None
    return ", ".join(f"{name} {' and '.join(versions)}" for name, versions in found.items())


def _overview(study: Study) -> Html:
    rows: list[Row] = []
    titled = any(member.title for member in study.members)
    for group in panels(study.members):
        rows += [Heading(group.title)] if group.title else []
        for member in group.members:
            scores = [study.score(member, label) for label in study.sets]
            cells: list[Any] = [member.label, *([member.title] if titled else [])]
            cells.append(f"{max((len(s.results) for s in scores), default=0)} of {max(1, len(study.seeds))}")
            cells += [mean_sd(score.mean, score.sd) for score in scores]
            cells += [NONE if score.passes is None else f"{score.passes:.1f}" for score in scores]
            rows.append((*cells, status(study, member)))
    several = len(study.sets) > 1
    titles = [f"accuracy{' on ' + label if several else ''}, %" for label in study.sets]
    passes = [f"passes{' on ' + label if several else ''}" for label in study.sets]
    header = ("member", *(["what it is"] if titled else []), "seeds", *titles, *passes, "status")
    return table(header, rows, "Every member at one look")


def _spread_note(study: Study) -> Html:
    if not study.sets:
        return missing("No run has results yet.", "kava evaluate --checkpoint RUN/best_checkpoint --dataset SET")
    return paragraph(
        "Accuracy is the mean over seeds, with the sample standard deviation; seeds are those with results. Broken, "
        "stopped and missing runs enter no number.",
        class_="note",
    )


def status(study: Study, member: StudyMember) -> Html:
    """Finished, or what is wrong with which seed."""
    words: list[Html] = []
    absent = study.missing(member)
    finished = [run for run in member.runs if run.status in COUNTED]
    if finished:
        kind = "finished" if any(run.status == "finished" for run in finished) else "evaluated"
        unanswered = [run.seed for run in finished if not plain(run)]
        words.append(text(kind if len(finished) == len(member.runs) + len(absent) else f"{len(finished)} {kind}"))
        if unanswered:
            words.append(tag("span", f"{len(unanswered)} not evaluated ({_seeds(unanswered)})", class_="warn"))
    stopped = [run for run in member.runs if run.status == "stopped"]
    if stopped:
        words.append(
            tag("span", f"{len(stopped)} not finished ({_seeds([run.seed for run in stopped])})", class_="warn")
        )
    for run in member.runs:
        if run.status == "broken":
            line = study.broken.get(run.folder.resolve(), "")
            name = f"broken (seed {seed_name(run.seed)})"
            words.append(
                join([tag("span", name, class_="bad"), *([tag("span", line, class_="sub")] if line else [])], " ")
            )
    if absent:
        words.append(tag("span", f"{len(absent)} {MISSING} ({_seeds(absent)})", class_="warn"))
    return join(words, ", ")


def _seeds(seeds: Sequence[int | None]) -> str:
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(seed_name, seeds))}"


def _distinct(values: Any) -> list[str]:
    return list(dict.fromkeys(str(one) for one in values if one is not None))
