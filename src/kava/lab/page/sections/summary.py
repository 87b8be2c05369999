"""The head of the page: what is compared, and a table of all members, with broken and missing runs."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from kava.lab.analysis.runs import RunResult
from kava.lab.analysis.study import COUNTED, Study, StudyMember, plain, value
from kava.lab.page.blocks import Block, Facts, Missing, Paragraph, Row, Table, rows_by_group
from kava.lab.page.formats import DASH, code, counted, distinct, join, listed, mean_sd, number, seed_name, styled
from kava.lab.page.sections.accuracy import EVALUATE


def summary(study: Study) -> list[Block]:
    """What is compared, in a sentence and as facts, then the table of all members."""
    finished = sum(run.status in COUNTED for run in study.runs)
    unfinished = len(study.runs) - finished
    seeds = f" over {counted(len(study.seeds), 'seed')}" if study.seeds else ""
    end = f", {unfinished} of them not finished." if unfinished else ", all of them finished." if finished > 1 else "."
    lead = f"{counted(len(study.members), 'member')}{seeds}, {counted(len(study.runs), 'run')}{end}"
    note = (
        "Accuracy is the mean over seeds, with the sample standard deviation; seeds are those with results. Broken, "
        "stopped and missing runs enter no number."
    )
    last = Paragraph(note, "note") if study.sets else Missing("No run has results yet.", EVALUATE)
    return [Paragraph(lead, "lead"), _facts(study), _overview(study), last]


def default_title(study: Study) -> str:
    for suite in study.suites.values():
        if suite.get("suite"):
            return f"Suite {suite['suite']}" + (f" on {suite['config']}" if suite.get("config") else "")
    return f"Report on {listed([m.label for m in study.members])}" if len(study.members) < 4 else "Report"


def _facts(study: Study) -> Facts:
    on_sets = {
        f"set {label}": [r for member in study.entries for _, r in study.score(member, label).results]
        for label in study.sets
    }
    rows: list[tuple[str, Any]] = [(name, _about_set(results)) for name, results in on_sets.items() if results]
    if study.left_out:
        words = f"{listed(study.left_out)}: parts of a set, or sets not asked for; --dataset NAME shows one"
        rows.append(("left out", words))
    fields = [r.fields for run in study.runs for r in run.results]
    configs = distinct(value(run.recipe, "about.name") for run in study.runs)
    facts = {
        "config": listed(configs or distinct(of_result.get("config") for of_result in fields)),
        "model": listed(distinct(value(run.recipe, "model.name") for run in study.runs)),
        "seeds": listed(study.seeds),
        "versions": _versions([*fields, *(run.meta for run in study.runs)]),
    }
    return Facts([*rows, *((name, words or DASH) for name, words in facts.items())])


def _about_set(results: Sequence[RunResult]) -> str:
    whole = {int(r.fields["set_size"]) for r in results if r.fields.get("set_size")}
    size = counted(results[0].total, "item")
    if whole and whole != {results[0].total}:
        size += f" of {number(max(whole))}"
    cues = distinct(r.fields.get("cue") for r in results)
    words = f"{size}, answered in mode {listed(distinct(r.mode for r in results))}"
    words += f", cue {listed(cues)}" if cues else ""
    sha = results[0].sha256
    return Markup("{}, data {}").format(words, code(sha[:12])) if sha else words


def _versions(sources: Sequence[Any]) -> str:
    """The libraries of results and of training; all versions of one library are named."""
    used = [source.get("versions") or {} for source in sources]
    versions = {name: distinct(of_source.get(name) for of_source in used) for of_all in used for name in of_all}
    return ", ".join(f"{name} {' and '.join(numbers)}" for name, numbers in versions.items() if numbers)


def _overview(study: Study) -> Table:
    titled = any(member.title for member in study.members)

    def row(member: StudyMember) -> Row:
        scores = [study.score(member, label) for label in study.sets]
        seeds = f"{max((len(s.results) for s in scores), default=0)} of {max(1, len(study.seeds))}"
        accuracies = [mean_sd(score.mean, score.sd) for score in scores]
        passes = [DASH if score.passes is None else f"{score.passes:.1f}" for score in scores]
        title = [member.title] if titled else []
        return (member.label, *title, seeds, *accuracies, *passes, _status(study, member))

    on_set = [f" on {label}" if len(study.sets) > 1 else "" for label in study.sets]
    measures = [*(f"accuracy{words}, %" for words in on_set), *(f"passes{words}" for words in on_set)]
    header = ("member", *(["what it is"] if titled else []), "seeds", *measures, "status")
    return Table(header, rows_by_group(study.members, row), "Every member at one look")


def _status(study: Study, member: StudyMember) -> Markup:
    """Finished, or what is wrong with which seed."""
    words: list[str] = []
    absent = study.missing(member)
    finished = [run for run in member.runs if run.status in COUNTED]
    if finished:
        kind = "finished" if any(run.status == "finished" for run in finished) else "evaluated"
        words.append(kind if len(finished) == len(member.runs) + len(absent) else f"{len(finished)} {kind}")
    words += _warning("not evaluated", [run.seed for run in finished if not plain(run)])
    words += _warning("not finished", [run.seed for run in member.runs if run.status == "stopped"])
    for run in (run for run in member.runs if run.status == "broken"):
        line = study.broken.get(run.folder.resolve(), "")
        name = styled(f"broken (seed {seed_name(run.seed)})", "bad")
        words.append(join([name, *([styled(line, "sub")] if line else [])]))
    return join([*words, *_warning("missing", absent)], ", ")


def _warning(kind: str, seeds: Sequence[int | None]) -> list[Markup]:
    """A count and its seeds, "2 missing (seeds 3, 4)"; [] without seeds."""
    names = ", ".join(map(seed_name, seeds))
    return [styled(f"{len(seeds)} {kind} (seed{'' if len(seeds) == 1 else 's'} {names})", "warn")] if seeds else []
