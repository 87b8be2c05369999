"""Stop signals at every moment of a run, to whomever: a checkpoint, exit 128 + signal, no traceback, and the same bits.

Each cell starts a run that stands still at its moment, sends the signal, and continues it. Runs are forked from this
process, which trains nothing itself.
"""

from __future__ import annotations

import json
import signal
import sys
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

import struck
from compare import tiny_base
from kava.backbone.artifact import WEIGHTS
from kava.teachers.store import verify
from kava.training.checkpoint import find
from stores import content
from struck import Command, Torchrun

pytestmark = pytest.mark.long
TERM, INT, USR1, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP
TIMES = ("tokens_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second")
COMMON = (
    "training.max_steps=8", "training.batch_size=4", "logging.logging_steps=1", "logging.eval_steps=3",
    "logging.save_steps=2", "logging.save_total_limit=1", "logging.report_to=[]", "evaluation.max_new_tokens=4",
    "system.device=cpu",
)  # fmt: skip
GENERATED = ("dataset.generator.train_size=24", "dataset.generator.val_size=4", "dataset.generator.test_size=4")
LATENT = (
    "training.learning_rate=1e-3", "loss.alpha1_codi=1", "lora.enabled=true", "lora.r=2", "lora.dropout=0.1",
    "latent.num_tokens=3", "latent.num_iterations=2",
)  # fmt: skip
UPDATES = 8


class Cell(NamedTuple):
    """Which signal to whom, before which call of what, in a run with so many loader workers."""

    number: signal.Signals
    target: str
    moment: str
    nth: int
    workers: int
    line: str = "latent"
    times: int = 1
    spawn: bool = False

    def __str__(self) -> str:
        parts = [self.number.name, "twice" if self.times > 1 else "", self.target, f"{self.moment}{self.nth}"]
        parts += [f"w{self.workers}", "spawn" if self.spawn else "", self.line]
        return "-".join(part for part in parts if part)


NTH = {"loading": 1, "update": 4, "validation": 2, "saving": 3, "optimizer": 2, "renaming": 2, "rotation": 3, "best": 1}
SIGNALS, TARGETS = (TERM, INT, USR1, HUP), ("main", "group", "every")
# every signal to every target while an update is made, and at every other moment each signal and each target
CELLS = [Cell(number, target, "update", 4, 2) for number, target in product(SIGNALS, TARGETS)]
CELLS += [
    Cell(SIGNALS[(place + turn) % 4], TARGETS[(place + turn) % 3], moment, nth, (0, 2, 4)[(place + turn) % 3])
    for place, (moment, nth) in enumerate(NTH.items())
    for turn in range(4)
]
CELLS += [
    Cell(number, target, "update", 4, 4, times=2) for number, target in product((TERM, INT, USR1), ("group", "every"))
]
CELLS += [
    Cell(TERM, "group", moment, NTH[moment], 2, times=2) for moment in ("loading", "validation", "saving", "rotation")
]
CELLS += [
    Cell(TERM, "every", "workers", 1, 2),
    Cell(INT, "group", "update", 8, 2),
    Cell(TERM, "group", "closing", 1, 2),
]
CELLS += [
    Cell(TERM, "group", "update", nth, 2) for nth in (1, 6, 7)
]  # the first, an epoch's last, the next one's first
CELLS += [Cell(number, "group", "update", 4, workers, "stream") for number, workers in product((TERM, USR1), (0, 2, 4))]
CELLS += [Cell(TERM, "every", "update", 3, 2, spawn=True), Cell(HUP, "group", "update", 3, 2, spawn=True)]
CELLS += [Cell(TERM, "group", "calibration", 1, 2, "explicit"), Cell(INT, "every", "held_out", 2, 2, "explicit")]
CELLS += [Cell(USR1, "group", "update", 4, 2, "explicit"), Cell(HUP, "main", "saving", 3, 2, "explicit")]


