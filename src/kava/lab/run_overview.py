"""What `kava show` and `kava runs` print of run states."""

import math
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from kava import console, text_table
from kava.errors import DataError, RunError
from kava.lab.analysis.runs import RunResult, read_result
from kava.lab.analysis.validations import held_out_numbers
from kava.lab.ascii_chart import chart
from kava.lab.run_state import (
    BROKEN,
    CARD,
    FINISHED,
    INTERRUPTED,
    LOG,
    META,
    NOT_STARTED,
    RECIPE,
    RUNNING,
    RunState,
    find_run_folders,
    log_of,
    read_state,
)  # fmt: skip
from kava.progress import clock_time

COLOUR = {FINISHED: "green", BROKEN: "red", INTERRUPTED: "yellow"}
HEADER = ["run", "recipe", "seed", "state", "update", "loss", "best", "when"]


def runs_table(states: Sequence[RunState], root: Path, width: int | None = None) -> str:
    """A line per run; below it, what is broken."""
    rows = []
    for state in states:
        seed = "-" if state.seed is None else str(state.seed)
        loss = text_table.number(state.loss, 3)
        where = "." if state.folder == root else str(state.folder.relative_to(root))
        cells = [where, state.recipe or "-", seed, state.state, updates(state), loss, best(state), when(state)]
        rows.append(cells)
    problems = [f"{row[0]}: {state.problem}" for row, state in zip(rows, states, strict=True) if state.problem]
    return "\n".join([text_table.table(rows, HEADER, width=width), *(["", *problems] if problems else [])])


def updates(state: RunState) -> str:
    """40 of 400, or as much of it as is known."""
    if state.step is None:
        return "-"
    return f"{state.step}/{state.steps}" if state.steps else str(state.step)


def best(state: RunState) -> str:
    """The best validation: an accuracy in percent, or a cross-entropy."""
    if state.best is None:
        return "-"
    return f"{100 * state.best:.1f} %" if state.metric == "accuracy" else f"{state.metric} {state.best:.3f}"


def when(state: RunState) -> str:
    """Local time of the last change."""
    return "-" if state.when is None else datetime.fromtimestamp(state.when).strftime("%Y-%m-%d %H:%M")


def the_run(path: Path) -> Path:
    """The run's folder: itself, or the one around a checkpoint of it."""
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise RunError(f"{path} {what}", "kava runs lists the runs under outputs")
    if (path / CARD).is_file() and (path.absolute().parent / RECIPE).is_file():
        return path.absolute().parent if path.parent == Path() else path.parent
    if not any((path / name).is_file() for name in (RECIPE, META, LOG)) or (path / CARD).is_file():
        below = len(find_run_folders(path))
        hint = f"it has {below} below it: kava runs {shlex.quote(str(path))}" if below else "kava runs lists runs"
        raise RunError(f"{path} is no run's folder", hint)
    return path


def run_document(folder: Path) -> dict[str, Any]:
    """Everything that `kava show` says, for JSON."""
    state = read_state(folder)
    log = [] if state.state == BROKEN else log_of(folder)
    document = state.to_dict()
    curves = {name: curve for name, curve in _curves(state, log).items() if curve}
    document["curves"] = {
        name: [[x, y if math.isfinite(y) else None] for x, y in curve] for name, curve in curves.items()
    }
    document["held_out"] = held_out_numbers(log)
    results, problems = _results(folder)
    document["results"] = [
        {"set": r.set, "mode": r.mode, "accuracy": r.accuracy, "total": r.total, "file": str(r.path)} for r in results
    ]
    document["problems"] = [*([state.problem] if state.problem else []), *problems]
    document["files"] = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if path.name[0] != ".")
    document["next"] = next_commands(state, bool(results))
    return document


def show_text(folder: Path, columns: int = console.WIDTH) -> str:
    """The same for people: a colour, and control characters of files as escapes."""
    document, state = run_document(folder), read_state(folder)
    blocks = [_head(state)]
    for name, points in document["curves"].items():
        known = [(x, math.nan if y is None else y) for x, y in points]
        blocks.append(f"{name}, by update\n{chart(known, max(20, min(columns, 100) - 16))}")
    measured = [f"best validation: {best(state)}"] if state.best is not None else []
    held_out = "  ".join(f"{name} {value:.4g}" for name, value in document["held_out"].items())
    measured += [f"held out, last validation:  {held_out}"] if held_out else []
    for entry in document["results"]:
        right = f"{100 * entry['accuracy']:.1f} % of {entry['total']}"
        measured.append(f"{entry['set']} ({entry['mode']}): {right}  [{Path(entry['file']).name}]")
    measured += [f"problem: {problem}" for problem in document["problems"]]
    if measured:
        blocks.append("\n".join(measured))
    blocks.append("files: " + "  ".join(document["files"]))
    blocks.append("\n".join(["next:", *(_folded(command, columns) for command in document["next"])]))
    head, *others = blocks
    return "\n\n".join([head, *map(console.visible, others)])


