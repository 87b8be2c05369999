"""Runs the components of the self-check one after the other; one that fails stops no other."""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kava.errors import ConfigError, KavaError
from kava.lab.selfcheck.components import COMPONENTS
from kava.lab.selfcheck.context import Component, SelfCheckContext, Skipped
from kava.progress import loading_libraries, progress, silent
from kava.registry import nearest

TEACHERS = "multi-teacher"
FORMER = {  # components of earlier versions, and those that now cover them
    "answers": "evaluate",
    "special_tokens": "data",
    **dict.fromkeys(("compressors", "latents", "losses"), "packed"),
    "resume": "training",
    **dict.fromkeys(("shipped", "families", "decoding", "reload", "batches"), "infer"),
    "tables": "report",
}


@dataclass(frozen=True)
class ComponentResult:
    """status: ok, skip or FAIL; `text`: what was seen, or why it failed."""

    name: str
    status: str
    seconds: float
    text: str


def component_table(topic: str | None) -> dict[str, Component]:
    """Every component by name, in the order in which they run; `topic` multi-teacher: those about several teachers."""
    if topic is None:
        return COMPONENTS
    if topic.replace("_", "-") != TEACHERS:
        raise ConfigError(f"unknown set of components {topic!r}", f"leave it out, or write {TEACHERS}")
    try:
        from kava.lab.selfcheck.multi_teacher import COMPONENTS as teachers
    except ImportError as error:
        reason = error

        def imports(_: SelfCheckContext) -> str:
            raise reason

        return {"imports": imports}
    return teachers


def select(components: Mapping[str, Component], names: Sequence[str]) -> dict[str, Component]:
    """The components called `names`, all of them where none is named."""
    chosen = {}
    for name in names or components:
        current = name if name in components else FORMER.get(name, name)
        if current not in components:
            raise ConfigError(f"unknown component {name!r}", nearest(name, list(components)))
        chosen[current] = components[current]
    return chosen


def real_device(name: str) -> str:
    """The device that `auto`, cuda or mps stands for here; without torch the name itself: the components tell."""
    try:
        with loading_libraries():
            from kava.backbone.silence_libraries import silence_libraries
            from kava.infer.student import pick_device
    except ImportError:
        return name
    silence_libraries()
    return str(pick_device(name))


def run_components(
    components: Mapping[str, Component],
    device: str,
    main: Callable[[Sequence[str]], int],
    show: Callable[[ComponentResult], None],
) -> list[ComponentResult]:
    """Every component's result, in a temporary folder that is removed again; `show` gets each as soon as it is there."""
    results = []
    with tempfile.TemporaryDirectory(prefix="kava-smoke-") as folder:
        context = SelfCheckContext(Path(folder), device, main)
        for name, component in components.items():
            results.append(_run(name, component, context))
            show(results[-1])
    return results


def _run(name: str, component: Component, context: SelfCheckContext) -> ComponentResult:
    """One component's result, whatever it raises; what it prints is dropped."""
    began = time.perf_counter()
    printed = io.StringIO()
    try:
        with (
            progress(f"component {name}"), silent(),
            contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed),
        ):  # fmt: skip
            status, text = "ok", component(context)
    except Skipped as reason:
        status, text = "skip", str(reason)
    except Exception as error:  # noqa: BLE001 - a component may fail in any way
        message = error.message if isinstance(error, KavaError) else str(error)
        plain = " ".join(message.split()).encode("ascii", "backslashreplace").decode()
        status, text = "FAIL", f"{type(error).__name__}: {plain}"
    return ComponentResult(name, status, round(time.perf_counter() - began, 1), text)
