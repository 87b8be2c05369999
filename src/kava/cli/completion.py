"""Tab completion: verbs, flags, choices, recipe names and settings; scripts for bash, zsh, fish and PowerShell from typer.

The shell starts `kava` with _KAVA_COMPLETE set, and `main` then prints what could come next. Loads no torch.
"""

import importlib
import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from kava.cli.verbs import FLAGS, FORMER, VERBS, verb_command
from kava.errors import ConfigError, RunError
from kava.registry import nearest

VARIABLE = "_KAVA_COMPLETE"
SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
RECIPE_FLAGS = ("--config", "--get", "--compare")
SHORT = 60  # characters of a description


@dataclass(frozen=True)
class Candidate:
    """What could stand here; the shape that click's completion classes read."""

    value: str
    help: str = ""
    type: str = "plain"


def candidates(words: Sequence[str], start: str) -> list[Candidate]:
    """What may follow `words` (those after `kava`) and begins with `start`; none: the shell offers files."""
    return [entry for entry in _all(list(words), start) if entry.value.startswith(start)]


def _all(words: list[str], start: str) -> list[Candidate]:
    if not words:
        flags = [Candidate(*flag) for flag in FLAGS.items()] if start.startswith("-") else []
        return [*(Candidate(verb.name, verb.line[:SHORT]) for verb in VERBS), *flags]
    if words[0] in ("--install_completion", "--show_completion"):
        return [Candidate(shell) for shell in SHELLS]
    verb = FORMER.get(words[0], words[0])
    if verb not in [known.name for known in VERBS]:
        return []
    command = verb_command(verb, importlib.import_module(f"kava.cli.{verb}"))
    words = words[1:]
    subcommands = getattr(command, "commands", {})
    if subcommands and words and words[0] in subcommands:
        command, words = subcommands[words[0]], words[1:]
    elif subcommands and not start.startswith("-"):
        return [Candidate(name, (each.get_short_help_str() or "")[:SHORT]) for name, each in subcommands.items()]
    return _of_command(command, verb, words, start)


def _of_command(command: Any, verb: str, words: list[str], start: str) -> list[Candidate]:
    """Values of the flag before, flags, settings."""
    options = {name: parameter for parameter in command.params for name in getattr(parameter, "opts", ())}
    key = words[-2] if words[-1:] == ["="] else words[-1] if words else ""
    if (choices := _choices_of_key(key)) is not None:  # bash splits section.key=value at the =
        return choices
    before = next((place for place in range(len(words) - 1, -1, -1) if words[place].startswith("--")), None)
    if before is not None:
        flag = "--" + words[before][2:].replace("-", "_")
        if verb == "config" and flag == "--keys":
            return _sections()
        parameter, taken = options.get(flag), len(words) - 1 - before
        many = getattr(parameter, "multiple", False)
        takes = 0 if parameter is None or parameter.is_flag else getattr(parameter, "nargs", 1)
        if parameter is not None and (taken < takes or many) and not start.startswith("-"):
            return _values(flag, command, parameter.name)
    settings = command.context_settings.get("allow_extra_args", False)
    if start.startswith("-"):
        return _flags(options, verb) + (_settings("--", "") if settings and "." in start else [])
    return _settings("", start) if settings else []


def _values(flag: str, command: Any, name: str) -> list[Candidate]:
    if flag in RECIPE_FLAGS:
        from kava.config import list_recipes, load_recipe

        return [Candidate(name, load_recipe(name).about.title[:SHORT]) for name in list_recipes()]
    kind = get_type_hints(inspect.unwrap(command.callback)).get(name)
    return [Candidate(str(choice)) for choice in _literals(kind)]


