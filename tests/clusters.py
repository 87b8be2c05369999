"""Real schedulers for a test: Slurm with two emulated nodes, Grid Engine with one, in namespaces of their own.

The script in tests/schedulers/ is the first process of new mount, network, process and host name spaces: other daemons, ports
and files of the machine stay as they are, and all that was started ends with that process.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parent / "schedulers"
SPACES = ("--mount", "--uts", "--net", "--ipc", "--pid")
NEEDED = {
    "slurm": ("sbatch", "scontrol", "slurmctld", "slurmd", "munged"),
    "sge": ("qsub", "qstat", "qconf", "sge_qmaster", "sge_execd"),
}
PACKAGES = {"slurm": "slurm-wlm munge", "sge": "gridengine-master gridengine-exec gridengine-client"}
USER = {"slurm": "root", "sge": "nobody"}  # Grid Engine takes no jobs of root
PATIENCE = 600
QUICK = (
    "dataset.generator.train_size=64", "dataset.generator.val_size=8", "dataset.generator.test_size=16",
    "training.batch_size=8", "training.max_steps=4", "system.device=cpu",
)  # fmt: skip
LONG = (
    "dataset.generator.train_size=512", "dataset.generator.val_size=8", "dataset.generator.test_size=16",
    "training.batch_size=8", "logging.logging_steps=1", "logging.save_steps=1000", "system.device=cpu",
)  # fmt: skip
SMALL = ("--gpus", "0", "--cpus", "1", "--mem", "0")  # what these nodes have


def why_not(kind: str) -> str | None:
    """Why this machine cannot start it; None: it can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in NEEDED[kind] if shutil.which(name, path=path) is None]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install --no-install-recommends {PACKAGES[kind]}"
    if os.geteuid() != 0:
        return "its daemons need root"
    hidden = [path for path in (SCRIPTS.parent.parent / "src").rglob("*") if not path.stat().st_mode & 0o004]
    if hidden and USER[kind] != "root":
        return f"{hidden[0]} is not for {USER[kind]} to read"
    done = subprocess.run(["unshare", *SPACES, "--fork", "true"], capture_output=True, text=True, check=False)
    return f"no namespaces: {done.stderr.strip()}" if done.returncode else None


def closed() -> list[str]:
    """The folders on the way to Python and to us that only their owner may pass through, the outermost first."""
    wanted = [Path(sys.base_prefix), Path(sys.prefix), SCRIPTS.parent.parent]
    ways = {folder.resolve() for path in wanted for folder in (path, *path.parents)}
    return [str(folder) for folder in sorted(ways) if not folder.stat().st_mode & 0o001]


