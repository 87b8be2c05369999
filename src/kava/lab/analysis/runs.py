"""What runs left behind, read back: results, logs, predictions. Nothing is filled in; what cannot be read is named."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.config.text import parse_text
from kava.errors import ConfigError, DataError, RunError

SUITE = "suite.json"
MODES = ("latent", "cot", "direct")
NOT_RUNS = ("best_checkpoint", "checkpoint-", "logs", "wandb", "trackio", ".", "__")
# The sections of a recipe that say what is learnt.
LEARNT = "model dataset latent loss rkv explicit teacher mixture projector lora training".split()  # noqa: SIM905
START = "training.start_from"
_RESULT = re.compile(r"results_(.+)\.(ya?ml|json)")
# The names other scripts give the same thing.
ACCURACY, TOTAL = ("accuracy", "exact_match"), ("total", "total_samples", "num_examples")
PASSES_MEAN, PASSES_STD = ("avg_forward_passes", "forward_passes_mean"), ("std_forward_passes", "forward_passes_std")


@dataclass(frozen=True)
class RunResult:
    """One results file. `part` is what its name says beyond set and mode: ".limit16", ".steps3", ".M12"; "" = all."""

    path: Path
    set: str
    mode: str
    ablate: str | None
    part: str
    accuracy: float
    correct: int | None
    total: int
    passes_mean: float | None
    passes_std: float | None
    sha256: str | None
    fields: dict[str, Any]

    def predictions(self) -> list[dict[str, Any]]:
        """A judged item per line, in the set's order; [] if they were not kept."""
        path = self.path.with_name("predictions_" + self.path.stem.removeprefix("results_") + ".jsonl")
        return read_lines(path) if path.is_file() else []


@dataclass(frozen=True)
class Run:
    """A run's folder. status: finished, stopped (can be continued), broken (its suite saw it fail), evaluated (results only)."""

    folder: Path
    member: str
    seed: int | None
    status: str
    recipe: dict[str, Any]
    meta: dict[str, Any]
    results: tuple[RunResult, ...]

    def log(self) -> list[dict[str, Any]]:
        path = self.folder / "log.jsonl"
        return read_lines(path) if path.is_file() else []

    def result(
        self, set_name: str, mode: str = "latent", ablate: str | None = None, part: str = ""
    ) -> RunResult | None:
        wanted = (set_name, mode, ablate, part)
        return next((r for r in self.results if (r.set, r.mode, r.ablate, r.part) == wanted), None)


def read_result(path: Path) -> RunResult:
    """One results file, of ours or of another script's flat or nested form; accuracies become fractions."""
    fields = _flat(read_mapping(path), path)
    match = _RESULT.fullmatch(path.name)
    label = match[1] if match else path.stem
    set_name = str(fields.get("dataset") or label.split(".")[0])
    parts = [part for part in label.removeprefix(set_name).split(".") if part]
    mode = str(fields.get("mode") or next((part for part in parts if part in MODES), "latent"))
    rest = [part for part in parts if part != mode and not part.startswith("ablate_")]
    total = _number(fields, TOTAL, path)
    correct = fields.get("correct")
    return RunResult(
        path=path,
        set=set_name,
        mode=mode,
        ablate=fields.get("ablate"),
        part="".join(f".{part}" for part in rest) if label.startswith(set_name) else f".{label}",
        accuracy=_accuracy(fields, correct, total, path),
        correct=None if correct is None else int(correct),
        total=int(total),
        passes_mean=_optional(fields, PASSES_MEAN),
        passes_std=_optional(fields, PASSES_STD),
        sha256=fields.get("data_sha256"),
        fields=fields,
    )


def find_runs(roots: Sequence[Path]) -> list[Run]:
    """Every run at or below the folders, in the order of their suite, else by name; then by seed."""
    found: dict[Path, Run] = {}
    order: dict[str, int] = {}
    for root in roots:
        if not root.is_dir():
            raise RunError(f"no such folder: {root}", "give a run's folder, or a folder of runs")
        before = len(found)
        broken: dict[Path, str] = {}
        for place, below, files in os.walk(root):
            below[:] = sorted(name for name in below if not name.startswith(NOT_RUNS))
            folder = Path(place)
            if SUITE in files:
                suite = read_mapping(folder / SUITE)
                broken |= {folder / name: str(line) for name, line in suite.get("broken", {}).items()}
                order |= {name: i for i, name in enumerate(suite.get("members", {}))}
            if _is_run(files):
                found[folder.resolve()] = _run(folder, files, folder in broken)
        for folder in broken:
            found.setdefault(folder.resolve(), _run(folder, [], True))
        if len(found) == before:
            raise RunError(
                f"{root} holds no run and no results_*.yaml", "train and evaluate first, or name another folder"
            )
    place_of = {name: (order.get(name, len(order)), name) for name in {run.member for run in found.values()}}
    return sorted(found.values(), key=lambda run: (place_of[run.member], run.seed is None, run.seed or 0, run.folder))


