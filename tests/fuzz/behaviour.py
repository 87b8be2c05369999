"""The one property of every command line, whatever its words, its files and its surroundings.

A user's mistake ends in exit code 2 and one message, with nothing lost, overwritten or half written; nothing that is
surely wrong is accepted without a word. A case runs in this process, in a folder of its own.
"""

import contextlib
import io
import os
import shutil
import signal
import sys
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kava.cli.main import main

FIXTURES = Path(__file__).parent.parent / "fixtures"
LONGEST_MESSAGE = 1500  # characters: whoever pasted 10,000 wants to see what was wrong with them
SECONDS = 30  # of processor time; a case that takes longer hangs, each is of milliseconds


@dataclass(frozen=True)
class Case:
    """A command line and the folder it runs in: copies of fixtures, then `files` written over them (None: deleted)."""

    words: tuple[str, ...]
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    fixtures: tuple[str, ...] = ()
    wrong: str = ""  # why this cannot be right; empty: accepting it may be right
    environment: Mapping[str, str] = field(default_factory=dict)
    writes: tuple[str, ...] = ()  # files of the folder that the verb may rewrite, when it succeeds
    checks: bool = False  # the verb looks for faults or gaps, and says 1 where there are some

    def __repr__(self) -> str:
        contents = {name: content and content[:300] for name, content in self.files.items()}
        words = " ".join(map(ascii, self.words))[:600]
        return f"kava {words}\n  files {contents}\n  environment {dict(self.environment)}\n  wrong: {self.wrong or 'perhaps'}"


@dataclass(frozen=True)
class Outcome:
    """What a command line said and did."""

    code: int | None
    out: str
    err: str
    escaped: BaseException | None
    before: dict[str, bytes]
    after: dict[str, bytes]


class TooLong(BaseException):
    """A case that hangs."""


def run(case: Case) -> Outcome:
    """The outcome of the case's command line, in a new folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="kava-fuzz-") as name:
        folder = Path(name)
        for fixture in case.fixtures:
            shutil.copytree(FIXTURES / fixture, folder / fixture)
        for path, content in case.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                (folder / path).unlink()
            else:
                (folder / path).write_bytes(content)
        before = _content(folder)
        code, escaped = None, None
        with _place(folder, case.environment), _streams() as (out, err), _time_limit():
            try:
                code = main(case.words)
            except (Exception, SystemExit, TooLong) as error:  # noqa: BLE001 (whatever escapes is what is looked for)
                escaped = error
        return Outcome(code, _text(out), _text(err), escaped, before, _content(folder))


def faults(case: Case, outcome: Outcome) -> list[str]:
    """What the command did that it must not do; empty if it was well behaved."""
    code, err = outcome.code, outcome.err
    if outcome.escaped is not None:
        return [f"{type(outcome.escaped).__name__} escaped: {str(outcome.escaped)[:300]}"]
    problems = []
    if code not in (0, 2) and not (code == 1 and case.checks):
        problems.append(f"exit code {code}")
    if "Traceback" in outcome.out + err:
        problems.append("a traceback was printed")
    if code == 2:
        problems += _message_faults(err)
    if case.wrong and code == 0 and not any(word in (outcome.out + err).lower() for word in ("warning", "note:")):
        problems.append(f"accepted without a word: {case.wrong}")
    return problems + _file_faults(case, outcome)


def _message_faults(err: str) -> list[str]:
    """One error of at most three lines, the last thing that is said."""
    start = 0 if err.startswith("error: ") else err.find("\nerror: ") + 1
    message = err[start:]
    problems = []
    if not message.startswith("error: "):
        return [f"exit code 2 without a message: {err[-200:]!r}"]
    if message.count("error: ") > 3 or len(message.strip().splitlines()) > 3:
        problems.append(f"the message has {len(message.strip().splitlines())} lines")
    if len(message) > LONGEST_MESSAGE:
        problems.append(f"the message has {len(message)} characters")
    if odd := sorted({char for char in err if unicodedata.category(char) == "Cc" and char not in "\n\t\r"}):
        problems.append(f"the message has control characters: {odd}")
    if message.strip() == "error:":
        problems.append("the message is empty")
    return problems


def _file_faults(case: Case, outcome: Outcome) -> list[str]:
    """Files that were lost, changed or left half written."""
    before, after = outcome.before, outcome.after
    allowed = case.writes if outcome.code == 0 else ()
    lost = [name for name in before if name not in after]
    changed = [name for name in before if name in after and before[name] != after[name] and name not in allowed]
    partial = [name for name in after if ".partial-" in name and name not in before]
    new = [] if outcome.code == 0 else sorted(set(after) - set(before))
    named = {"lost": lost, "changed": changed, "left half written": partial, "written though refused": new}
    return [f"{what}: {', '.join(names[:4])}" for what, names in named.items() if names]


def _content(folder: Path) -> dict[str, bytes]:
    """Every file and its bytes."""
    return {
        os.path.relpath(os.path.join(root, name), folder): Path(root, name).read_bytes()
        for root, _, names in os.walk(folder)
        for name in names
        if Path(root, name).is_file()
    }


@contextlib.contextmanager
def _place(folder: Path, variables: Mapping[str, str]) -> Iterator[None]:
    """Works in the folder, which is also the home folder; place and environment are as before afterwards."""
    here, environment = Path.cwd(), dict(os.environ)
    try:
        os.chdir(folder)
        os.environ.update({"HOME": str(folder), **variables})
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(environment)


@contextlib.contextmanager
def _streams() -> Iterator[tuple[Any, Any]]:
    """Standard output and error of the poorest terminal, kept; nothing is typed."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True) for _ in range(2))
    typed = sys.stdin
    sys.stdin = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield out, err
    finally:
        sys.stdin = typed


def _text(stream: Any) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode("ascii")


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """TooLong is raised in a case that hangs, by its processor time (where the system has such an alarm)."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise TooLong(f"{SECONDS} seconds")

    usual = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, usual)
