"""kava submit and kava jobs against fakes of PBS, Torque, LSF and Cobalt: programs that print what these document.

They are tests/schedulers/fakes/fake_*.py. A job's script really runs, with the variables and in the folder that it would have;
only what `kava task` starts is a stand-in.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from kava.cli.main import main

pytestmark = pytest.mark.long
FAKES = Path(__file__).resolve().parent.parent / "schedulers" / "fakes"
PROGRAMS = {
    "pbs": ("qsub", "qstat", "qdel", "qrls"),
    "torque": ("qsub", "qstat", "qdel", "qrls"),
    "lsf": ("bsub", "bjobs", "bkill"),
    "cobalt": ("qsub", "qstat", "qdel", "cqsub"),
}
IDS = {
    "pbs": ["4711[].server", "4712.server"],
    "torque": ["4711[].server", "4712.server"],
    "lsf": ["4711", "4712"],
    "cobalt": ["4711", "4712", "4713", "4714"],
}
UNKNOWN_QUEUE = {
    "pbs": "qsub: Unknown queue",
    "torque": "qsub: submit error (Unknown queue MSG=cannot locate queue)",
    "lsf": "gqu: No such queue. Job not submitted.",
    "cobalt": "queue 'gqu' does not exist",
}
# `kava` with the real `kava task`; a training fails where the folder holds a file `break`, and asks to go back at `again`
KAVA = """\
#!/bin/bash
[ "$1" != task ] || exec {python} -m kava "$@"
echo "$@" >>{calls}
case "$1" in
train)
    [ ! -f break ] || [[ "$*" != *"--seed 123"* ]] || exit 7
    if [ -f again ]; then rm again; trap 'exit 143' TERM; kill -USR1 $PPID; sleep 60 & wait $!; fi
    ;;
