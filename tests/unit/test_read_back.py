"""Every file that is read back is checked: what is wrong with it is one line that names the file and the key."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field

from kava.cluster.job_record import read_task
from kava.cluster.jobs import records, rows
from kava.cluster.site_file import read_site
from kava.cluster.spec import is_job_id
from kava.config.typed_file import Record, checked, read_dict, read_dicts
from kava.errors import DataError, KavaError
from kava.evaluation.rescore import rescore
from kava.lab.analysis.aggregate import aggregate
from kava.lab.analysis.load_study import load_study
from kava.lab.analysis.tables import as_csv, as_latex, find_aggregated
from kava.lab.page.page import sections
from kava.machine.settings import load_settings

RESULTS = Path(__file__).parents[1] / "fixtures" / "results"
DAMAGES: dict[str, bytes] = {
    "a list": b"[1, 2]",
    "null": b"null",
    "text": b'"words"',
    "a number": b"7",
    "binary": b"\x80\x00\xff\xfe",
    "empty": b"",
    "torn": b'{"a": ',
    "deep": b"[" * 100_000,
    "twice": b'{"a": 1, "a": 2}',
    "a list of lists": b"[[[1]]]",
    "surrogate": b'{"a": "\\ud800"}',
    "long": b'{"a": ' + b"9" * 5000 + b"}",
}
WRONG: tuple[Any, ...] = (None, [1], {"a": [1]}, "text", -1, 0, float("nan"), float("inf"), True, [], {}, [[None]])
Use = Callable[[Path], object]


def report(folder: Path) -> None:
    """What `kava report` reads before it draws."""
    sections(load_study([folder]))


def average(folder: Path) -> None:
    aggregate([folder / "E4_rkv" / f"seed_{seed}" for seed in (1, 2)], [])


def score_again(folder: Path) -> None:
    rescore(folder / "E4_rkv" / "seed_1" / "predictions_chains.jsonl")


RUN = "E4_rkv/seed_1"
READERS: dict[str, tuple[Use, ...]] = {
    f"{RUN}/results_chains.yaml": (report, average, score_again),
    f"{RUN}/meta.json": (report, average),
    f"{RUN}/recipe.yaml": (report, average),
    f"{RUN}/log.jsonl": (report, average),
    f"{RUN}/predictions_chains.jsonl": (score_again,),
    "suite.json": (report,),
    "EXPERIMENT_REPORT.json": (report,),
}
PAIRS = [pytest.param(name, use, id=f"{name}-{use.__name__}") for name, uses in READERS.items() for use in uses]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(RESULTS, tmp_path_factory.mktemp("read") / "results"))


@pytest.fixture
def results(scratch: Path) -> Iterator[Path]:
    """The fixture's results; the one file that a test changes is put back."""
    before = {name: (scratch / name).read_bytes() for name in READERS}
    yield scratch
    for name, content in before.items():
        (scratch / name).write_bytes(content)


def outcome(use: Use, folder: Path, name: str) -> KavaError | None:
    """The error of a reader, which is one line and names the file; anything but a KavaError is a failure."""
    try:
        use(folder)
    except KavaError as error:
        return error
    return None


SOME_OR_ALL = [
    name if number % 3 == 0 else pytest.param(name, marks=pytest.mark.long) for number, name in enumerate(DAMAGES)
]


