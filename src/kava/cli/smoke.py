"""kava smoke: ten components end to end, a line each; kava smoke multi-teacher: every module for several teachers."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from kava.cli.common import show_result
from kava.console import fitted, paint
from kava.progress import loading_libraries

if TYPE_CHECKING:
    from kava.lab.selfcheck.run import ComponentResult


COLOURS = {"ok": "green", "skip": "yellow", "FAIL": "red"}


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
    from kava.cli.main import main

    with loading_libraries():
        from kava.lab.selfcheck.run import component_table, real_device, run_components, select

    began = time.perf_counter()
    chosen = select(component_table(about), only or [])
    if show_list:
        show_result(list(chosen), "\n".join(chosen), quiet)
        return 0
    width = max(14, *map(len, chosen))

    def show(result: "ComponentResult") -> None:
        if not quiet:
            status = paint(f"{result.status:<4}", COLOURS[result.status])
            line = f"{status} {result.name:<{width}} {result.text}, {result.seconds} s"
            print(fitted(line, indent=" " * (width + 6)), flush=True)

    results = run_components(chosen, real_device(device), main, show)
    failed = [result.name for result in results if result.status == "FAIL"]
    seconds = round(time.perf_counter() - began, 1)
    document = {"ok": not failed, "seconds": seconds, "components": [vars(result) for result in results]}
    verdict = f"FAILED: {', '.join(failed)}" if failed else "all well"
    show_result(document, f"{len(results)} components, {verdict}, {seconds} s", quiet)
    return 1 if failed else 0