@dataclass
class Cluster:
    """A scheduler that runs, and a folder that its user may write to."""

    kind: str
    process: int
    folder: Path
    own: Path

    @property
    def environment(self) -> dict[str, str]:
        names = {"slurm": {"SLURM_CONF": str(self.own / "slurm.conf")}, "sge": {"SGE_ROOT": "/var/lib/gridengine"}}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SGE", "KAVA"))}
        return kept | names[self.kind] | {"HOME": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(self, *words: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """A command where the scheduler is, in the folder. `code`: how it must end (None: in any way)."""
        inside = ["nsenter", "--target", str(self.process), *SPACES, "env", "-C", str(self.folder)]
        inside += ["runuser", "-u", USER[self.kind], "--", *words]
        done = subprocess.run(inside, capture_output=True, text=True, env=self.environment, timeout=300, check=False)
        assert code is None or done.returncode == code, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done

    @contextmanager
    def project(self) -> Iterator[None]:
        """A folder of its own to work in, for the time of the block."""
        before, self.folder = self.folder, Path(tempfile.mkdtemp(dir=self.folder))
        os.chown(self.folder, pwd.getpwnam(USER[self.kind]).pw_uid, -1)
        try:
            yield
        finally:
            self.folder = before

    def kava(self, *words: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "kava", *words, code=code)

    def submit(self, verb: str, *words: str) -> dict[str, Any]:
        """The record of `kava submit`."""
        done = self.kava("submit", verb, *words, "--scheduler", self.kind, *SMALL, "--quiet")
        (record,) = json.loads(done.stdout)
        return record

    def jobs(self, folder: str) -> dict[tuple[str, int | None], dict[str, Any]]:
        """What `kava jobs` shows, by label and task."""
        found = json.loads(self.kava("jobs", folder, "--quiet").stdout)
        return {(row["label"], row["task"]): row for row in found}

    def states(self, folder: str) -> dict[tuple[str, int | None], str]:
        return {key: row["state"] for key, row in self.jobs(folder).items()}

    def until(self, ready: Callable[[], Any], what: str) -> Any:
        """What `ready` returns as soon as it is true."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            found = ready()
            if found:
                return found
            time.sleep(0.5)
        raise AssertionError(f"no {what} within {PATIENCE} seconds\n{self.printed()}")

    def ended(self, folder: str) -> dict[tuple[str, int | None], str]:
        """The states, when nothing of it waits or runs."""
        still = {"pending", "running", "started", "requeued"}

        def through() -> dict[tuple[str, int | None], str] | None:
            found = self.states(folder)
            return None if still & set(found.values()) else found

        return self.until(through, f"end of {folder}")

    def losses(self, run: str) -> dict[int, float]:
        """The journal's loss of every update so far."""
        log = self.folder / run / "log.jsonl"
        lines = log.read_text().splitlines(keepends=True) if log.exists() else []
        found = [json.loads(line) for line in lines if '"loss"' in line and line.endswith("\n")]
        return {line["step"]: line["loss"] for line in found}

    def stopped_until_told_to_end(self, run: str, updates: int) -> None:
        """Lets the training in `run` make so many updates and stand still until a signal tells it to end.

        So a time limit of minutes finds a short training still there. One that is told before it could begin is let go.
        """

        def trainer() -> int | None:
            if len(self.losses(run)) < updates:
                return None
            for line in self.run("ps", "-eo", "pid=,args=").stdout.splitlines():
                number, *words = line.split()
                if "train" in words[1:4] and run in words and "task" not in words:
                    return int(number)
            return None

        number = self.until(trainer, f"{updates} updates in {run}")
        self.run("kill", "-STOP", str(number))

        def told() -> bool:
            lines = self.run("cat", f"/proc/{number}/status").stdout.splitlines()
            masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
            return any(mask >> (signal.SIGTERM - 1) & 1 for mask in masks)

        self.until(told, f"signal to {run}")
        self.run("kill", "-CONT", str(number))

    def status(self, record: dict[str, Any], job: int = 0, task: int = 0) -> dict[str, Any]:
        """What a task wrote; {} before it began."""
        file = self.folder / record["jobs"][job]["status"][task]
        return json.loads(file.read_text()) if file.exists() else {}

    def saved(self, run: str) -> dict[str, bytes]:
        """The weights of its last checkpoint and of its student."""
        last = max(self.folder.glob(f"{run}/checkpoint-step*"), key=lambda path: int(path.name.partition("step")[2]))
        return {
            path.name: (path / "trained.safetensors").read_bytes() for path in (last, last.parent / "best_checkpoint")
        }

    def printed(self) -> str:
        """The end of what the jobs printed."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in sorted(self.folder.glob("logs/*")))


@contextmanager
def started(kind: str) -> Iterator[Cluster]:
    """The scheduler, until the block ends."""
    base = Path(tempfile.mkdtemp(prefix=f"kava-{kind}-"))
    base.chmod(0o755)
    folder, own = base / "project", base / kind
    folder.mkdir()
    user = pwd.getpwnam(USER[kind])
    os.chown(folder, user.pw_uid, user.pw_gid)
    path = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    words = ["unshare", *SPACES, "--fork", "--kill-child", "--mount-proc", "bash", str(SCRIPTS / f"start_{kind}.sh")]
    with (base / "start.log").open("w") as log:
        outer = subprocess.Popen(
            [*words, str(own), *(closed() if kind == "sge" else [])],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | path,
        )
    try:
        end = time.monotonic() + 60
        while not (own / "ready").exists():
            if outer.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"{kind} did not start:\n{(base / 'start.log').read_text()}")
            time.sleep(0.1)
        first = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()[0]
        yield Cluster(kind, int(first), folder, own)
    finally:
        outer.kill()  # and with it the first process inside, and with that all others
        outer.wait()
        shutil.rmtree(base, ignore_errors=True)
