"""What the verbs of kava bench share: outputs refused before anything is timed, and the result shown and written."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

from kava.progress import loading_libraries


def check_idle(context: typer.Context, names: Iterable[str], checkpoint: Path | None) -> None:
    """Refuses flags that have no effect with, or without, a checkpoint."""
    from kava.errors import ConfigError

    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            how = "without --checkpoint" if checkpoint is None else "with --checkpoint: the student has its own"
            raise ConfigError(f"--{name} has no effect {how}", "leave it out")


def prepare(threads: int, output: Path | None, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuses an unusable --output before anything is timed, then sets up torch."""
    from kava.errors import ConfigError
    from kava.files import is_stream
    from kava.outputs import Output, check_outputs, has_keys

    if output is not None and (os.path.isdir(output) or output.suffix != ".json") and not is_stream(output):
        raise ConfigError(f"--output {output} is not a .json file", "name a file that ends in .json")
    if output is not None:
        check_outputs([Output("--output", output, has_keys("hardware", "differences"))], inputs, overwrite)
    with loading_libraries():
        import torch

        from kava.backbone.silence_libraries import silence_libraries

    silence_libraries()
    if threads:
        torch.set_num_threads(threads)


def show_or_fail(
    result: dict[str, Any], text: Callable[[dict[str, Any]], str], failure: str, quiet: bool, output: Path | None
) -> int:
    """Prints and writes the result; 1 if the check failed, so that there are no times in it."""
    from kava.cli.common import show_result
    from kava.files import write_json

    if output is not None:
        write_json(output, result)
    if not result["differences"]:
        show_result(result, text(result), quiet)
        return 0
    lines = [f"{failure}, so nothing was timed", *result["differences"]]
    if "16" in result.get("dtype", ""):
        lines.append("hint: half precision rounds differently in each way and batch; try --dtype float32")
    show_result(result, "\n  ".join(lines), quiet)
    return 1
