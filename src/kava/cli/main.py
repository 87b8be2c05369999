"""The command `kava`. It imports only the verb that runs; `kava --help` imports none."""

import errno
import importlib
import os
import signal
import sys
import sysconfig
from collections.abc import Sequence
from contextvars import copy_context
from pathlib import Path
from typing import Any

import kava
from kava.cli.surroundings import check_words, message, open_streams, refuse_empty_words, say
from kava.cli.verbs import FLAGS, FORMER, HIDDEN, VERBS, underscores, verb_command
from kava.console import fitted
from kava.data.hub import take_shared_store
from kava.errors import ConfigError, KavaError
from kava.progress import silent
from kava.registry import nearest
from kava.stop_signals import RaiseStopped, Stopped, exit_code, write_stderr

# messages of torch.save on a full disk
TORN = ("iostream error", "PytorchStreamWriter failed", "inline_container")
TYPERS_INTERRUPT = 130  # what newer versions return in place of a KeyboardInterrupt
CONVENTIONS = """\
Every verb: --help; settings of a recipe as section.key=value or --section.key value (kava config --keys lists them).
--quiet prints nothing but the result, as one JSON document on stdout; errors go to stderr.
Exit codes: 0 done, 1 a check failed, 2 your input, 128 + signal stopped by a signal (130 Ctrl-C, 143 SIGTERM)."""


def help_text() -> str:
    """What `kava --help` prints."""
    lines = [
        "usage: kava VERB [FLAGS]",
        "",
        "KaVa: latent reasoning by distilling a teacher's compressed KV cache.",
        "",
    ]
    for panel in dict.fromkeys(verb.panel for verb in VERBS):
        lines += [f"{panel}:", *(f"  {verb.name:<10} {verb.line}" for verb in VERBS if verb.panel == panel), ""]
    return "\n".join([*lines, *(f"  {flag:<22}{line}" for flag, line in FLAGS.items()), "", CONVENTIONS])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; every user error ends here as one message."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None and "_KAVA_COMPLETE" in os.environ:
        from kava.cli.completion import complete

        return complete(os.environ["_KAVA_COMPLETE"])
    with RaiseStopped(for_good=argv is None) as signals:
        try:
            open_streams()
            code = copy_context().run(_dispatch, words)  # what it allows ends with it
            sys.stdout.flush()  # a closed pipe or a full disk shows up here, not at interpreter exit
        except KeyboardInterrupt as stop:
            return _stopped(stop)
        except Exception as error:
            if signals.stop is not None:  # an import that was broken off raises errors of its own
                return _stopped(signals.stop)
            if isinstance(error, BrokenPipeError):  # `kava config --list | head`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 141
            problem = _users_problem(error)
            if problem is None:
                raise  # unexpected: it keeps its traceback
            say(message(problem))
            return 2
        return _stopped(signals.stop) if signals.stop is not None and code == TYPERS_INTERRUPT else code


def _stopped(stop: KeyboardInterrupt) -> int:
    """Says that the command was stopped, and how to continue; returns the exit code."""
    number, hint = (stop.number, stop.hint) if isinstance(stop, Stopped) else (signal.SIGINT, None)
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    write_stderr(f"interrupted{by}" + (f"\n  hint: {hint}" if hint else ""))
    return exit_code(number)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        print(fitted(help_text(), indent=" " * 13))
        return 0
    if words[0] == "--version":
        print(f"kava {kava.__version__}")
        return 0
    if (flag := words[0].replace("-", "_").replace("__", "--", 1)) in ("--install_completion", "--show_completion"):
        from kava.cli.completion import install, script, shell_named

        shell = shell_named(words[1:], flag)
        print(script(shell) if flag == "--show_completion" else install(shell))
        return 0
    words[0] = FORMER.get(words[0], words[0])
    names = [*(verb.name for verb in VERBS), *HIDDEN]
    if words[0] not in names:
        kind = "flag" if words[0].startswith("-") else "verb"
        raise ConfigError(
            f"unknown {kind} {words[0]!r}",
            nearest(words[0], [*names, *FLAGS]),
        )
    return _run(words[0], underscores(words[1:]))


def _run(verb: str, words: list[str]) -> int:
    import typer

    check_words(words)
    refuse_empty_words(verb, words)
    take_shared_store(os.environ)
    command = verb_command(verb, importlib.import_module(f"kava.cli.{verb}"))
    usage: Any = typer.BadParameter.__mro__[2]  # click's base error; newer typers carry a click of their own
    try:
        with silent("--quiet" in words):
            code = command.main(words, prog_name=f"kava {verb}", standalone_mode=False)
    except usage as error:
        from kava.cli.usage import usage_error

        raise usage_error(verb, command, words, error) from error
    except typer.Abort as error:
        raise error.__cause__ if isinstance(error.__cause__, KeyboardInterrupt) else KeyboardInterrupt() from error
    return code if isinstance(code, int) else 0


def _users_problem(error: Exception) -> KavaError | None:
    """The error as one message, if its cause is the user or the machine; None for a bug of kava."""
    if isinstance(error, KavaError):
        return error
    name = f": {error.filename}" if isinstance(error, OSError) and error.filename else ""
    # safetensors and torch raise errors of their own, not OSError, with the same words
    if any(words in str(error) for words in ("No space left on device", "Disk quota exceeded", "File too large")):
        return KavaError(f"the disk is full{name} ({error})", "free some space or choose another --output_dir")
    if isinstance(error, RuntimeError) and any(words in str(error) for words in TORN):
        reason = str(error).splitlines()[0]
        return KavaError(f"a file could not be written: is the disk full? ({reason})", "free some space, then continue")
    if isinstance(error, OSError) and error.errno in (errno.EBADF, errno.EIO) and not error.filename:
        return KavaError(
            f"standard input or output cannot be used ({error.strerror})", "look at the < and > of the command"
        )
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # Path.expanduser
        return KavaError(
            "a path begins with ~, but no home folder is known for it", "set HOME, or write the path in full"
        )
    if isinstance(error, PermissionError):
        return KavaError(f"not allowed{name} ({error.strerror})", "choose a folder that you may write to")
    if isinstance(error, OSError) and error.errno is not None and _is_users(error.filename):
        return KavaError(f"{os.fsdecode(error.filename)}: {error.strerror}", "choose another place, or mend this one")
    return None


def _is_users(name: object) -> bool:
    """Whether a file that the system refused is outside of the installed code; one inside is kava's own mistake."""
    if not isinstance(name, str | bytes):
        return False
    place = Path(os.path.abspath(os.fsdecode(name)))
    code = [Path(kava.__file__).parent, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))]
    return not any(place.is_relative_to(folder) for folder in code)


if __name__ == "__main__":
    sys.exit(main())