class Runs:
    """Settings of each line, and the run of each that nobody disturbs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.base = tiny_base(folder / "base", tied=True, attention_dropout=0.1)
        rows = [
            {"question": f"{a}+{b}?", "answer": f"<<{a}+{b}={a + b}>>\n#### {a + b}"}
            for a in range(8)
            for b in range(6)
        ]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        stream = (f"dataset.name={folder / 'rows.jsonl'}", "dataset.streaming=true", "dataset.drop_last_step=false")
        latent = ("train", "--config", "debug", f"model.name={self.base}", *LATENT, *COMMON)
        self.words = {
            "latent": (*latent, *GENERATED),
            "stream": (*latent, *stream, "dataset.val_size=0"),
            "explicit": ("train", "--config", "explicit_embedded", *COMMON, *GENERATED),
        }
        self.whole: dict[tuple[str, int], Path] = {}

    def undisturbed(self, cell: Cell) -> Path:
        """The number of workers changes a stream's batches and nothing else."""
        key = (cell.line, cell.workers if cell.line == "stream" else 0)
        if key not in self.whole:
            self.whole[key] = self.folder / f"whole-{key[0]}-{key[1]}"
            assert self.start(self.whole[key], cell._replace(workers=key[1], spawn=False)).end() == 0
        return self.whole[key]

    def start(self, run: Path, cell: Cell, *words: str, **moment: Any) -> Command:
        workers = f"system.num_workers={cell.workers}"
        command = (*self.words[cell.line], "--output_dir", str(run), workers, *words)
        return Command(run.with_name(run.name + ".said"), *command, spawn=cell.spawn, **moment)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("matrix"))


