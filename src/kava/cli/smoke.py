"""kava smoke: every component once, a line each; kava smoke multi-teacher: those about several teachers."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from kava.cli.common import show_result
from kava.cli.list_flags import app_of
from kava.errors import ConfigError, KavaError
from kava.lab.selfcheck.context import Place, Skipped, expect
from kava.registry import nearest

TEXTS = (  # a text, the number it marks as its answer, the number it ends in
    ("so 48 + 24 = 72. The answer is: 72", "72", "72"),
    ("#### 1,234", "1234", "1234"),
    ("The answer is: -$5.50, not 6", "-5.50", "-5.50"),
    (r"\boxed{\frac{3}{4}}", "3/4", "3/4"),
    ("it must be 50 %", None, "50%"),
    ("no idea", None, None),
)
Component = Callable[[Place], str]
LIBRARIES = ("kava", "python", "torch", "transformers", "peft")
TEACHERS, WIDTH = "multi-teacher", 14


def smoke(
    about: Annotated[
        str | None, typer.Argument(help="multi-teacher: the components about several teachers, and no others")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")] = "cpu",
    only: Annotated[list[str] | None, typer.Option(help="these components: name name ...")] = None,
    show_list: Annotated[bool, typer.Option("--list", help="the components' names, and stop")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="only the result, as JSON")] = False,
) -> int:
    """Try every component once, without a network, in a folder that is removed again: does this installation work?

    A line per component says what was seen; a failing one says why, and the others still run. Exit code 1 if any failed.
    """
    began = time.perf_counter()
    if about is not None and about.replace("_", "-") != TEACHERS:
        raise ConfigError(f"unknown set of components {about!r}", f"leave it out, or write {TEACHERS}")
    components, device = _components(device, about is not None)
    chosen = list(dict.fromkeys(only or components))
    for name in chosen:
        if name not in components:
            raise ConfigError(f"unknown component {name!r}", nearest(name, list(components)))
    if show_list:
        show_result(chosen, "\n".join(chosen), quiet)
        return 0
    with tempfile.TemporaryDirectory(prefix="kava-smoke-") as folder:
        place = Place(Path(folder), device)
        width = max(WIDTH, *map(len, chosen))
        outcomes = [_try(name, components[name], place, 0 if quiet else width) for name in chosen]
    failed = [outcome.name for outcome in outcomes if outcome.status == "FAIL"]
    seconds = round(time.perf_counter() - began, 1)
    result = {"ok": not failed, "seconds": seconds, "components": [vars(outcome) for outcome in outcomes]}
    verdict = f"FAILED: {', '.join(failed)}" if failed else "all well"
    text = f"{len(outcomes)} components, {verdict}, {seconds} s"
    show_result(result, text, quiet)
    return 1 if failed else 0


app = app_of("smoke", smoke)


@dataclass(frozen=True)
class Outcome:
    """status: ok, skip or FAIL; `text` what was seen, or why it failed."""

    name: str
    status: str
    seconds: float
    text: str


def _components(device: str, teachers: bool) -> tuple[dict[str, Component], str]:
    """Every component by name, in the order in which they run, and the device's real name."""
    light: dict[str, Component] = {"environment": try_environment, "recipes": try_recipes, "answers": try_answers}
    light = {} if teachers else light
    try:
        from kava.backbone.silence_libraries import silence_libraries
        from kava.infer.student import pick_device

        if teachers:
            from kava.lab.selfcheck.phases import COMPONENTS
        else:
            from kava.lab.selfcheck.runs import COMPONENTS
    except ImportError as error:
        reason = error

        def imports(_: Place) -> str:
            raise reason

        return {**light, "imports": imports}, device
    silence_libraries()
    return {**light, **COMPONENTS}, str(pick_device(device))


def _try(name: str, component: Component, place: Place, width: int) -> Outcome:
    """Runs one component; whatever it raises is its outcome, so that the others still run. width 0: prints nothing."""
    began = time.perf_counter()
    noise = io.StringIO()
    try:
        with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
            status, text = "ok", component(place)
    except Skipped as reason:
        status, text = "skip", str(reason)
    except Exception as error:  # noqa: BLE001 - a component may fail in any way
        what = error.message if isinstance(error, KavaError) else str(error)
        plain = " ".join(what.split()).encode("ascii", "backslashreplace").decode()
        status, text = "FAIL", f"{type(error).__name__}: {plain}"
    outcome = Outcome(name, status, round(time.perf_counter() - began, 1), text)
    if width:
        print(f"{status:<4} {name:<{width}} {text}, {outcome.seconds} s", flush=True)
    return outcome


def try_environment(place: Place) -> str:
    from kava.provenance import versions

    wrong: list[str] = []
    absent: list[str] = []
    for need, optional in _requirements():
        try:
            found = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            (absent if optional else wrong).append(need.name)
            continue
        if not need.specifier.contains(found, prereleases=True):
            wrong.append(f"{need.name} {found} is not {need.specifier}")
    expect(not wrong, f"missing or of another version: {', '.join(wrong)}")
    here = versions()
    text = ", ".join(f"{name} {here[name]}" for name in LIBRARIES)
    return f"{text}; device {place.device}" + (f"; optional and absent: {', '.join(absent)}" if absent else "")


def _requirements() -> list[tuple[Any, bool]]:
    """What the installed package asks for, and whether it is optional; nothing is known of a source tree."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("kava") or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for need in map(Requirement, lines):
        extras = [extra for extra in ("", "dev") if need.marker is None or need.marker.evaluate({"extra": extra})]
        if extras != ["dev"]:
            found.append((need, "" not in extras))
    return found


def try_recipes(place: Place) -> str:
    from kava.config import list_recipes, load_recipe, save_recipe

    names = list_recipes()
    for name in names:
        recipe = load_recipe(name)
        save_recipe(recipe, place.folder / f"{name}.yaml")
        same = load_recipe(place.folder / f"{name}.yaml") == recipe
        expect(same, f"recipe {name} is not the same after it was written and read")
    return f"{len(names)} load, and are the same after writing and reading"


def try_answers(_: Place) -> str:
    from kava import answers

    for text, strict, flexible in TEXTS:
        found = answers.strict(text), answers.flexible(text)
        expect(found == (strict, flexible), f"{text!r} is read as {found}")
    return f"{len(TEXTS)} texts read strictly and flexibly"