def _literals(kind: Any) -> list[Any]:
    """The values of every Literal in an annotation."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [value for part in get_args(kind) for value in _literals(part)]


def _flags(options: dict[str, Any], verb: str) -> list[Candidate]:
    flags = [Candidate(name, (each.help or "")[:SHORT]) for name, each in options.items() if name.startswith("--")]
    if verb == "distill":
        from kava.cli.distill_table import BY_NAME

        flags += [Candidate(f"--{name}", flag.help[:SHORT]) for name, flag in BY_NAME.items()]
    return [*flags, Candidate("--help", "what this verb does")]


def _settings(prefix: str, start: str) -> list[Candidate]:
    """Keys as words (section.key=) or flags (--section.key); after the = its choices."""
    from kava.config import KEYS

    name, equals, _ = start.partition("=")
    if equals:
        return [Candidate(f"{name}={choice.value}") for choice in _choices_of_key(name) or ()]
    end = "" if prefix else "="
    return [Candidate(f"{prefix}{key.name}{end}", key.description[:SHORT]) for key in KEYS.values()]


def _choices_of_key(name: str) -> list[Candidate] | None:
    """The values a key may have, where they are few; None if `name` is no key."""
    if "." not in name:
        return None
    from kava.config import KEYS

    key = KEYS.get(name.removeprefix("--"))
    if key is None:
        return None
    if key.kind.startswith("true or false"):
        return [Candidate("true"), Candidate("false")]
    if not key.kind.startswith("one of "):
        return []
    words = key.kind.removeprefix("one of ").removesuffix(" or null").split(", ")
    return [Candidate(word) for word in words if not word.startswith("or ")]


def _sections() -> list[Candidate]:
    from kava.config import KEYS

    return [Candidate(name) for name in dict.fromkeys(key.rpartition(".")[0] for key in KEYS)]


def complete(instruction: str) -> int:
    """Prints the candidates for the command line that the shell has put into the environment."""
    from typer import completion
    from typer.core import TyperCommand

    class Root(TyperCommand):
        def shell_complete(self, ctx: Any, incomplete: str) -> Any:
            return candidates(ctx.args, incomplete)

    taken_as_words = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    root = Root("kava", params=[], context_settings=taken_as_words, add_help_option=False)
    completion.completion_init()
    return int(completion.shell_complete(root, {}, "kava", VARIABLE, instruction))


def script(shell: str) -> str:
    """The completion script of a shell."""
    from typer.completion import get_completion_script

    text = str(get_completion_script(prog_name="kava", complete_var=VARIABLE, shell=shell))
    if shell == "bash":  # no space behind section.key=
        text = text.replace("    return 0\n", "    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace\n    return 0\n")
    return text


def shell_named(words: Sequence[str], flag: str) -> str:
    """The shell that follows the flag, else the one that is running."""
    if len(words) > 1:
        raise ConfigError(f"unexpected {words[1]!r} after {flag} {words[0]}", f"give {flag} one shell")
    if words and words[0] not in SHELLS:
        raise ConfigError(f"{flag}: unknown shell {words[0]!r}", nearest(words[0], SHELLS))
    running = Path(os.environ.get("SHELL", "")).name
    if not words and running not in SHELLS and "PSModulePath" in os.environ:
        running = "powershell"
    if not words and running not in SHELLS:
        raise ConfigError(f"{flag}: which shell this is cannot be told", f"name it: {flag} {'|'.join(SHELLS)}")
    return words[0] if words else running


def install(shell: str) -> str:
    """Writes the script where the shell looks for it; says what to do next. A start-up file only gains a line."""
    from kava.files import open_append, write_text

    if shell in ("powershell", "pwsh"):
        raise RunError(
            f"{shell}'s profile is not changed by kava: PowerShell may refuse to run scripts there",
            f"kava --show_completion {shell} | Out-String | Invoke-Expression    (in your $PROFILE, or for this session)",
        )
    home = Path.home()
    places = {
        "bash": (home / ".bash_completions" / "kava.sh", home / ".bashrc"),
        "zsh": (home / ".zfunc" / "_kava", home / ".zshrc"),
        "fish": (home / ".config" / "fish" / "completions" / "kava.fish", None),
    }
    path, start_up = places[shell]
    write_text(path, script(shell) + "\n")
    line = {"bash": f"source '{path}'", "zsh": "fpath+=~/.zfunc; autoload -Uz compinit; compinit"}.get(shell, "")
    if start_up is None:
        return f"wrote {path}; open a new {shell}"
    if line not in (start_up.read_text(encoding="utf-8", errors="replace") if start_up.is_file() else ""):
        with open_append(start_up) as file:
            file.write(f"\n{line}\n")
    return f"wrote {path}, read by {start_up}; open a new {shell}"
