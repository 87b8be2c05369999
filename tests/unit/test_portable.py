"""Calls that only POSIX systems have stand behind a guard, so that the package imports and runs on Windows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import kava
from kava.data.hub import model_repo
from kava.files import looks_like_path

SOURCE = Path(kava.__file__).parent
MODULES = {"fcntl", "grp", "pty", "pwd", "readline", "resource", "termios", "tty"}
OF_OS = {
    "fork", "forkpty", "geteuid", "getegid", "getgid", "getloadavg", "getpgid", "getpgrp", "getuid", "killpg", "mkfifo",
    "mknod", "nice", "register_at_fork", "sched_getaffinity", "setpgid", "setsid", "statvfs", "sysconf", "uname",
    "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "WIFEXITED", "WIFSIGNALED",
}  # fmt: skip
OF_SIGNAL = {"SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGUSR2", "alarm",
             "pause", "pthread_sigmask", "setitimer", "sigwait"}  # fmt: skip


def posix_only(tree: ast.Module) -> Iterator[tuple[int, str, list[ast.AST]]]:
    """Line, name and enclosing nodes (outermost first) of every use of something that Windows lacks."""
    stack: list[tuple[ast.AST, list[ast.AST]]] = [(tree, [])]
    while stack:
        node, above = stack.pop()
        stack += [(child, [*above, node]) for child in ast.iter_child_nodes(node)]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = {"os": OF_OS, "signal": OF_SIGNAL}.get(node.value.id, set())
            if node.attr in names:
                yield node.lineno, f"{node.value.id}.{node.attr}", above
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in MODULES.intersection(imported):
                yield node.lineno, f"import {name}", above


def guarded(name: str, line: int, above: list[ast.AST]) -> bool:
    """True inside `if` or `with suppress` that asks for the platform or the name, or below one that leaves the function."""
    for node in above:
        if isinstance(node, (ast.If, ast.IfExp)) and asks(node.test):
            return True
        if isinstance(node, ast.Try) and any(catches(handler) for handler in node.handlers):
            return True
        if isinstance(node, ast.BoolOp) and any(asks(value) for value in node.values):
            return True
        if isinstance(node, (ast.FunctionDef, ast.Module)) and any(
            isinstance(before, ast.If) and asks(before.test) and isinstance(before.body[-1], (ast.Return, ast.Raise))
            for before in node.body
            if before.lineno < line
        ):
            return True
        if isinstance(node, ast.comprehension) and any(asks(test) for test in node.ifs):
            return True
    return False


def asks(test: ast.AST) -> bool:
    text = ast.unparse(test)
    return any(guard in text for guard in ("sys.platform", "os.name", "hasattr("))


def catches(handler: ast.ExceptHandler) -> bool:
    return handler.type is not None and any(
        error in ast.unparse(handler.type) for error in ("ImportError", "AttributeError")
    )


def test_what_windows_lacks_is_guarded() -> None:
    problems = [
        f"{file.relative_to(SOURCE)}:{line}: {name}"
        for file in sorted(SOURCE.rglob("*.py"))
        for line, name, above in posix_only(ast.parse(file.read_text(encoding="utf-8")))
        if not guarded(name, line, above)
    ]
    assert not problems, problems


def test_an_unguarded_call_is_seen() -> None:
    for text in (
        "import os\nos.killpg(1, 2)",
        "import fcntl",
        "def f():\n    import pwd",
        "import signal\nsignal.SIGHUP",
    ):
        uses = list(posix_only(ast.parse(text)))
        assert [guarded(name, line, above) for line, name, above in uses] == [False], text
    for text in (
        "if hasattr(os, 'killpg'):\n    os.killpg(1, 2)",
        "def f():\n    if sys.platform == 'win32':\n        return\n    os.killpg(1, 2)",
        "try:\n    import readline\nexcept ImportError:\n    readline = None",
    ):
        assert [guarded(name, line, above) for line, name, above in posix_only(ast.parse(text))] == [True], text


@pytest.mark.parametrize("name", [r"C:\models\llama", "D:/models/llama", r"models\llama", "./llama", "/llama", "a/b/c"])
def test_paths_of_both_systems_are_no_names_on_the_hub(name: str) -> None:
    assert looks_like_path(name)
    assert model_repo(name, None) is None


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen2.5-0.5B-Instruct"])
def test_names_on_the_hub_are_no_paths(name: str) -> None:
    assert not looks_like_path(name)
    assert model_repo(name, None) is not None
