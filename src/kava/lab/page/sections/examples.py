"""Questions of the test set with each member's answers, right and wrong, from the saved predictions."""

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from kava.config.typed_file import read_dicts
from kava.lab.analysis.runs import RunResult
from kava.lab.analysis.study import Study, StudyMember
from kava.lab.page.blocks import Block, Paragraph, Row, Table
from kava.lab.page.formats import DASH, counted, seed_name, styled
from kava.run_files import AGAIN
from kava.run_files import Prediction as StoredPrediction

Prediction = Mapping[str, Any]
Answers = dict[Any, Prediction]  # by the item's id
MEMBERS = 4  # compared in one table, at most
EACH = 3  # questions that are answered right, and as many wrong
LONGEST = 160  # characters of an answer


def examples(study: Study, label: str) -> Iterator[Block]:
    """The first questions that the first member gets right and those it gets wrong, with the others' answers beside."""
    answers = {member.label: (run.seed, _answers(result)) for member, run, result in _first_results(study, label)}
    answers = {name: (seed, items) for name, (seed, items) in answers.items() if items}
    if not answers:
        return
    chosen = dict(list(answers.items())[:MEMBERS])
    leader = next(iter(chosen))
    items = chosen[leader][1]
    rows: list[Row] = []
    for right in (True, False):
        for key in [key for key, item in items.items() if item["correct"] is right][:EACH]:
            cells = [_cell(of_member.get(key)) for _, of_member in chosen.values()]
            rows.append((str(items[key]["question"]), str(items[key].get("gold", DASH)), *cells))
    seeds = ", ".join(f"{name}: seed {seed_name(seed)}" for name, (seed, _) in chosen.items())
    share = f"{sum(item['correct'] for item in items.values()):,} of {counted(len(items), 'question')}"
    yield Paragraph(
        f"{label}: the first questions that {leader} answers right, then the first that it answers wrong ({share} are right); "
        f"the answers as they were generated ({seeds}).",
        "note",
    )
    yield Table(("question", "right answer", *chosen), rows, f"questions of {label} with answers", wrap=True)


def _first_results(study: Study, label: str) -> Iterator[tuple[StudyMember, Any, RunResult]]:
    """Each entry's first seed with results; a member's other modes, such as its chain of thought, right behind it."""
    scores = [(entry, study.score(entry, label)) for entry in study.entries]
    known = [(entry, *score.results[0]) for entry, score in scores if score.results]
    order = {entry.label: position for position, (entry, _, _) in enumerate(known)}

    def base(entry: StudyMember) -> int:
        return min((order[name] for name in order if entry.label.startswith(f"{name} (")), default=order[entry.label])

    yield from sorted(known, key=lambda result: (base(result[0]), order[result[0].label]))


def _answers(result: RunResult) -> Answers:
    """The predictions that hold question, text and verdict; {} where they were not kept."""
    path = result.path.with_name("predictions_" + result.path.stem.removeprefix("results_") + ".jsonl")
    lines = read_dicts(path, StoredPrediction, AGAIN) if path.is_file() else []
    whole = (line for line in lines if {"question", "text"} <= line.keys())
    return {line["id"]: line for line in whole}


def _cell(item: Prediction | None) -> Any:
    if item is None:
        return DASH
    text = " ".join(str(item["text"]).split())
    text = text if len(text) <= LONGEST else text[:LONGEST] + "..."
    text = text or "(nothing)"
    return text if item["correct"] else Markup("{} {}").format(text, styled("(wrong)", "bad"))