esac
"""
ROOT = "outputs/debug_multi_seed"


class Fake:
    """A login node of a fake scheduler: its commands are all that is on the PATH."""

    def __init__(self, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
        self.kind, self.capfd = kind, capfd
        self.programs, self.queue, self.calls = folder / "programs", folder / "queue.json", folder / "calls"
        self.programs.mkdir()
        self.install(kind, *PROGRAMS[kind], "begin", "end")
        monkeypatch.setenv("PATH", f"{self.programs}:{self.only('ps', 'bash', 'env', folder=folder)}")
        monkeypatch.setenv("FAKE_QUEUE", str(self.queue))
        for name in ("KAVA_SITE", "KAVA_OUTPUT_PATH", "SGE_ROOT", "PBS_CONF_FILE", "SLURM_JOB_ID"):
            monkeypatch.delenv(name, raising=False)
        inside = folder / "inside"
        inside.mkdir()
        (inside / "kava").write_text(KAVA.format(python=sys.executable, calls=shlex.quote(str(self.calls))))
        (inside / "kava").chmod(0o755)
        Path("site.yaml").write_text(yaml.safe_dump({"setup": [f"PATH={shlex.quote(str(inside))}:$PATH"]}))

    @staticmethod
    def only(*names: str, folder: Path) -> Path:
        """A folder with these programs of the machine, and none of a scheduler that may be installed."""
        (folder / "machine").mkdir()
        for name in names:
            (folder / "machine" / name).symlink_to(f"/usr/bin/{name}")
        return folder / "machine"

    def install(self, kind: str, *names: str) -> None:
        for name in names:
            words = shlex.join([sys.executable, str(FAKES / f"fake_{kind}.py"), name])
            (self.programs / name).write_text(f'#!/bin/bash\nexec {words} "$@"\n')
            (self.programs / name).chmod(0o755)

    def kava(self, *words: str, code: int = 0) -> tuple[str, str]:
        self.capfd.readouterr()
        found = main(list(words))
        said = self.capfd.readouterr()
        assert found == code, said
        return said.out, said.err

    def submit(self, *words: str, code: int = 0) -> tuple[str, str]:
        given = ("--config", "debug", "--time", "1h", "--site", "site.yaml")
        return self.kava("submit", "seeds", *given, *words, code=code)

    def record(self, *words: str) -> dict:
        return json.loads(self.submit(*words, "--quiet")[0])[0]

    def states(self) -> list[str]:
        return [row["state"] for row in json.loads(self.kava("jobs", "--quiet")[0])]

    def step(self, what: str) -> None:
        subprocess.run([str(self.programs / what)], check=True)

    def run_all(self) -> None:
        """One task after another, until none may run."""
        before = None
        while before != (before := self.queue.read_text()):
            self.step("begin")
            self.step("end")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "a project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def login(tmp_path: Path, project: Path, monkeypatch, capfd) -> Callable[[str], Fake]:
    return lambda kind: Fake(kind, tmp_path, monkeypatch, capfd)


@pytest.mark.parametrize("kind", PROGRAMS)
def test_from_submission_to_the_aggregate(login, kind: str) -> None:
    fake = login(kind)
    record = fake.record()
    assert record["scheduler"] == kind  # found by what is on the PATH
    assert [job["id"] for job in record["jobs"]] == IDS[kind]
    first = record["jobs"][:-1]
    assert record["jobs"][-1]["after"] == [job["id"] for job in first]
    assert sum(job["tasks"] or 1 for job in first) == 3
    assert fake.states() == ["pending"] * 4
    fake.step("begin")
    assert fake.states() == ["running", "pending", "pending", "pending"]
    fake.step("end")
    assert fake.states() == ["ok", "pending", "pending", "pending"]
    fake.run_all()
    assert fake.states() == ["ok"] * 4
    done = [line.split()[0] for line in fake.calls.read_text().splitlines()]
    assert done == ["train", "evaluate"] * 3 + ["aggregate"]
    seeds = [
        line.split("--seed ")[1].split()[0] for line in fake.calls.read_text().splitlines() if line.startswith("train")
    ]
    assert seeds == ["42", "123", "456"]
    printed = "".join(path.read_text() for path in Path("logs").iterdir())
    assert printed.count("kava task: kava train") == 3
    statuses = [json.loads(Path(file).read_text()) for job in record["jobs"] for file in job["status"]]
    assert [status["job"] for status in statuses] == [job["id"] for job in record["jobs"] for _ in job["status"]]
    numbers = [0, 1, 2] if len(first) == 1 else [None] * 3
    assert [status["task"] for status in statuses] == [*numbers, None]


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_failing_seed_keeps_the_aggregate_from_running(login, kind: str) -> None:
    fake = login(kind)
    Path("break").touch()
    fake.record()
    fake.run_all()
    *seeds, aggregate = fake.states()
    assert seeds == ["ok", "failed", "ok"]
    assert aggregate in ("failed", "cancelled", "unknown")  # ended by the scheduler; Torque says nothing of it any more
    assert "aggregate" not in fake.calls.read_text()
    Path("break").unlink()
    assert fake.record()["name"] == "seeds-2"
    fake.run_all()
    assert fake.states()[4:] == ["ok"] * 4


@pytest.mark.parametrize("kind", PROGRAMS)
def test_cancel(login, kind: str) -> None:
    fake = login(kind)
    record = fake.record()
    fake.step("begin")
    fake.step("end")
    ended = json.loads(fake.kava("jobs", "--cancel", "--quiet")[0])["cancelled"]
    ids = [job["id"] for job in record["jobs"]]
    assert ended == list(
        reversed(ids if kind != "cobalt" else ids[1:])
    )  # the last first; what is through is left alone
    fake.run_all()
    assert fake.calls.read_text().count("train") == 1
    assert fake.states()[0] == "ok"
    assert set(fake.states()[1:]) <= {"cancelled", "failed"}
    assert fake.kava("jobs", "--cancel")[0] == "cancelled: nothing was open\n"


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_queue_that_does_not_exist(login, kind: str) -> None:
    fake = login(kind)
    _, said = fake.submit("--partition", "gqu", code=2)
    assert UNKNOWN_QUEUE[kind] in said
    assert "--partition" in said.splitlines()[-1]
    assert not Path(ROOT).exists() or not list(Path(ROOT).rglob("*.json"))
    assert not fake.queue.exists()


@pytest.mark.parametrize("kind", ["pbs", "torque", "lsf"])  # Cobalt only warns
def test_an_after_that_does_not_exist(login, kind: str) -> None:
    _, said = login(kind).submit("--after", "99", code=2)
    assert "Invalid Job Dependency" in said or "done(99): No matching job found" in said
    assert not list(Path().rglob("jobs.json"))


def test_lsf_puts_a_job_back_that_was_warned(login) -> None:
    fake = login("lsf")
    Path("again").touch()
    fake.record("--seeds", "42")
    fake.step("begin")
    fake.step("end")
    assert fake.states() == ["pending", "pending"]
    status = json.loads(Path(f"{ROOT}/.jobs/seeds/status-train-0.json").read_text())
    assert (status["state"], status["signal"]) == ("requeued", "SIGUSR1")
    fake.run_all()
    assert fake.states() == ["ok", "ok"]
    assert json.loads(Path(f"{ROOT}/.jobs/seeds/status-train-0.json").read_text())["attempt"] == 2


def test_several_schedulers_are_a_question(login) -> None:
    fake = login("pbs")
    fake.install("lsf", *PROGRAMS["lsf"])
    _, said = fake.submit(code=2)
    assert said.startswith("error: several schedulers are here: lsf (bsub), pbs (qsub and ")
    assert "--scheduler lsf or pbs" in said
    assert not Path("outputs").exists()
    assert not fake.queue.exists()
    assert json.loads(fake.submit("--scheduler", "lsf", "--quiet")[0])[0]["scheduler"] == "lsf"
