"""kava report: runs as one self-contained page."""

from pathlib import Path
from typing import Annotated

import typer

from kava.cli.common import Overwrite, show_result


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
    overwrite: Overwrite = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="one JSON document and nothing else")] = False,
) -> int:
    """Figures and tables of runs on one page that needs no network and no script, in light and dark and on paper.

    Reads recipe.yaml, meta.json, log.jsonl, results_*.yaml, predictions_*.jsonl, kept.json, suite.json,
    EXPERIMENT_REPORT.json, and of several teachers alignment.json, routing.jsonl, routing_samples.json and
    layer_loss.jsonl where they exist; what is missing the page says, with the command that makes it.
    """
    from kava.lab.page.report import write_report
    from kava.progress import track

    folder = figures or output.with_name(f"{output.stem}_figures")
    written = write_report(
        runs, output, folder, title, dataset or (), lambda plots: track(plots, "drawing", unit="figures"), overwrite
    )
    counts = {"run": written["runs"], "member": written["members"], "figure": len(written["drawn"])}
    words = ", ".join(f"{count:,} {noun}{'' if count == 1 else 's'}" for noun, count in counts.items())
    show_result(written, f"{words}\n  wrote {output} and {folder}/", quiet)
    return 0
