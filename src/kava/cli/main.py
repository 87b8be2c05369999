"""The command `kava`. This file knows the verbs' names and imports only the one that runs; `kava --help` imports none.

A verb is a file `cli/<verb>.py` with a function of the verb's name (or a `typer.Typer` called `app`, for a verb with
verbs of its own). Its parameters are the flags: underscores are canonical, `--output-dir` is read as `--output_dir`, a
bool is a switch without a `--no-` twin, and a list parameter takes all words up to the next flag (see
`cli/list_flags.py`). A module attribute `CONTEXT = OVERRIDES` lets it take section.key=value (see `cli/common.py`).
"""

import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import kava
from kava.console import tell
from kava.data.hub import take_shared_store
from kava.errors import ConfigError, KavaError
from kava.progress import silent
from kava.registry import nearest


class Verb(NamedTuple):
    """One line of `kava --help`."""

    name: str
    panel: str
    line: str


VERBS: tuple[Verb, ...] = (
    Verb("demo", "Train and use", "a first run: distil the shipped checkpoint on built-in arithmetic, then compare"),
    Verb("train", "Train and use", "train a student from a recipe"),
    Verb("distill", "Train and use", "train a student on a separate teacher, with settings that fit this machine"),
    Verb("infer", "Train and use", "ask a trained student questions, one at a time or from a file"),
    Verb("show", "Measure", "one run: its state, learning curve, results and next commands"),
    Verb("runs", "Measure", "every run under a folder: recipe, seed, state, update, loss, best validation"),
    Verb("evaluate", "Measure", "accuracy and forward passes of a trained student on a data set"),
    Verb("rescore", "Measure", "score saved predictions again, without the model"),
    Verb("selection", "Measure", "show which tokens of the chain of thought each compressor keeps"),
    Verb("bench", "Measure", "measure speed, after checking that the fast and the plain way agree"),
    Verb("smoke", "Measure", "self-test: try every component once"),
    Verb("env", "Measure", "check this machine: device, paths, packages; recommend settings"),
    Verb("seeds", "Reproduce and compare", "train, evaluate and aggregate a recipe over several seeds"),
    Verb("suite", "Reproduce and compare", "run an experiment with all its controls: e1-e5, ablations"),
    Verb("aggregate", "Reproduce and compare", "mean and spread over seeds, as JSON and YAML"),
    Verb("format", "Reproduce and compare", "aggregated results as LaTeX tables and CSV, next to the paper's numbers"),
    Verb("analyze", "Reproduce and compare", "which claims a suite's results support, with statistical tests"),
    Verb("report", "Reproduce and compare", "runs as one self-contained page of figures and tables"),
    Verb("config", "Recipes and data", "list, explain, compare and export recipes"),
    Verb("data", "Recipes and data", "inspect a data set: counts, lengths, hashes"),
    Verb("assets", "Recipes and data", "fetch models and data for nodes without a network; check they are complete"),
    Verb("align", "Recipes and data", "match a teacher's tokens and layers to a student's; measure a layer map"),
    Verb("extract", "Recipes and data", "store a teacher's keys and values on disk, for training without the teacher"),
    Verb("submit", "Cluster", "run a verb as jobs of a scheduler: scripts, arrays, dependencies, requeueing"),
    Verb("jobs", "Cluster", "show the states of submitted jobs; cancel them"),
)
# messages of torch.save on a full disk
TORN = ("iostream error", "PytorchStreamWriter failed", "inline_container")
HIDDEN = ("task",)  # started by job scripts
FORMER = {"kept": "selection"}  # old names, still accepted
FLAGS = {
    "--help": "this text",
    "--version": "print the version and stop",
    "--install_completion": "tab completion for this shell, or for bash|zsh|fish",
    "--show_completion": "print the script for this shell, or for bash|zsh|fish|powershell",
}
CONVENTIONS = """\
Every verb: --help; settings of a recipe as section.key=value or --section.key value (kava config --keys lists them).
--quiet prints nothing but the result, as one JSON document on stdout; errors go to stderr.
Exit codes: 0 done, 1 a check failed, 2 your input, 130 interrupted."""


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
    for stream in (sys.stdout, sys.stderr):  # characters that the code page (GBK, ASCII) lacks become escapes
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None and "_KAVA_COMPLETE" in os.environ:
        from kava.cli.completion import complete

        return complete(os.environ["_KAVA_COMPLETE"])
    try:
        code = _dispatch(words)
        sys.stdout.flush()  # a closed pipe or a full disk shows up here, not at interpreter exit
    except KeyboardInterrupt:
        tell("interrupted")
        return 130
    except BrokenPipeError:  # `kava config --list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        problem = _users_problem(error)
        if problem is None:
            raise  # unexpected: it keeps its traceback
        tell(f"error: {problem}")
        return 2
    return code


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        print(help_text())
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


def underscores(words: Sequence[str]) -> list[str]:
    """Flag names with underscores: `--output-dir=a-b` becomes `--output_dir=a-b`; values stay as they are."""
    result: list[str] = []
    for position, word in enumerate(words):
        if word == "--":
            return [*result, *words[position:]]
        name, equals, value = word.partition("=")
        flag = word.startswith("--") and name[2:3].isalpha() and not any(space in name for space in " \n\t")
        result.append("--" + name[2:].replace("-", "_") + equals + value if flag else word)
    return result


def _run(verb: str, words: list[str]) -> int:
    import typer

    take_shared_store(os.environ)
    command = verb_command(verb, importlib.import_module(f"kava.cli.{verb}"))
    usage: Any = typer.BadParameter.__mro__[2]  # click's base error; newer typers carry a click of their own
    try:
        with silent("--quiet" in words):
            code = command.main(words, prog_name=f"kava {verb}", standalone_mode=False)
    except usage as error:
        text = error.format_message().strip().rstrip(".")
        message = f"kava {verb}: {text[:1].lower()}{text[1:]}"
        raise ConfigError(message, f"kava {verb} --help lists the flags") from error
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    return code if isinstance(code, int) else 0


def verb_command(verb: str, module: ModuleType) -> Any:
    """The command object of a verb's module, with its flags spelt with underscores."""
    import typer

    from kava.cli.list_flags import ListFlagCommand

    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        settings = dict(getattr(module, "CONTEXT", {}))
        app.command(verb, cls=ListFlagCommand, context_settings=settings)(getattr(module, verb))
    command = typer.main.get_command(app)
    command.context_settings.setdefault("help_option_names", ["--help", "-h"])  # subcommands inherit it
    for subcommand in (command, *getattr(command, "commands", {}).values()):
        for parameter in subcommand.params:
            if parameter.param_type_name == "option":
                parameter.opts = underscores(parameter.opts)
                negatives = [name for name in parameter.secondary_opts if not name.startswith("--no-")]
                parameter.secondary_opts = underscores(negatives)
    return command


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
    if isinstance(error, PermissionError):
        return KavaError(f"not allowed{name} ({error.strerror})", "choose a folder that you may write to")
    return None


if __name__ == "__main__":
    sys.exit(main())
