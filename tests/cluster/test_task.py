"""kava task: states on disk, exit codes, what a job needs, signals, and going back into the queue."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kava.cli.main import main
from kava.cluster import task as task_module
from kava.cluster.schedulers import SCHEDULERS, scheduler_named
from kava.cluster.task import Task, needed, read_status, split
from kava.errors import ConfigError

# it saves a checkpoint when it is told to stop, as a training does
SAVES = "trap 'touch saved; exit 143' TERM; echo ready >ready; while :; do sleep 0.02; done"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs shell lines as the commands of a task; `send` is sent to us as soon as one has made the file `ready`."""
    monkeypatch.chdir(tmp_path)

    def go(
        *lines: str, send: str | None = None, scheduler: str = "slurm", environ: dict[str, str] | None = None, **how
    ):
        given = {**os.environ, **(environ or {})}
        task = Task(
            Path("status.json"),
            [["bash", "-c", one] for one in lines],
            scheduler_named(scheduler),
            **how,
            environ=given,
        )
        stop = threading.Event()

        def sender() -> None:
            while not Path("ready").exists() and not stop.wait(0.01):
                pass
            if not stop.is_set():
                os.kill(os.getpid(), getattr(signal, send))

        before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where nohup runs the tests
        thread = threading.Thread(target=sender) if send else None
        if thread:
            thread.start()
        try:
            return task.run()
        finally:
            stop.set()
            if thread:
                thread.join()
            signal.signal(signal.SIGHUP, before)

    return go


def status() -> dict:
    return json.loads(Path("status.json").read_text())


# ---- how it went


def test_what_went_well_says_so(run):
    environ = {"SLURM_JOB_ID": "31", "SLURM_ARRAY_JOB_ID": "27", "SLURM_ARRAY_TASK_ID": "2"}
    assert run("grep -q started status.json", "touch second", environ=environ) == 0
    found = status()
    assert (found["state"], found["exit_code"], found["job"], found["task"], found["attempt"]) == ("ok", 0, "27", 2, 1)
    assert found["host"]
    assert found["began"] <= found["ended"]
    assert Path("second").exists()
    assert run("true", environ=environ) == 0
    assert status()["attempt"] == 2
    assert run("true", environ=environ | {"SLURM_ARRAY_JOB_ID": "28"}) == 0
    assert status()["attempt"] == 1


@pytest.mark.parametrize(("line", "code"), [("exit 5", 5), ("kill -KILL $$", 137), ("exit 99", 99)])
def test_exit_codes_travel_and_end_the_task(run, line: str, code: int):
    assert run(line, "touch second") == code
    assert (status()["state"], status()["exit_code"]) == ("failed", code)
    assert not Path("second").exists()


def test_keep_going_runs_the_rest_and_keeps_the_first_code(run):
    assert run("exit 5", "touch second", "exit 6", keep_going=True) == 5
    assert status()["state"] == "failed"
    assert Path("second").exists()


def test_a_program_that_is_not_there(run, capsys):
    task = Task(Path("status.json"), [["no-such-program"]], scheduler_named("slurm"))
    assert task.run() == 127
    assert "no-such-program cannot be started" in capsys.readouterr().err
    assert status()["state"] == "failed"


def test_an_output_folder_that_the_node_does_not_see(tmp_path: Path):
    with pytest.raises(ConfigError, match="is not visible from"):
        Task(tmp_path / "gone" / "status.json", [["true"]], scheduler_named("slurm")).run()
    assert not (tmp_path / "gone").exists()


# ---- what it needs


@pytest.mark.parametrize(("scheduler", "code"), [("slurm", 3), ("pbs", 3), ("local", 3), ("sge", 100)])
def test_it_refuses_what_is_not_ready(run, capfd, scheduler: str, code: int):
    for task, state in enumerate(("ok", "failed", "ok")):
        Path(f"status-train-{task}.json").write_text(json.dumps({"state": state, "job": "27"}))
    how = {"needs": ["status-train-[0-2].json"], "scheduler": scheduler}
    assert run("touch ran", **how) == code
    err = capfd.readouterr().err
    assert err == "error: not run, because status-train-1.json says failed (job 27)\n"
    assert status()["state"] == "refused"
    Path("status-train-1.json").unlink()
    assert run("touch ran", **how) == code
    assert "is not there: that task has not run" in capfd.readouterr().err
    Path("status-train-1.json").write_text('{"state": "started"}')  # half-finished
    assert run("touch ran", **how) == code
    assert not Path("ran").exists()
    Path("status-train-1.json").write_text('{"state": "ok"}')
    assert run("touch ran", **how) == 0


