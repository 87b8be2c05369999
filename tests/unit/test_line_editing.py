"""The conversation's line editing: keys are no question, the history is private, and nothing of it ends the conversation."""

import io
import os
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub import tiny_student
from kava.infer.chat import Chat
from kava.infer.line_editing import LONGEST, history_file, line_editing, typed
from kava.infer.student import Student


class Readline(SimpleNamespace):
    """What we use of Python's readline."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def clear_history(self) -> None:
        self.lines.clear()

    def add_history(self, line: str) -> None:
        self.lines.append(line)

    def get_current_history_length(self) -> int:
        return len(self.lines)

    def get_history_item(self, number: int) -> str:
        return self.lines[number - 1]


@pytest.fixture
def readline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Readline:
    fake = Readline()
    monkeypatch.setitem(sys.modules, "readline", fake)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("KAVA_HISTORY", raising=False)
    return fake


@pytest.mark.parametrize(
    ("line", "question"),
    [
        ("\x1b[A3+4?", "3+4?"),
        ("\x1b[A\x1b[B\x1b[C", ""),
        ("3\x1b[D+\x1b[1;5C4?\x7f", "3+4?"),
        ("\x1bOP 2*3? ", "2*3?"),
        ("2^[3]?", "2^[3]?"),
        ("caf\u00e9 \u4e2d?", "caf\u00e9 \u4e2d?"),
    ],
)
def test_keys_are_no_question(line: str, question: str) -> None:
    assert typed(line) == question


def test_the_history_is_kept_and_private(readline: Readline, tmp_path: Path) -> None:
    for question in ("3+4?", "2*3?"):
        with line_editing(pytest.fail):
            readline.add_history(question)
    path = tmp_path / "state" / "kava" / "history"
    assert path.read_text(encoding="utf-8") == "3+4?\n2*3?\n"
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with line_editing(pytest.fail):
        assert readline.lines == ["3+4?", "2*3?"]
        readline.lines += ["x"] * (LONGEST + 5)
    assert len(path.read_text(encoding="utf-8").splitlines()) == LONGEST
    assert [each.name for each in path.parent.iterdir()] == ["history"]


def test_what_cannot_be_kept_is_a_note(readline: Readline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").write_text("a file")
    notes: list[str] = []
    with line_editing(notes.append):
        readline.add_history("3+4?")
    assert len(notes) == 1
    assert "are not kept" in notes[0]
    monkeypatch.setenv("KAVA_HISTORY", "")
    assert history_file() is None
    with line_editing(pytest.fail):
        readline.add_history("3+4?")
    monkeypatch.setenv("KAVA_HISTORY", str(tmp_path / "mine"))
    assert history_file() == tmp_path / "mine"


def test_without_a_terminal_nothing_is_kept(
    readline: Readline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("3+4?\n"))
    with line_editing(pytest.fail):
        readline.add_history("3+4?")
    assert not (tmp_path / "state").exists()


def test_a_question_that_does_not_fit_does_not_end_the_conversation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = Student.from_pretrained(tiny_student(tmp_path / "best_checkpoint"))
    monkeypatch.setattr(type(student.model), "max_positions", 64)
    lines, said = iter(["1+" * 200 + "1?", "3+4?", "/quit"]), list[str]()
    Chat(student, "latent", 4, said.append).run(lambda prompt: next(lines))
    errors = [text for text in said if text.startswith("error:")]
    assert len(errors) == 1
    assert "do not fit" in errors[0]
    assert "\n" not in errors[0]
    assert "forward passes" in said[-1]
