"""--scheduler local: the scripts as background processes of this machine, from submission to the aggregate."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

from kava.cli.main import main
from kava.cluster.driver import alive
from kava.cluster.jobs import JobRow, records, rows

# `kava` with the real `kava task`, and stand-ins for what it starts: a training makes its best checkpoint, an evaluation
# its results. Seed 123 breaks while the file `break` is there; a training waits while the file `wait` is there.
KAVA = """\
#!/bin/bash
[ "$1" != task ] || exec "{python}" -m kava "$@"
[ "$1" != train ] || trap 'echo "$@" >>saved; exit 143' TERM
echo "$@" >>calls
case "$1" in
train)
    [ ! -f break ] || [[ "$*" != *"--seed 123"* ]] || exit 7
    while [ -f wait ]; do sleep 0.02; done
    ;;
aggregate) touch aggregated ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "kava").write_text(KAVA.format(python=sys.executable))
    (programs / "kava").chmod(0o755)
    project = tmp_path / "a project"
    project.mkdir()
    monkeypatch.chdir(project)
    monkeypatch.delenv("KAVA_SITE", raising=False)
    monkeypatch.delenv("KAVA_OUTPUT_PATH", raising=False)
    Path("site.yaml").write_text(yaml.safe_dump({"scheduler": "local", "setup": [f"PATH={programs}:$PATH"]}))
    yield project
    for record in records(["outputs"]) if Path("outputs").is_dir() else []:
        for job in record["jobs"]:
            if alive(job["id"]):
                os.killpg(int(job["id"]), signal.SIGTERM)


def submit(*words: str) -> dict:
    assert main(["submit", "seeds", "--config", "debug", "--site", "site.yaml", *words]) == 0
    return records(["outputs"])[-1]


def wait_for(condition, patience: float = 60.0) -> None:
    until = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < until, [row for record in records(["outputs"]) for row in rows(record)]
        time.sleep(0.05)


def finished(record: dict) -> list[JobRow]:
    """The rows, once no driver is under way any more."""
    wait_for(lambda: not any(alive(job["id"]) for job in record["jobs"]))
    return rows(record)


def test_a_seed_that_fails_keeps_the_aggregate_from_running_until_it_is_submitted_again(project: Path):
    Path("break").touch()
    found = finished(submit("--seeds", "42", "123"))
    assert [(row.label, row.task, row.state, row.exit_code) for row in found] == [
        ("train", 0, "ok", 0), ("train", 1, "failed", 7), ("aggregate", None, "refused", 3),
    ]  # fmt: skip
    assert not Path("aggregated").exists()
    assert found[2].note.endswith(f"status-train-1.json says failed (job {found[1].id})")

    Path("break").unlink()
    Path("calls").unlink()
    record = submit("--seeds", "42", "123")
    assert record["name"] == "seeds-2"
    assert [row.state for row in finished(record)] == ["ok"] * 3
    calls = [call.split() for call in Path("calls").read_text().splitlines()]
    assert [words[0] for words in calls] == ["train", "evaluate", "train", "evaluate", "aggregate"]  # in turn
    assert [words[words.index("--seed") + 1] for words in calls[:4:2]] == ["42", "123"]
    assert Path("aggregated").exists()
    printed = Path(f"logs/kava_{record['jobs'][0]['id']}_0.out").read_text()
    assert "kava task: kava train --config debug" in printed


def test_cancel_saves_and_ends_everything(project: Path):
    Path("wait").touch()
    record = submit("--seeds", "42", "123")
    wait_for(lambda: Path("calls").exists())
    assert [row.state for row in rows(record)] == ["running", "pending", "pending"]
    assert main(["submit", "seeds", "--config", "debug", "--site", "site.yaml"]) == 2  # it is under way
    assert main(["jobs", "--cancel"]) == 0
    wait_for(lambda: Path("saved").exists() and rows(record)[0].state == "failed")
    found = finished(record)
    assert [row.state for row in found[1:]] == ["unknown"] * 2
    assert (found[0].exit_code, found[0].note) == (143, "stopped by SIGTERM; submit it again to continue")
    assert len(Path("calls").read_text().splitlines()) == 1


def test_a_warning_puts_a_task_back_into_the_queue(project: Path):
    Path("wait").touch()
    record = submit("--seeds", "42")
    wait_for(lambda: Path("calls").exists())
    state = Path("outputs/debug_multi_seed/.jobs/seeds/status-train-0.json")
    driver = int(json.loads(state.read_text())["job"])
    task = next(int(line.split()[0]) for line in processes() if f"{state}" in line and "kava task" in line)
    os.kill(task, signal.SIGUSR1)
    wait_for(lambda: Path("saved").exists())
    wait_for(lambda: len(Path("calls").read_text().splitlines()) == 2)
    Path("wait").unlink()
    assert [(row.state, row.attempt) for row in finished(record)] == [("ok", 2), ("ok", 1)]
    assert str(driver) == record["jobs"][0]["id"]


def processes() -> list[str]:
    return os.popen("ps -ww -e -o pid=,args=").read().splitlines()


@pytest.mark.long
def test_seeds_from_submission_to_the_aggregate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KAVA_SITE", raising=False)
    assert main(["submit", "seeds", "--config", "debug", "--scheduler", "local"]) == 0
    (record,) = records(["outputs"])
    wait_for(lambda: not any(alive(job["id"]) for job in record["jobs"]), patience=900)
    assert [row.state for row in rows(record)] == ["ok"] * 4, [p.read_text() for p in Path("logs").glob("*.err")]
    found = yaml.safe_load(Path("outputs/debug_multi_seed/aggregated_results.yaml").read_text())
    assert (found["debug"]["num_seeds"], list(found["debug"]["datasets"])) == (3, ["chains"])