def _head(state: RunState) -> str:
    meta = state.meta
    title = console.visible(f"{state.folder}: ") + console.paint(state.state, COLOUR.get(state.state, "dim"))
    rows = {"recipe": f"{state.recipe or '-'}, seed {'-' if state.seed is None else state.seed}"}
    rows["recipe"] += f", {state.line} line" if state.line else ""
    if state.model:
        trained, every = meta.get("trained_parameters"), meta.get("all_parameters")
        known = isinstance(trained, int) and isinstance(every, int)
        counts = f", {trained:,} of {every:,} parameters trained" if known else ""
        rows["model"] = f"{state.model}{counts}" + (f", on {meta['device']}" if meta.get("device") else "")
    if state.data:
        card = meta.get("data") if isinstance(meta.get("data"), dict) else {}
        count = card.get("examples") if card else None
        rows["data"] = state.data + (f", {count:,} examples" if isinstance(count, int) else "")
    spent = meta.get("seconds")
    took = f" in {clock_time(spent)}" if isinstance(spent, int | float) else ""
    rows["updates"] = f"{updates(state).replace('/', ' of ')}{took}; last change {when(state)}"
    return "\n".join([title, *(console.visible(f"  {name:<8} {text}") for name, text in rows.items())])


def _curves(state: RunState, log: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """The loss, and the validation measure that chooses the best checkpoint, by update."""
    names = {"loss": "loss", f"validation {state.metric}": f"eval_{state.metric}"}
    return {
        title: [
            (float(line["step"]), float(line[name]))
            for line in log
            if isinstance(line.get(name), int | float) and isinstance(line.get("step"), int)
        ]
        for title, name in names.items()
    }


def _results(folder: Path) -> tuple[list[RunResult], list[str]]:
    """The results files of the folder, and why some cannot be read."""
    results, problems = [], []
    for path in sorted(folder.glob("results_*.*")):
        try:
            results.append(read_result(path))
        except DataError as error:
            problems.append(error.message)
    return results, problems


def next_commands(state: RunState, evaluated: bool) -> list[str]:
    """What to type next for a run in this state."""
    folder = shlex.quote(str(state.folder))
    student = shlex.quote(str(state.folder / "best_checkpoint"))
    if state.state == RUNNING:
        return [f"kava show {folder}", f"tail -f {shlex.quote(str(state.folder / 'train.log'))}"]
    if state.state == BROKEN:
        return [f"ls -la {folder}"]
    commands = []
    if state.state in (INTERRUPTED, NOT_STARTED) and (words := _again(state)):
        commands.append(words)
    if (state.folder / "best_checkpoint").is_dir():
        commands += [] if evaluated else [f"kava evaluate --checkpoint {student}"]
        commands += [f"kava infer --checkpoint {student}", f"kava report {folder}"]
    return commands


def _again(state: RunState) -> str:
    """The command that made the run, continued in its folder; "" where it is not known."""
    words = state.meta.get("command")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return ""
    start = next((place for place, word in enumerate(words) if word in ("train", "distill")), None)
    if start is None:
        return ""
    rest, own = [], iter(words[start:])
    for word in own:
        name = word.partition("=")[0].replace("-", "_")
        if name in ("__output_dir", "__resume"):
            if "=" not in word:
                next(own, None)
        elif word != "--quiet":
            rest.append(word)
    return shlex.join(["kava", *rest, "--output_dir", str(state.folder), "--resume", "auto"])


def _folded(command: str, columns: int) -> str:
    """A command on lines that a shell reads as one."""
    lines = [""]
    for word in shlex.split(command):
        quoted = shlex.quote(word)
        if lines[-1] and len(lines[-1]) + len(quoted) + 6 > columns:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + quoted
    return "  " + " \\\n    ".join(lines)
