"""Every verb under a terminal of 80 columns: it is never silent for long, no line is too long, nothing is dumped."""

import fcntl
import os
import pty
import re
import shlex
import struct
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.in_order, pytest.mark.skipif(sys.platform == "win32", reason="no pty")]
COLUMNS = 80
SILENCE = 5.0  # seconds, on a machine with nothing else to do
ROOT = Path(__file__).resolve().parents[2]
TINY = "training.max_steps=4 dataset.subset_size=16 logging.report_to=[] system.num_workers=0"
SMALL = "--layers 2 --width 32 --heads 2 --kv_heads 2 --vocabulary 100 --question 4 --cot 6 --repeats 2"
STUDENT = "run/seed_1/best_checkpoint"

# in this order: later ones use the files of earlier ones
COMMANDS = {
    "train": f"train --config debug --output_dir run/seed_1 {TINY}",
    "distill": "distill --config explicit_embedded --quick_test --output_dir explicit",
    "evaluate": f"evaluate --checkpoint {STUDENT} --limit 16 --losses",
    "infer": f"infer --checkpoint {STUDENT} --questions 3+4? 2*3?",
    "extract": "extract --config explicit_embedded --output_dir store dataset.subset_size=16",
    "seeds": "seeds --config debug --seeds 1 2 --output_dir seeds",
    "suite": "suite e1-e5 --config debug --members E1_baseline E4_rkv --seeds 1 --output_dir suite",
    "analyze": "analyze --output_base suite",
    "report": "report suite --output report.html",
    "bench": f"bench train {SMALL}",
    "smoke": "smoke",
    "demo": "demo --config debug --output_dir demo",
    "show": "show run/seed_1",
    "runs": "runs .",
    "selection": f"selection --checkpoint {STUDENT} --examples 1",
    "config": "config --list",
    "keys": "config --keys",
    "compare": "config --compare llama1b_aug embedded",
    "data": "data check chains",
    "env": "env",
    "help": "--help",
    "train_help": "train --help",
}


@dataclass(frozen=True)
class Session:
    """What a command wrote on its terminal, and the longest time for which it wrote nothing while it ran."""

    text: str
    code: int
    silence: float
    before: str

    @property
    def lines(self) -> list[str]:
        return [re.sub(r"\x1b\[[\d;]*m", "", line).rstrip() for line in re.split(r"[\r\n]+", self.text)]


def under_a_terminal(words: str, folder: Path, columns: int = COLUMNS) -> Session:
    """Runs `kava words` as the leader of a terminal of its own."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "TERM": "xterm"}
        os.execve(sys.executable, [sys.executable, "-m", "kava", *shlex.split(words)], environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    written, last, silence, before = b"", time.monotonic(), 0.0, b""
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        now = time.monotonic()
        if now - last > silence:
            silence, before = now - last, written[-80:]
        written, last = written + chunk, now
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    return Session(written.decode(errors="replace"), code, silence, before.decode(errors="replace"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("screen")


@pytest.fixture
def patience(folder: Path) -> float:
    """The bound on silence: what starting Python takes now, which a loaded machine makes long, counts as well."""
    began = time.monotonic()
    assert under_a_terminal("config --get debug", folder).code == 0
    return SILENCE + 3 * (time.monotonic() - began)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_never_silent_never_a_dump(name: str, folder: Path, patience: float) -> None:
    session = under_a_terminal(COMMANDS[name], folder)
    print(f"{name}: silent for at most {session.silence:.1f} s, after {session.before!r}")
    assert session.code == 0, session.text
    assert session.silence < patience, session.before
    long = [line for line in session.lines if len(line) > COLUMNS and not _one_word(line)]
    assert not long, "\n".join(long)
    assert not [line for line in session.lines if re.search(r'\{"|\{\'', line)]


def _one_word(line: str) -> bool:
    """A path or an address that could not be broken."""
    return max(map(len, line.split())) > COLUMNS - 10