def test_a_torn_status_file_is_no_success(run):
    Path("status-a.json").write_text('{"state": "o')
    with pytest.raises(ConfigError, match="not a status file"):
        run("true", needs=["status-a.json"])


def test_ranges_name_files():
    assert needed(["a/status-x-[0-2].json"]) == [Path(f"a/status-x-{n}.json") for n in range(3)]
    assert needed(["a[1-2]/status.json"]) == [Path("a[1-2]/status.json")]
    assert read_status(Path("nowhere.json")) == {}


# ---- signals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR2"])
def test_whoever_ends_the_job_decides_about_it(run, name: str):
    assert run(SAVES, "touch second", send=name, requeue=True, scheduler="sge") == 143
    assert (status()["state"], status()["exit_code"], status()["signal"]) == ("failed", 143, name)
    assert Path("saved").exists()
    assert not Path("second").exists()


def test_a_warning_is_a_checkpoint_and_a_requeue(run, monkeypatch):
    Path("scontrol").write_text('#!/bin/bash\necho "$@" >asked\ncp status.json then.json\n')
    Path("scontrol").chmod(0o755)
    environ = {"SLURM_JOB_ID": "27", "PATH": f"{Path.cwd()}:{os.environ['PATH']}"}
    monkeypatch.setenv("PATH", environ["PATH"])
    assert run(SAVES, "touch second", send="SIGUSR1", requeue=True, environ=environ) == 143
    assert Path("asked").read_text() == "requeue 27\n"
    assert json.loads(Path("then.json").read_text())["state"] == "requeued"  # the scheduler may kill us for it
    assert (status()["state"], status()["signal"]) == ("requeued", "SIGUSR1")
    assert Path("saved").exists()


@pytest.mark.parametrize(("scheduler", "code"), [("sge", 99), ("lsf", 99), ("local", 99)])
def test_exit_codes_that_requeue(run, scheduler: str, code: int):
    assert run(SAVES, send="SIGUSR1", requeue=True, scheduler=scheduler) == code
    assert (status()["state"], status()["exit_code"]) == ("requeued", 143)


def test_a_scheduler_that_does_not_requeue(run, capfd, monkeypatch):
    assert run(SAVES, send="SIGUSR1", requeue=True, scheduler="cobalt") == 143
    assert status()["state"] == "failed"
    assert "submit the same again to continue" in capfd.readouterr().err
    Path("ready").unlink()
    Path("qrerun").write_text("#!/bin/bash\necho 'qrerun: Unauthorized Request' >&2\nexit 159\n")
    Path("qrerun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path.cwd()}:{os.environ['PATH']}")
    assert run(SAVES, send="SIGUSR1", requeue=True, scheduler="pbs") == 143
    assert status()["state"] == "failed"
    assert "Unauthorized Request; submit the same again" in capfd.readouterr().err


def test_without_requeue_a_warning_only_stops(run):
    assert run(SAVES, send="SIGUSR1", scheduler="sge") == 143
    assert status()["state"] == "failed"


def test_our_own_clock_where_no_scheduler_warns(run):
    assert run(SAVES, requeue=True, stop_after=1, scheduler="local") == 99
    assert (status()["state"], status()["signal"]) == ("requeued", "SIGALRM")
    assert Path("saved").exists()


def test_a_command_that_ends_well_all_the_same_is_not_requeued(run):
    line = "trap 'exit 0' TERM; echo ready >ready; while :; do sleep 0.02; done"
    assert run(line, send="SIGUSR1", requeue=True, scheduler="sge") == 0
    assert status()["state"] == "ok"
    Path("ready").unlink()
    assert run(line, "touch second", send="SIGUSR1", requeue=True, scheduler="sge") == 99  # but something is left to do
    assert status()["state"] == "requeued"
    assert not Path("second").exists()


