"""Cases about flags: every flag of every verb with a value that it cannot have, odd paths, words out of place."""

import importlib
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from behaviour import Case
from hypothesis import strategies as st

from kava.cli.main import VERBS

TINY = ("dataset.generator.train_size=16", "dataset.generator.val_size=2", "dataset.generator.test_size=2")
TEACHER = ("--config", "explicit_embedded", "model.name=base", "teacher.name=teacher", *TINY)
STUDENT = ("--checkpoint", "latent_student", "--device", "cpu")
SEEDS = ("results/E1_baseline/seed_1", "results/E1_baseline/seed_2")
PREDICTIONS = "results/E1_baseline/seed_1/predictions_chains.jsonl"


class Usage(NamedTuple):
    """A right command line; `cheap` ones may be run as they are, the others only where they must be refused."""

    words: tuple[str, ...]
    fixtures: tuple[str, ...] = ()
    cheap: bool = True


USAGES = {
    "demo": Usage((), cheap=False),
    "train": Usage(("--config", "debug"), cheap=False),
    "distill": Usage(("--config", "explicit_embedded"), cheap=False),
    "infer": Usage((*STUDENT, "--questions", "1+1?"), ("latent_student", "base")),
    "push": Usage(("latent_student", "ann/student", "--dry_run"), ("latent_student", "base")),
    "export": Usage(("latent_student", "--embeds", "new", "--questions", "1+1?"), ("latent_student", "base")),
    "evaluate": Usage((*STUDENT, "--limit", "1", "--output", "new"), ("latent_student", "base")),
    "rescore": Usage((PREDICTIONS,), ("results",)),
    "selection": Usage((*STUDENT, "--examples", "1"), ("latent_student", "base")),
    "lens": Usage(("latent_student", "--questions", "1+1?"), ("latent_student", "base")),
    "serve": Usage(("latent_student", "--port", "0", "--device", "cpu"), ("latent_student", "base")),
    "bench serve": Usage(("--checkpoint", "latent_student"), ("latent_student", "base"), cheap=False),
    "bench decode": Usage(("--checkpoint", "latent_student"), ("latent_student", "base"), cheap=False),
    "smoke": Usage((), cheap=False),
    "env": Usage((), cheap=False),
    "seeds": Usage(("--config", "debug"), cheap=False),
    "suite": Usage(("e1-e5", "--config", "debug", "--list")),
    "aggregate": Usage(("--seed_dirs", *SEEDS), ("results",)),
    "format": Usage(("--input_dir", "results"), ("results",)),
    "analyze": Usage(("--output_base", "results"), ("results",)),
    "report": Usage(("results",), ("results",), cheap=False),
    "show": Usage((SEEDS[0],), ("results",)),
    "runs": Usage(("results",), ("results",)),
    "config": Usage(("--get", "debug")),
    "data check": Usage(("rows.jsonl",)),
    "assets verify": Usage(("--config", "debug"), cheap=False),
    "align show": Usage(("--student_model", "base", "--teacher_model", "teacher", "--text", "1"), ("base", "teacher")),
    "extract": Usage(("--output_dir", "new", "--dry_run", *TEACHER), ("base", "teacher")),
    "submit train": Usage(("--config", "debug", "--scheduler", "slurm", "--dry_run")),
    "jobs": Usage(("results", "--offline"), ("results",)),
}
ROWS = (
    b'{"question": "1+1?", "steps": ["1+1=2"], "answer": "2"}\n' * 2
    + b'{"question": "1+2?", "steps": [], "answer": "3"}\n'
)
REWRITTEN = ("results/EXPERIMENT_REPORT.txt", PREDICTIONS, PREDICTIONS.replace("predictions", "results")[:-5] + "yaml",
             "rows.jsonl", "results.csv", "paper_tables.tex", "results/EXPERIMENT_REPORT.json")  # fmt: skip