def same_items(first: RunResult, second: RunResult) -> None:
    """Refuses two results that are not about the same items."""
    if first.total != second.total:
        raise DataError(
            f"{first.path} has {first.total} items, {second.path} has {second.total}",
            "compare results of the same set only; evaluate one of them again",
        )
    if first.sha256 and second.sha256 and first.sha256 != second.sha256:
        raise DataError(
            f"{first.path} and {second.path} were asked different items (data_sha256 {first.sha256[:12]} and "
            f"{second.sha256[:12]})",
            "compare results of the same set only; evaluate one of them again",
        )


def writes_its_steps(recipe: Mapping[str, Any]) -> bool:
    """Whether the student was trained on the explicit line."""
    return bool(recipe.get("explicit", {}).get("enabled"))


def learnt(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe trains, flat and without its seed: that of the checkpoint it begins with neither."""
    found = {f"{section}.{key}": value for section in LEARNT for key, value in recipe.get(section, {}).items()}
    if found.get(START) is not None:
        found[START] = re.sub(r"seed_\d+", "seed_*", str(found[START]))
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A JSON-lines file. A last line without its end is one that is being written, and is left out."""
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})", "the file is torn; make it again") from error
    return lines


def named(folder: Path) -> tuple[str, int | None]:
    """Member and seed from where a run lies: member/seed_N, member_seed_N, or a plain folder."""
    whole = folder.resolve()
    match = re.fullmatch(r"(.*?)_?seed_(\d+)(_quick)?", whole.name)
    if match is None:
        return whole.name, None
    member = match[1] or whole.parent.name
    return member.removesuffix("_multi_seed") + (match[3] or ""), int(match[2])


def _is_run(files: Sequence[str]) -> bool:
    return "recipe.yaml" in files or any(_RESULT.fullmatch(name) for name in files)


def _run(folder: Path, files: Sequence[str], broken: bool) -> Run:
    member, seed = named(folder)
    recipe = read_mapping(folder / "recipe.yaml") if "recipe.yaml" in files else {}
    meta = read_mapping(folder / "meta.json") if "meta.json" in files else {}
    results = tuple(read_result(folder / name) for name in sorted(files) if _RESULT.fullmatch(name))
    if broken:
        status = "broken"
    elif recipe:
        status = "finished" if meta.get("finished") else "stopped"
    else:
        status = "evaluated"
    seed = recipe.get("system", {}).get("seed", seed) if recipe else seed
    return Run(folder, member, seed, status, recipe, meta, results)


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML or JSON file that one of the verbs wrote."""
    again = "the file is torn or of another kind; make it again"
    try:
        data = parse_text(path.read_text(encoding="utf-8"), str(path), as_json=path.suffix == ".json")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", again) from error
    except ConfigError as error:
        raise DataError(error.message, again) from error
    if not isinstance(data, dict):
        raise DataError(f"{path} holds no keys and values", again)
    return data


def _flat(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The level of a results file that holds the numbers: the top one, or the one below its only key."""
    level: Any = data
    while isinstance(level, dict) and not any(name in level for name in ACCURACY):
        inner = [value for value in level.values() if isinstance(value, dict)]
        if len(inner) != 1:
            raise DataError(f"{path} has no field {' or '.join(ACCURACY)}", "it is no results file of one set")
        level = inner[0]
    return dict(level)


def _number(fields: Mapping[str, Any], names: Sequence[str], path: Path) -> float:
    for name in names:
        value = fields.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if value is not None:
            raise DataError(f"{path}: {name} is {value!r}, which is no number", "make the file again")
    raise DataError(f"{path} has no field {' or '.join(names)}", "evaluate again")


def _optional(fields: Mapping[str, Any], names: Sequence[str]) -> float | None:
    return next((float(fields[name]) for name in names if fields.get(name) is not None), None)


def _accuracy(fields: Mapping[str, Any], correct: Any, total: float, path: Path) -> float:
    """A fraction. Whether a number is a fraction or percent is read off its unit or the counts, never guessed."""
    given = _number(fields, ACCURACY, path)
    unit = fields.get("unit")
    if unit in ("percent", "%"):
        given /= 100
    elif unit not in (None, "fraction"):
        raise DataError(f"{path}: unit is {unit!r}", "it must be fraction or percent")
    if correct is None:
        if unit is None and given > 1:
            raise DataError(f"{path}: accuracy {given:g} without unit or count", "add unit: percent, or correct: N")
        return given
    counted = float(correct) / total
    near = 0.5 / total + 1e-9
    if abs(counted - given) > near and not (unit is None and abs(counted - given / 100) <= near):
        raise DataError(f"{path}: accuracy {given:g} is not correct / total = {counted:g}", "evaluate or rescore again")
    return counted
