"""Read run folders: recipe, results, logs, predictions. Nothing is imputed; a file that cannot be read is an error."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from kava.config.typed_file import checked, read_dict, read_dicts
from kava.errors import DataError, RunError
from kava.lab.analysis.suite_file import SuiteFile
from kava.run_files import AGAIN, Prediction, ResultFields, StoredRecipe, read_log, read_meta

SUITE = "suite.json"
MODES = ("latent", "cot", "direct")
RECORDS = (SUITE, "recipe.yaml", "meta.json", "log.jsonl", "data_card.json", "train.log", "kept.json")
RECORDS_OF_SETS = ("results_", "predictions_")
NOT_RUNS = ("best_checkpoint", "checkpoint-", "logs", "wandb", "trackio", ".", "__")
PROTOCOL = ("mode", "cue", "max_new_tokens", "temperature", "metric")  # results that differ here do not compare
# The sections of a recipe that determine what is trained.
TRAINED_SECTIONS = "model dataset latent loss rkv explicit teacher mixture projector lora training".split()  # noqa: SIM905
START = "training.start_from"
_RESULT = re.compile(r"results_(.+)\.(ya?ml|json)")
# Field names, ours first, then those that other scripts write.
ACCURACY, TOTAL = ("accuracy", "exact_match"), ("total", "total_samples", "num_examples")
PASSES = ("avg_forward_passes", "forward_passes_mean")


@dataclass(frozen=True)
class RunResult:
    """One results file. `part`: what its name says beyond set and mode (".limit16", ".steps3", ".M12"); "" = whole set."""

    path: Path
    set: str
    mode: str
    ablate: str | None
    part: str
    accuracy: float
    correct: int | None
    total: int
    passes_mean: float | None
    sha256: str | None
    fields: dict[str, Any]

    @property
    def unchanged(self) -> bool:
        """True for the checkpoint as trained on the whole set."""
        return self.ablate is None and not self.part

    def right_by_item(self) -> dict[Any, bool]:
        """Item's id -> whether its answer is right, in the order of the set; {} if predictions were not kept."""
        path = self.path.with_name("predictions_" + self.path.stem.removeprefix("results_") + ".jsonl")
        again = "evaluate again, or kava rescore"
        lines = read_dicts(path, Prediction, again) if path.is_file() else []
        right = {item["id"]: item["correct"] for item in lines}
        if lines and (len(lines), len(right)) != (self.total, self.total):
            raise DataError(f"{self.path} has {self.total} items, its predictions {len(right)} of them", again)
        if lines and self.correct is not None and sum(right.values()) != self.correct:
            raise DataError(f"{self.path} counts {self.correct} right, its predictions {sum(right.values())}", again)
        return right


@dataclass(frozen=True)
class Run:
    """A run's folder. status: finished, stopped (resumable), broken (failed in its suite), evaluated (results only), missing."""

    folder: Path
    member: str
    seed: int | None
    status: str
    recipe: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    results: tuple[RunResult, ...] = ()

    def log(self) -> list[dict[str, Any]]:
        """The lines of log.jsonl without their numbers that are not finite; [] without one."""
        lines = read_log(self.folder)
        return [
            {name: value for name, value in line.items() if value is not None and isfinite(value)} for line in lines
        ]

    def result(self, set_name: str, mode: str = "latent") -> RunResult | None:
        """The unchanged checkpoint's result on the whole set."""
        return next((r for r in self.results if r.unchanged and (r.set, r.mode) == (set_name, mode)), None)

    @property
    def explicit(self) -> bool:
        """True if the student was trained to write its chain of thought."""
        return bool(self.recipe.get("explicit", {}).get("enabled"))

    @property
    def trained_settings(self) -> dict[str, Any]:
        """The flat recipe of what is trained, without seeds: neither the run's nor that of the checkpoint it starts from."""
        sections = ((section, self.recipe.get(section, {})) for section in TRAINED_SECTIONS)
        settings = {f"{section}.{key}": value for section, values in sections for key, value in values.items()}
        if settings.get(START) is not None:
            settings[START] = re.sub(r"seed_\d+", "seed_*", str(settings[START]))
        return settings


def find_runs(roots: Sequence[Path]) -> list[Run]:
    """Every run at or below the folders, in the order of their suite, else by name; then by seed."""
    runs: dict[Path, Run] = {}
    order: dict[str, int] = {}
    for root in roots:
        if not root.is_dir():
            what = f"{root} is a file" if root.is_file() else f"no such folder: {root}"
            raise RunError(what, "give a run's folder, or a folder of runs")
        holds_runs = False
        broken: set[Path] = set()
        for place, below, files in os.walk(root):
            below[:] = sorted(name for name in below if not name.startswith(NOT_RUNS))
            folder = Path(place)
            if SUITE in files:
                suite = read_dict(folder / SUITE, SuiteFile, AGAIN)
                broken |= {folder / name for name in suite.get("broken", {})}
                order |= {name: i for i, name in enumerate(suite.get("members", {}))}
            run = read_run(folder, files, folder in broken)
            if run is not None:
                runs.setdefault(folder.resolve(), run)  # once, also where a folder is named twice
                holds_runs = True
        for folder in broken:
            runs.setdefault(folder.resolve(), Run(folder, *run_name(folder), "broken"))
        if not holds_runs and not broken:
            nothing = f"{root} holds no run and no results_*.yaml"
            raise RunError(nothing, "train and evaluate first, or name another folder")
    ranks = {run.member: (order.get(run.member, len(order)), run.member) for run in runs.values()}
    return sorted(runs.values(), key=lambda run: (ranks[run.member], run.seed is None, run.seed or 0, run.folder))