def test_what_a_shell_has_started_is_told_later(run, monkeypatch: pytest.MonkeyPatch):
    """It passes no signal on, as torchrun or srun do."""
    monkeypatch.setattr(task_module, "FORWARDED", 0.05)
    inner = "trap 'touch saved; exit 0' TERM; echo ready >ready; while :; do sleep 0.02; done"
    assert run(f'bash -c "{inner}"; exit 7', send="SIGTERM", scheduler="slurm") == 143
    for _ in range(500):
        if Path("saved").exists():
            break
        threading.Event().wait(0.01)
    assert Path("saved").exists()


def test_only_the_command_itself_is_told_at_once(run):
    """Its loader workers and loggers are its own affair: they must live until it has saved."""
    helper = "trap 'touch helper_was_told' TERM; while :; do sleep 0.02; done"
    line = (
        f"bash -c \"{helper}\" & trap 'kill -KILL $!; touch saved; exit 143' TERM; sleep 0.2; echo ready >ready; wait"
    )
    assert run(line, send="SIGUSR1", scheduler="slurm") == 143
    assert Path("saved").exists()
    assert not Path("helper_was_told").exists()


def test_a_second_signal_does_not_break_off_the_requeueing(run, monkeypatch: pytest.MonkeyPatch):
    Path("scontrol").write_text("#!/bin/bash\nkill -TERM $PPID; sleep 0.1; echo $@ >asked\n")
    Path("scontrol").chmod(0o755)
    environ = {"SLURM_JOB_ID": "27", "PATH": f"{Path.cwd()}:{os.environ['PATH']}"}
    monkeypatch.setenv("PATH", environ["PATH"])
    assert run(SAVES, send="SIGUSR1", requeue=True, environ=environ) == 143
    assert (status()["state"], status()["signal"]) == ("requeued", "SIGUSR1")
    assert Path("asked").read_text() == "requeue 27\n"


def test_a_warning_to_every_process_of_the_job_ends_only_the_task(run):
    """Grid Engine's go beyond the session; torchrun would die of one, and its trainings unsaved."""
    assert run("kill -USR1 $$; kill -USR2 $$; touch alive") == 0
    assert Path("alive").exists()


def test_the_clock_is_off_and_signals_are_as_before(run):
    before = signal.getsignal(signal.SIGTERM)
    assert run("true", stop_after=60) == 0
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.alarm(0) == 0


# ---- the command line


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = ["task", "--status", "status.json", "--scheduler", "slurm", "--"]
    assert main([*words, "bash", "-c", "exit 4", "--then", "touch", "--dashes-stay"]) == 4
    assert status()["command"] == [["bash", "-c", "exit 4"], ["touch", "--dashes-stay"]]
    assert main([*words, "true", "--then"]) == 2
    assert "no command" in capfd.readouterr().err
    assert main([*words[:-2], "slrm", "--", "true"]) == 2
    assert "did you mean 'slurm'?" in capfd.readouterr().err
    assert split(["a", "--then", "b", "c"]) == [["a"], ["b", "c"]]


def test_a_login_node_needs_neither_torch_nor_numpy():
    names = ["submit", "jobs", "task"]
    script = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'transformers', 'datasets'): sys.modules[name] = None\n"
        "import importlib, kava.cli.main as m\n"
        f"for verb in {names}: importlib.import_module('kava.cli.' + verb)\n"
        "import kava.cluster.jobs, kava.cluster.plan, kava.cluster.detect, kava.cluster.driver\n"
        "words = ['submit', 'seeds', '--config', 'llama1b_aug', '--scheduler', 'slurm', '--dry_run']\n"
        "sys.exit(m.main(words))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("#!/bin/bash") == 2
    light = "import sys, kava.cluster.task; print('pydantic' in sys.modules, 'yaml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", light], capture_output=True, text=True)
    assert done.stdout == "False False\n"
    assert set(SCHEDULERS) == {"slurm", "pbs", "torque", "sge", "lsf", "cobalt", "local"}
