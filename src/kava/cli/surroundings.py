"""What a command line meets beside its flags: the three standard streams, words that are no text or empty, a deleted folder."""

import os
import re
import sys
from collections.abc import Sequence

from kava.console import tell
from kava.errors import ConfigError, KavaError, RunError

LONGEST_LINE = 400  # of a message: a pasted file in place of a name does not scroll the reason away
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # not tabs and line breaks


def open_streams() -> None:
    """Makes the standard streams usable: a closed input is empty, messages for a closed stderr are dropped.

    Raises where stdout is closed. Their numbers are taken in any case: the next file that is opened would else be
    standard output, and receive what libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, this one
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 (open as long as the process)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        raise RunError("standard output is closed, so the result would be lost", "redirect it: > FILE, or > /dev/null")
    for stream in (sys.stdout, sys.stderr):  # characters that the code page (GBK, ASCII) lacks become escapes
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def check_words(words: Sequence[str]) -> None:
    """Raises where a word of the command line, or the current folder's name, is no text in this locale's encoding."""
    encoding = sys.getfilesystemencoding()
    hint = "write it in UTF-8"
    if encoding != "utf-8":
        hint = f"this shell's encoding is {encoding}: export PYTHONUTF8=1, or LC_ALL=C.UTF-8"
    for word in words:
        if not _is_text(word):
            raise ConfigError(f"command line: {word!a} is no text in {encoding}", hint)
    try:
        folder = os.getcwd()
    except FileNotFoundError as error:
        raise RunError("the current folder has been deleted", "cd to another one") from error
    if not _is_text(folder):
        hint = hint if encoding != "utf-8" else "rename it, or work in another folder"
        raise RunError(f"the name of the current folder, {folder!a}, is no text in {encoding}", hint)


def refuse_empty_words(verb: str, words: Sequence[str]) -> None:
    """An error for `--output_dir ''`: an unset variable of a script, which would mean the working folder.

    Settings may be empty (`--dataset.config ''` is null), and what follows after `--` belongs to another command.
    """
    hint = "is a variable of a script not set? give a value, or leave it out"
    for before, word in zip([verb, *words], words, strict=False):
        if word == "--":
            return
        name, equals, value = word.partition("=")
        if equals and not value and name.startswith("--") and "." not in name:
            raise ConfigError(f"{name} is empty", hint)
        if not word and before.startswith("--") and "=" not in before:
            if "." not in before:
                raise ConfigError(f"{before} is empty", hint)
        elif not word:
            raise ConfigError(f"there is an empty word ('') after {before!r}", hint)


def message(problem: KavaError) -> str:
    """An error as it is printed: long lines are cut in their middle, control characters become escapes."""
    text = _CONTROL.sub(lambda match: ascii(match[0])[1:-1], str(problem))
    return "\n".join(_cut(line) for line in f"error: {text}".splitlines())


def say(text: str) -> None:
    """Prints a line to stderr; one that cannot be written is dropped, the exit code remains."""
    try:
        tell(text)
    except OSError:
        return


def _is_text(word: str) -> bool:
    """False where bytes stand in a word as lone surrogates."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _cut(line: str) -> str:
    if len(line) <= LONGEST_LINE:
        return line
    third = LONGEST_LINE // 3
    return f"{line[: 2 * third]} ... ({len(line) - LONGEST_LINE:,} letters) ... {line[-third:]}"