def files_of_runs(roots: Sequence[Path]) -> Iterator[Path]:
    """The files at or below the folders that make up runs, for commands whose outputs must be none of them."""
    for root in roots:
        for place, below, files in os.walk(root):
            below[:] = [name for name in below if not name.startswith(NOT_RUNS)]
            yield from (Path(place) / name for name in files if name in RECORDS or name.startswith(RECORDS_OF_SETS))


def read_run(folder: Path, files: Sequence[str], broken: bool = False) -> Run | None:
    """The run whose files lie in this very folder; None without a recipe or results."""
    results = tuple(read_result(folder / name) for name in sorted(files) if _RESULT.fullmatch(name))
    recipe = read_dict(folder / "recipe.yaml", StoredRecipe, AGAIN) if "recipe.yaml" in files else {}
    if not results and "recipe.yaml" not in files:
        return None
    meta = read_meta(folder)
    trained = "finished" if meta.get("finished") else "stopped"
    member, seed = run_name(folder)
    seed = recipe.get("system", {}).get("seed", seed)
    return Run(folder, member, seed, "broken" if broken else trained if recipe else "evaluated", recipe, meta, results)


def run_name(folder: Path) -> tuple[str, int | None]:
    """Member and seed from a run's path: member/seed_N, member_seed_N, or a plain folder."""
    whole = folder.resolve()
    if match := re.fullmatch(r"(.*?)_?seed_(\d+)(_quick)?", whole.name):
        member = match[1] or whole.parent.name
        return re.sub(r"_multi_seed(_quick)?$", r"\1", member) + (match[3] or ""), int(match[2])
    return whole.name, None


def differing_items(first: RunResult, second: RunResult) -> str:
    """How the items of two results differ; "" where they are the same, as far as the files tell."""
    if first.total != second.total:
        return f"{first.path} has {first.total} items, {second.path} has {second.total}"
    if first.sha256 and second.sha256 and first.sha256 != second.sha256:
        hashes = f"(data_sha256 {first.sha256[:12]} and {second.sha256[:12]})"
        return f"{first.path} and {second.path} were asked different items {hashes}"
    return ""


def same_items(first: RunResult, second: RunResult) -> None:
    """Refuse two results on different items."""
    if problem := differing_items(first, second):
        raise DataError(problem, "compare results of the same set only; evaluate one of them again")


def refuse_incomparable(results: Sequence[RunResult]) -> None:
    """Refuse results on different items, or within a mode under different protocols."""
    first_of_mode: dict[str, RunResult] = {}
    for result in results:
        same_items(results[0], result)
        first = first_of_mode.setdefault(result.mode, result)
        for key in PROTOCOL:
            if first.fields.get(key) != result.fields.get(key):
                values = (f"{r.path} has {key} {r.fields.get(key)!r}" for r in (first, result))
                raise DataError(", ".join(values), "evaluate one of them again, the same way")


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML or JSON file that a verb wrote."""
    return read_dict(path, dict[str, Any], AGAIN)


def read_result(path: Path) -> RunResult:
    """One results file, ours or in another script's flat or nested form; accuracies become fractions."""
    fields = _flat(read_mapping(path), path)
    checked(fields, ResultFields, str(path), AGAIN)
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
        passes_mean=next((float(fields[name]) for name in PASSES if fields.get(name) is not None), None),
        sha256=fields.get("data_sha256"),
        fields=fields,
    )


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


def _accuracy(fields: Mapping[str, Any], correct: Any, total: float, path: Path) -> float:
    """The accuracy as a fraction; its unit or the counts, never a guess, decide whether the file has percent."""
    accuracy = _number(fields, ACCURACY, path)
    unit = fields.get("unit")
    if unit in ("percent", "%"):
        accuracy /= 100
    elif unit not in (None, "fraction"):
        raise DataError(f"{path}: unit is {unit!r}", "it must be fraction or percent")
    if correct is None:
        if unit is None and accuracy > 1:
            raise DataError(f"{path}: accuracy {accuracy:g} without unit or count", "add unit: percent, or correct: N")
        return accuracy
    counted = float(correct) / total
    near = 0.5 / total + 1e-9
    if abs(counted - accuracy) > near and not (unit is None and abs(counted - accuracy / 100) <= near):
        differ = f"{path}: accuracy {accuracy:g} is not correct / total = {counted:g}"
        raise DataError(differ, "evaluate or rescore again")
    return counted