BEYOND = "9" * 30
NOT_NUMBERS = ("x", "", "1.5.1", "nan", "1e999", BEYOND, "9" * 5000, "1,2", "[1]", "0x10")
NOT_INTEGERS = (*NOT_NUMBERS, "1.5")
# never a place outside of the case's own folder: a defect must not harm the machine that looks for it
PATHS = ("", ".", "no/such/place", "rows.jsonl", "rows.jsonl/x", "folder", "a" * 300, "a" * 5000, "a/" * 3000, "\udcff", "~",
         "~nobody_of_this_name/x", "\u4e2d\u6587", "a\nb", "\x1b[2J", "*", "-")  # fmt: skip


class Flag(NamedTuple):
    """A flag of a verb, read off the function's parameter."""

    name: str
    kind: Any  # int, float, str, Path, Literal[...]
    least: float | None
    largest: float | None
    repeats: bool


@cache
def flags(verb: str) -> tuple[Flag, ...]:
    """The flags of a verb that take a value; of several names the first."""
    name, _, inner = verb.partition(" ")
    module = importlib.import_module(f"kava.cli.{name}")
    function = getattr(module, inner, None) or getattr(module, name)
    result = []
    for parameter, hint in get_type_hints(function, include_extras=True).items():
        kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        option = next((extra for extra in extras if type(extra).__name__ == "OptionInfo"), None)
        if option is None:
            continue
        kind, repeats = _plain(kind)
        if kind is not bool and get_origin(kind) is not tuple:
            flag = next(iter(option.param_decls or ()), f"--{parameter}")
            result.append(Flag(flag, kind, option.min, option.max, repeats))
    return tuple(result)


