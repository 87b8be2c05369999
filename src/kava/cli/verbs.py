"""The verbs' names and lines, and the command object of one of them. Imports no verb.

A verb is a file `cli/<verb>.py` with a function of the verb's name (or a `typer.Typer` called `app`, for a verb with
verbs of its own). Its parameters are the flags: underscores are canonical, `--output-dir` is read as `--output_dir`, a
bool is a switch without a `--no-` twin, and a list parameter takes all words up to the next flag (see
`cli/list_flags.py`). A module attribute `CONTEXT = OVERRIDES` lets it take section.key=value (see `cli/common.py`).
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple


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
    Verb("export", "Train and use", "write a student for other programs: transformers alone, prompt embeddings"),
    Verb("serve", "Train and use", "answer over HTTP as OpenAI's API does: batches that questions join, streaming"),
    Verb("push", "Train and use", "upload a student to the hub, with a model card made from its results"),
    Verb("show", "Measure", "one run: its state, learning curve, results and next commands"),
    Verb("runs", "Measure", "every run under a folder: recipe, seed, state, update, loss, best validation"),
    Verb("evaluate", "Measure", "accuracy and forward passes of a trained student on a data set"),
    Verb("rescore", "Measure", "score saved predictions again, without the model"),
    Verb("selection", "Measure", "show which tokens of the chain of thought each compressor keeps"),
    Verb("lens", "Measure", "look into a student's latents: nearest tokens, attention, what each is worth"),
    Verb("bench", "Measure", "measure speed, after checking that the fast and the plain way agree"),
    Verb("smoke", "Measure", "self-test: try every component once"),
    Verb("env", "Measure", "check this machine: device, paths, packages; recommend settings"),
    Verb("seeds", "Reproduce and compare", "train, evaluate and aggregate a recipe over several seeds"),
    Verb("suite", "Reproduce and compare", "run an experiment with all its controls: e1-e5, methods, ablations"),
    Verb("aggregate", "Reproduce and compare", "mean and spread over seeds, as JSON and YAML"),
    Verb("format", "Reproduce and compare", "aggregated results as LaTeX tables and CSV, next to the paper's numbers"),
    Verb("analyze", "Reproduce and compare", "which claims a suite's results support, with statistical tests"),
    Verb("report", "Reproduce and compare", "runs as one self-contained page of figures and tables"),
    Verb("config", "Recipes and data", "list, explain, compare and export recipes"),
    Verb("data", "Recipes and data", "inspect a data set: counts, lengths, hashes"),
    Verb("model", "Recipes and data", "check whether a model works as a student, on a small random copy of it"),
    Verb("memory", "Recipes and data", "estimate the memory of a run before it is started, without loading weights"),
    Verb("assets", "Recipes and data", "fetch models and data for nodes without a network; check they are complete"),
    Verb("align", "Recipes and data", "match a teacher's tokens and layers to a student's; measure a layer map"),
    Verb("extract", "Recipes and data", "store a teacher's keys and values on disk, for training without the teacher"),
    Verb("submit", "Cluster", "run a verb as jobs of a scheduler: scripts, arrays, dependencies, requeueing"),
    Verb("jobs", "Cluster", "show the states of submitted jobs; cancel them"),
)
HIDDEN = ("task",)  # started by job scripts
FORMER = {"kept": "selection"}  # old names, still accepted
FLAGS = {
    "--help": "this text",
    "--version": "print the version and stop",
    "--install_completion": "tab completion for this shell, or for bash|zsh|fish",
    "--show_completion": "print the script for this shell, or for bash|zsh|fish|powershell",
}


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


def verb_command(verb: str, module: ModuleType) -> Any:
    """The command object of a verb's module, with its flags spelt with underscores."""
    import typer

    from kava.cli.list_flags import ListFlagCommand
    from kava.cli.number_limits import bound

    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        settings = dict(getattr(module, "CONTEXT", {}))
        app.command(verb, cls=ListFlagCommand, context_settings=settings)(getattr(module, verb))
    command = typer.main.get_command(app)
    command.context_settings.setdefault("help_option_names", ["--help", "-h"])  # subcommands inherit it
    for subcommand in (command, *getattr(command, "commands", {}).values()):
        for parameter in subcommand.params:
            bound(parameter)
            if parameter.param_type_name == "option":
                parameter.opts = underscores(parameter.opts)
                negatives = [name for name in parameter.secondary_opts if not name.startswith("--no-")]
                parameter.secondary_opts = underscores(negatives)
    return command