@pytest.mark.parametrize("damage", SOME_OR_ALL)
@pytest.mark.parametrize(("name", "use"), PAIRS)
def test_a_damaged_file(results: Path, name: str, use: Use, damage: str) -> None:
    content = DAMAGES[damage]
    if name.endswith("predictions_chains.jsonl") and damage in ("deep", "long"):
        pytest.skip("rows of data are read by kava.data.rows")
    (results / name).write_bytes(content + b"\n" if content and name.endswith(".jsonl") else content)
    error = outcome(use, results, name)
    if damage == "empty" and name.endswith("log.jsonl"):
        assert error is None  # a run that has logged nothing yet
    else:
        assert error is not None
        assert "\n" not in error.message
        assert Path(name).name in error.message or Path(name).stem in error.message, error.message


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value below the top."""
    items = data.items() if isinstance(data, dict) else enumerate(data[:2]) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def replaced(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(data))
    node = copy
    for key in path[:-1]:
        node = node[key if isinstance(node, list) else str(key)]
    node[path[-1] if isinstance(node, list) else str(path[-1])] = value
    return copy


def written(path: Path, data: Any) -> None:
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in data) if lines else json.dumps(data), encoding="utf-8")


def loaded(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()[:3]]
    return yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)


def attempts(data: Any, every: int) -> Iterator[tuple[tuple[Any, ...], Any]]:
    cases = [(path, value) for path in places(data) for value in WRONG]
    yield from cases[::every]


@pytest.mark.parametrize("every", [199, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize(("name", "use"), PAIRS)
def test_values_of_other_types(results: Path, name: str, use: Use, every: int) -> None:
    """Every value of every file replaced by values of other types: read, or refused in one line."""
    data = loaded(results / name)
    for path, value in attempts(data, every):
        (results / name).unlink()
        target = results / name
        written(target, replaced(data, path, value))
        outcome(use, results, name)


@pytest.mark.parametrize(
    ("name", "use", "change", "words"),
    [
        ("results_chains.yaml", report, {"total": 0}, "total: 0"),
        ("results_chains.yaml", report, {"data_sha256": 7}, "data_sha256: 7 is a number, text is needed"),
        ("results_chains.yaml", report, {"by_steps": 3}, "by_steps: 3 is a number, a mapping is needed"),
        ("results_chains.yaml", average, {"accuracy": "high"}, "accuracy: 'high' is text, a number is needed"),
        ("meta.json", report, {"versions": [1]}, "versions: a list, a mapping is needed"),
        ("meta.json", report, {"seconds": "long"}, "seconds: 'long' is text, a number is needed"),
        ("recipe.yaml", report, {"system": {"seed": "one"}}, "system.seed: 'one' is text, a whole number is needed"),
        ("recipe.yaml", average, {"rkv": None}, "rkv: null, a mapping is needed"),
    ],
)
def test_a_message_names_file_key_and_kind(
    results: Path, name: str, use: Use, change: dict[str, Any], words: str
) -> None:
    path = results / RUN / name
    written(path, loaded(path) | change)
    with pytest.raises(KavaError) as error:
        use(results)
    assert f"{RUN}/{name}: " in error.value.message
    assert words in error.value.message


def test_a_log_names_the_line_and_may_lack_numbers(results: Path) -> None:
    path = results / RUN / "log.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {"grad_norm": float("nan"), "loss": None})
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    report(results)  # a number that was not finite is a gap
    lines[2] = json.dumps({"step": "three", "loss": 1.0})
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"log\.jsonl, line 3: step: 'three' is text, a number"):
        report(results)


# -- aggregated results, jobs, sites, environments -----------------------------------------------------------------------

AGGREGATED = {
    "debug": {
        "num_seeds": 2, "model": "m", "model_name": "M", "dataset": "d", "versions": {},
        "datasets": {"gsm8k": {"accuracy_mean": 0.5, "accuracy_std": 0.1, "forward_passes_mean": 5.0,
                               "forward_passes_std": None, "num_seeds": 2}},
    }
}  # fmt: skip
JOBS = {
    "name": "train-1", "scheduler": "slurm", "submitted": "2026-01-01", "command": ["kava"],
    "jobs": [{"label": "train", "id": "27", "tasks": None, "after": [], "script": "s", "status": ["status.json"]}],
}  # fmt: skip
STATUS = {
    "state": "ok",
    "exit_code": 0,
    "host": "h",
    "job": "27",
    "task": None,
    "attempt": 1,
    "reason": ["no"],
    "command": [["kava", "train", "--output_dir", "run"]],
    "began": "2026-01-01T00:00:00+00:00",
}
SITE = {"scheduler": "slurm", "nodes": 1, "setup": ["a"], "environment": {"A": "1"}, "sge": {"pe": "smp"}}


def tables(folder: Path) -> None:
    recipes, _ = find_aggregated(folder)
    as_latex(recipes)
    as_csv(recipes)


def jobs(folder: Path) -> None:
    for record in records([folder]):
        rows(record, ask=False)


OTHERS: dict[str, tuple[Any, Use]] = {
    "aggregated_results.json": (AGGREGATED, tables),
    "jobs.json": (JOBS, jobs),
    "status.json": (STATUS, lambda folder: read_task(folder / "status.json")),
    "kava_site.yaml": (SITE, lambda folder: read_site(folder / "kava_site.yaml")),
    "environment.yaml": ({"training": {}}, lambda folder: load_settings(folder / "environment.yaml", folder)),
}


@pytest.mark.parametrize("damage", SOME_OR_ALL)
@pytest.mark.parametrize("name", OTHERS)
def test_another_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(DAMAGES[damage])
    error = outcome(OTHERS[name][1], tmp_path, name)
    nothing = ("null", "empty") if name == "environment.yaml" else ()
    if damage not in nothing and (name, damage) not in [("status.json", "surrogate"), ("status.json", "twice")]:
        assert error is not None
        assert name in error.message
        assert "a recipe" not in error.message


@pytest.mark.parametrize("name", [name for name in OTHERS if name != "environment.yaml"])
def test_other_values_of_other_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    data, use = OTHERS[name]
    use_ok = tmp_path / name
    written(use_ok, data)
    assert outcome(use, tmp_path, name) is None
    for path, value in attempts(data, 1):
        written(tmp_path / name, replaced(data, path, value))
        error = outcome(use, tmp_path, name)
        assert error is None or name in error.message


def test_how_far_a_task_is_with_values_of_other_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "status.json": STATUS | {"state": "started"},
        "run/recipe.yaml": {"training": {"max_steps": None, "epochs": 2}},
        "run/meta.json": {"started": "2026-01-01T00:00:01+00:00"},
        "run/log.jsonl": [{"step": 3, "epoch": 0.5}],
    }
    (tmp_path / "run").mkdir()
    for name, data in {"jobs.json": JOBS | {"working_folder": str(tmp_path)}, **files}.items():
        written(tmp_path / name, data)
    far = rows(records([tmp_path])[0], ask=False)[0].progress
    assert (far.updates, far.total) == (3, 12)
    assert far.left is not None
    for name, data in files.items():
        for path, value in attempts(data, 1):
            written(tmp_path / name, replaced(data, path, value))
            error = outcome(jobs, tmp_path, name)
            assert error is None or name in error.message
        written(tmp_path / name, data)


@pytest.mark.parametrize(
    "text",
    [
        "--user=victim",
        "-u",
        "-1",
        "all",
        "*",
        "0",
        "00",
        "",
        "27;id",
        "27 28",
        "27,28",
        "1\n2",
        "$(id)",
        "../27",
        "a.b",
    ],
)
def test_no_flag_passes_as_a_jobs_id(text: str, tmp_path: Path) -> None:
    assert not is_job_id(text)
    record = JOBS | {"jobs": [JOBS["jobs"][0] | {"id": text}]}  # type: ignore[index]
    written(tmp_path / "jobs.json", record)
    with pytest.raises(DataError, match=r"jobs\.json: jobs\[0\]\.id"):
        records([tmp_path])


@pytest.mark.parametrize("text", ["27", "1234567", "27.server", "27[].server-1.site.org", "0.server"])
def test_what_schedulers_call_a_job(text: str) -> None:
    assert is_job_id(text)


# -- the reader itself -------------------------------------------------------------------------------------------------


class Point(Record):
    x: int
    names: dict[str, list[str]] = Field({})


def test_keys_of_other_versions_are_kept_and_nothing_is_converted(tmp_path: Path) -> None:
    point = checked({"x": 1, "later": [2]}, Point, "p")
    assert point.model_extra == {"later": [2]}
    for value in ("1", 1.5, True, None):
        with pytest.raises(DataError, match=r"^p: x: .*a whole number is needed"):
            checked({"x": value}, Point, "p")
    with pytest.raises(DataError, match=r"^p: names\.a\[1\]: 3 is a number, text is needed"):
        checked({"x": 1, "names": {"a": ["b", 3]}}, Point, "p")
    with pytest.raises(DataError, match=r"^p: x is missing"):
        checked({}, Point, "p")


def test_lines_and_files(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"x": 1}\n{"x": 2}\n{"x": ')
    assert read_dicts(path, Point) == [{"x": 1}, {"x": 2}]  # the last line is still being written
    path.write_text('{"x": 1}\n[]\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: this is a list"):
        read_dicts(path, Point)
    with pytest.raises(DataError, match=r"gone\.json: cannot be read"):
        read_dict(tmp_path / "gone.json", Point)
    lines = tmp_path / "point.yaml"
    lines.write_text("x: 1\nlater: yes\n")
    assert read_dict(lines, Point) == {"x": 1, "later": "yes"}