def _plain(kind: Any) -> tuple[Any, bool]:
    """A type without None and without its list, and whether it was a list."""
    if get_origin(kind) in (Union, UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    return (get_args(kind)[0], True) if get_origin(kind) is list else (kind, False)


def _known() -> list[str]:
    names = {verb.name for verb in VERBS}
    return [verb for verb in USAGES if verb.partition(" ")[0] in names]


def _without(words: tuple[str, ...], flag: Flag) -> tuple[str, ...]:
    """The words without the flag, whose value one is about to give."""
    if flag.name not in words:
        return words
    start = end = words.index(flag.name)
    end += 1
    while end < len(words) and not words[end].startswith("-") and "=" not in words[end]:
        end += 1
    return words[:start] + words[end:]


def _case(verb: str, words: tuple[str, ...], wrong: str) -> Case:
    usage = USAGES[verb]
    files = {"rows.jsonl": ROWS, "folder/x": b"x"}
    return Case(
        (*verb.split(), *words),
        files,
        usage.fixtures,
        wrong,
        writes=REWRITTEN,
        checks=verb in ("assets verify", "env", "aggregate"),
    )


@st.composite
def impossible_values(draw: st.DrawFn) -> Case:
    """A flag of any verb with a value of the wrong kind, or with none."""
    verb = draw(st.sampled_from([verb for verb in _known() if flags(verb)]))
    flag = draw(st.sampled_from(flags(verb)))
    words = _without(USAGES[verb].words, flag)
    if get_origin(flag.kind) is Literal:
        values, what = ("", "nothing_of_this_name", "1", f"{get_args(flag.kind)[0]}x"), "one of its choices"
    elif flag.kind is int:
        values, what = NOT_INTEGERS, "an integer"
    elif flag.kind is float:
        values, what = tuple(text for text in NOT_NUMBERS if not text.startswith("9")), "a number"
    else:
        return _case(verb, (*words, flag.name), f"{flag.name} has no value")
    value = draw(st.sampled_from([value for value in values if USAGES[verb].cheap or value != BEYOND]))
    spelt = draw(st.sampled_from([(flag.name, value), (f"{flag.name}={value}",)]))
    wrong = "" if value == BEYOND else f"{flag.name} is {what}"  # more than there is: all of it
    return _case(verb, (*words, *spelt), wrong)


@st.composite
def below_the_least(draw: st.DrawFn) -> Case:
    """A number below the least one, or above the largest one."""
    verb = draw(st.sampled_from([verb for verb in _known() if _ranged(verb)]))
    flag = draw(st.sampled_from(_ranged(verb)))
    beyond = [] if flag.least is None else [flag.least - 1, flag.least - 10**6]
    beyond += [] if flag.largest is None else [flag.largest + 1]
    value = draw(st.sampled_from(beyond))
    return _case(verb, (*_without(USAGES[verb].words, flag), f"{flag.name}={value}"), f"{flag.name} is never {value}")


def _ranged(verb: str) -> list[Flag]:
    return [flag for flag in flags(verb) if flag.least is not None or flag.largest is not None]


@st.composite
def unknown_flags(draw: st.DrawFn) -> Case:
    """A flag that the verb does not have."""
    verb = draw(st.sampled_from(_known()))
    known = draw(st.sampled_from([flag.name for flag in flags(verb)] or ["--quiet"]))
    flag = draw(
        st.sampled_from((f"{known}x", f"{known[:-1]}_", "--", "--nothing_of_this_name", "--nothing=1", "-x", "-1", "---x",
                         "--\u00e9", "--a.b", "--a.b=1", "--" + "a" * 5000, "--=", "--no_such", f"-{known[2:]}", "--\x1b=1"))
    )  # fmt: skip
    wrong = "" if flag in ("--", "-1") else f"{flag[:30]!a} is no flag"
    usage = USAGES[verb]
    if flag in ("--", "-1") and not usage.cheap:
        flag, wrong = "--nothing_of_this_name", "an unknown flag"
    if verb in ("infer", "export", "lens"):  # the list of questions takes a word such as -1 or -x
        return _case(verb, (flag, *usage.words), wrong if flag.startswith("--") else "")
    return _case(verb, (*usage.words, flag), wrong)


@st.composite
def odd_paths(draw: st.DrawFn) -> Case:
    """A path flag of a cheap verb with an odd place."""
    verb = draw(st.sampled_from([verb for verb in _known() if USAGES[verb].cheap and _texts(verb)]))
    flag = draw(st.sampled_from(_texts(verb)))
    return _case(verb, (*_without(USAGES[verb].words, flag), f"{flag.name}={draw(st.sampled_from(PATHS))}"), "")


def _texts(verb: str) -> list[Flag]:
    return [flag for flag in flags(verb) if flag.kind in (str, Path)]


@st.composite
def odd_words(draw: st.DrawFn) -> Case:
    """A word where none is expected, or an odd one in the place of a verb's own word."""
    verb = draw(st.sampled_from([verb for verb in _known() if USAGES[verb].cheap]))
    word = draw(st.sampled_from((*PATHS, "x=1", "training.epochs=x", "1", "\u00e9")))
    usage = USAGES[verb]
    place = draw(st.sampled_from(("after", "instead")))
    takes_words = verb in ("rescore", "report", "jobs", "show", "runs", "data check")
    if place == "instead" and takes_words:
        return _case(verb, (word, *usage.words[1:]), "")
    if takes_words or verb in ("infer", "export", "lens") or verb == "aggregate":  # their lists take it
        return _case(verb, (*usage.words, word), "")
    return _case(verb, (*usage.words, word), f"{word[:30]!a} has no place here")


@st.composite
def odd_verbs(draw: st.DrawFn) -> Case:
    """A first word that is no verb, or a verb of verbs without one."""
    words = draw(
        st.sampled_from((("",), (" ",), ("trian",), ("-",), ("--",), ("--x",), ("-v",), ("\udcff",), ("a" * 5000,), ("TRAIN",),
                         ("\x1b[2J",), ("data", "chek", "x"), ("align", "x"), ("assets", ""), ("bench", "x"), ("main",),
                         ("common",), ("__init__",), ("..",), ("a\nb",), ("submit", "x"), ("submit", ""), ("suite", "x"),
                         ("submit", "--dry_run"), ("help", "x"), ("--version", "x"), ("task",), ("task", "x")))
    )  # fmt: skip
    harmless = words[0] in ("help", "--version")
    return Case(words, wrong="" if harmless else f"{words[-1][:30]!a} is no verb", checks=words[0] == "task")


CASES = st.one_of(impossible_values(), below_the_least(), unknown_flags(), odd_paths(), odd_words(), odd_verbs())