def journal(run: Path) -> list[dict[str, Any]]:
    """What log.jsonl says of updates and validations, without what a clock decides."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    told = [line for line in lines if "loss" in line or "eval_accuracy" in line or "eval_ce" in line]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in told]


def assert_same_end(run: Path, whole: Path) -> None:
    last, wanted = find(run)[0][-1], find(whole)[0][-1]
    assert (last.path.name, last.step) == (wanted.path.name, UPDATES)
    for place in (last.path.name, "best_checkpoint"):
        assert (run / place / WEIGHTS).read_bytes() == (whole / place / WEIGHTS).read_bytes(), place
    assert journal(run) == journal(whole)
    assert not list(run.glob(".partial-*"))


def updates_made(run: Path) -> int:
    return (
        max((line["step"] for line in journal(run) if "loss" in line), default=0) if (run / "log.jsonl").exists() else 0
    )


def assert_stopped(command: Command, number: int, run: Path) -> None:
    """It said so in a line, ended as a signal ends a command, and every update that it made is in a checkpoint."""
    code = command.end()
    assert code == 128 + number, command.out
    assert "Traceback" not in command.out
    assert "Exception ignored" not in command.out
    assert max((saved.step for saved in find(run)[0]), default=0) == updates_made(run)
    assert not find(run)[1]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cell(cell: Cell, runs: Runs, tmp_path: Path) -> None:
    whole, run = runs.undisturbed(cell), tmp_path / "run"
    command = runs.start(run, cell, moment=cell.moment, nth=cell.nth).standing()
    command.send(cell.number, cell.target, cell.times)
    if cell.moment == "closing":  # the last update and all its files are there
        assert command.end() in (0, 128 + cell.number)
    else:
        assert_stopped(command, cell.number, run)
    resumed = runs.start(run, cell, "--resume", "auto")
    assert resumed.end() == 0, resumed.out
    assert_same_end(run, whole)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize(("moment", "nth"), [("update", 4), ("validation", 2)])
def test_through_kava_task(number: signal.Signals, moment: str, nth: int, runs: Runs, tmp_path: Path) -> None:
    """The job's task passes the signal on to the training, which has the recipe's own number of workers."""
    run, status, said = tmp_path / "run", tmp_path / "status.json", tmp_path / "said"
    said.mkdir()
    cell = Cell(number, "main", moment, nth, 4)
    command = Command(
        said, "task", "--status", str(status), "--scheduler", "local", "--requeue", "--",
        sys.executable, struck.__file__, str(said), moment, str(nth), *runs.words["latent"],
        "system.num_workers=4", "--output_dir", str(run),
    ).standing()  # fmt: skip
    command.send(number, "main", 2)
    code = command.end()
    facts = json.loads(status.read_text())
    assert (facts["exit_code"], facts["signal"]) == (128 + TERM, number.name), command.out
    assert (code, facts["state"]) == ((99, "requeued") if number == USR1 else (128 + TERM, "failed"))
    assert "Traceback" not in command.out
    assert [saved.step for saved in find(run)[0]][-1] == updates_made(run) > 0
    resumed = runs.start(run, cell, "--resume", "auto")
    assert resumed.end() == 0, resumed.out
    assert_same_end(run, runs.undisturbed(cell))


@pytest.fixture(scope="module")
def under_torchrun(runs: Runs) -> Path:
    """What two processes make that nobody disturbs."""
    whole = runs.folder / "whole-torchrun"
    assert Torchrun(whole.with_suffix(".said"), *words_of_two(runs, whole)).end() == 0
    return whole


def words_of_two(runs: Runs, run: Path, *words: str) -> tuple[str, ...]:
    return (*runs.words["latent"], "training.batch_size=2", "system.num_workers=2", "--output_dir", str(run), *words)


@pytest.mark.parametrize("number", [TERM, USR1], ids=lambda number: number.name)
@pytest.mark.parametrize("target", ["main", "group", "rank0"])
def test_two_processes(number: signal.Signals, target: str, under_torchrun: Path, runs: Runs, tmp_path: Path) -> None:
    """Main and group are torchrun, whose processes have sessions of their own: it passes TERM on, and dies of USR1."""
    run = tmp_path / "run"
    command = Torchrun(tmp_path / "said", *words_of_two(runs, run), moment="update", nth=4).standing()
    ranks = command.ranks()
    command.send(number, target)
    code = command.end()
    (tmp_path / "said" / "go").touch()
    assert not psutil.wait_procs(ranks, timeout=60)[1], command.out
    orphans = number == USR1 and target != "rank0"
    assert code == (-USR1 if orphans else 1), command.out  # torchrun's own
    if target == "rank0":
        assert f"exitcode  : {128 + number}" in command.out  # of the process, in its report
    ours, _, _ = command.out.partition("torch/distributed/")
    assert "Traceback" not in ours
    assert max((saved.step for saved in find(run)[0]), default=0) == updates_made(run) == 4
    resumed = Torchrun(tmp_path / "again", *words_of_two(runs, run, "--resume", "auto"))
    assert resumed.end() == 0, resumed.out
    assert_same_end(run, under_torchrun)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(("number", "target"), [(TERM, "main"), (USR1, "group")])
def test_an_extraction(number: signal.Signals, target: str, times: int, tmp_path: Path) -> None:
    words = ("extract", "--config", "explicit_embedded", *GENERATED, "system.device=cpu", "--examples_per_shard", "6")
    whole, folder = tmp_path / "whole", tmp_path / "struck"
    assert Command(tmp_path / "a", *words, "--output_dir", str(whole)).end() == 0
    command = Command(tmp_path / "b", *words, "--output_dir", str(folder), moment="shard", nth=3).standing()
    command.send(number, target, times)
    assert command.end() == 128 + number, command.out
    assert "hint: the same command again writes the missing shards only" in command.out
    assert "Traceback" not in command.out
    assert Command(tmp_path / "c", *words, "--output_dir", str(folder)).end() == 0
    assert content(folder) == content(whole)
    assert verify(folder, progress=False) == []


@pytest.mark.parametrize(("number", "target", "nth"), [(TERM, "main", 2), (HUP, "group", 3), (INT, "every", 3)])
def test_seeds(number: signal.Signals, target: str, nth: int, tmp_path: Path) -> None:
    """Between two seeds, and as the next one begins: it ends what runs, says how to continue, and repeats nothing."""
    few = ("training.max_steps=2", "logging.eval_steps=2", "logging.report_to=[]", *GENERATED, "system.num_workers=0")
    root = tmp_path / "seeds"
    words = ("seeds", "--config", "debug", "--seeds", "1", "2", "--output_dir", str(root), *few)
    command = Command(tmp_path / "said", *words, moment="job", nth=nth).standing()
    command.send(number, target)
    assert command.end() == 128 + number, command.out
    assert "hint: the same command again: finished runs are kept" in command.out
    assert "Traceback" not in command.out
    first = {path: path.stat().st_mtime_ns for path in (root / "seed_1").rglob("*.safetensors")}
    again = Command(tmp_path / "again", *words)
    assert again.end() == 0, again.out
    assert first
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert (root / "aggregated_results.json").exists()


def test_a_suite_between_two_members(tmp_path: Path) -> None:
    few = ("training.max_steps=2", "logging.eval_steps=2", "logging.report_to=[]", *GENERATED, "system.num_workers=0")
    members = ("--members", "E1_baseline", "E4_rkv", "--seeds", "1", "--skip_eval")
    words = ("suite", "e1-e5", "--config", "debug", *members, "--output_dir", str(tmp_path / "suite"), *few)
    command = Command(tmp_path / "said", *words, moment="job", nth=2).standing()
    command.send(TERM, "group", 2)
    assert command.end() == 128 + TERM, command.out
    assert "hint: the same command again" in command.out
    again = Command(tmp_path / "again", *words)
    assert again.end() == 0, again.out
