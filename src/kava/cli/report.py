"""kava report: runs as one self-contained page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from kava.cli.common import show_result
from kava.errors import ConfigError, RunError


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUNS...", help="run folders, folders of seeds, a suite's folder; any mix")
    ],
    output: Annotated[Path, typer.Option(help="the page")] = Path("report.html"),
    figures: Annotated[
        Path | None,
        typer.Option(help="folder for every figure as PNG and PDF; default: <output>_figures beside the page"),
    ] = None,
    title: Annotated[str | None, typer.Option(help="default: what the runs are")] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="only this set; may be given again; default: every whole set")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="one JSON document and nothing else")] = False,
) -> int:
    """Figures and tables of runs on one page that needs no network and no script, in light and dark and on paper.

    Reads recipe.yaml, meta.json, log.jsonl, results_*.yaml, predictions_*.jsonl, kept.json, suite.json,
    EXPERIMENT_REPORT.json, and of several teachers alignment.json, routing.jsonl, routing_samples.json and
    layer_loss.jsonl where they are; what is missing the page says, with the command that makes it.
    """
    from kava.lab.page.figures import need_libraries

    need_libraries()
    folder = figures or output.with_name(f"{output.stem}_figures")
    _check_writable(output, folder)

    from kava.data.progress import progress_bar
    from kava.files import write_text
    from kava.lab.analysis.load_study import load_study
    from kava.lab.page.figures import render
    from kava.lab.page.markup import counted
    from kava.lab.page.page import page, plots, sections

    study = load_study(runs, dataset or ())
    found = sections(study)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {one.name: render(one, folder) for one in progress_bar(plots(found), "draw figures", not quiet)}
    write_text(output, page(study, found, drawn, title))
    result = {
        "page": str(output),
        "figures": str(folder),
        "drawn": list(drawn),
        "members": len(study.members),
        "runs": len(study.runs),
        "sets": list(study.sets),
    }
    parts = ((study.runs, "run"), (study.members, "member"), (drawn, "figure"))
    counts = ", ".join(counted(len(things), noun) for things, noun in parts)
    show_result(result, f"{counts}\n  wrote {output} and {folder}/", quiet)
    return 0


def _check_writable(output: Path, folder: Path) -> None:
    """Before minutes of drawing."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--output {output} is no page", "name a .html file")
    if output.is_dir():
        raise RunError(f"cannot write {output}: it is a folder", "choose another --output")
    for path in (output.parent, folder):
        above = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            flag = "--output" if path == output.parent else "--figures"
            raise RunError(f"cannot write into {path}: {above} is {'not writable' if above.is_dir() else 'a file'}",
                           f"choose another {flag}")  # fmt: skip
