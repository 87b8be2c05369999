"""kava analyze: which claims a suite's results support."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from kava.cli.common import Overwrite, show_result
from kava.errors import RunError

REPORT, DOCUMENT = "EXPERIMENT_REPORT.txt", "EXPERIMENT_REPORT.json"


def analyze(
    output_base: Annotated[
        Path, typer.Option(help="the folder of a suite, or one above it; E1_baseline/ may be a run or hold seeds")
    ] = Path("outputs"),
    experiments: Annotated[
        list[str] | None, typer.Option(help="folder names; default: those of e1-e5, methods, phases, stages that exist")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="the set to compare on; default: the first on which every experiment was evaluated"),
    ] = None,
    save_json: Annotated[Path | None, typer.Option(help="write the whole analysis here too")] = None,
    margin: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="smallest relevant effect, as a fraction of accuracy")
    ] = 0.02,
    unequal_budget: Annotated[
        bool,
        typer.Option("--unequal_budget", help="compare runs of unlike updates and batches, and say so in the report"),
    ] = False,
    overwrite: Overwrite = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="only the analysis, as JSON")] = False,
) -> int:
    """Test the guide's claims and our controls: supported, not supported or inconclusive, with the tests for each.

    Writes EXPERIMENT_REPORT.txt into the folder, and EXPERIMENT_REPORT.json, which kava report reads. Runs are
    paired by seed, answers by item; missing seeds are listed and not imputed; runs with other data, updates or items are refused.
    With --unequal_budget those with other updates are compared, and the report begins with what each had.
    """
    if importlib.util.find_spec("scipy") is None:
        raise RunError("kava analyze needs the package scipy", "pip install 'kava[stats]'")
    from kava.files import write_json, write_text
    from kava.lab.analysis.analysis_text import render
    from kava.lab.analysis.analyze import analyse
    from kava.lab.analysis.runs import files_of_runs
    from kava.outputs import Output, check_outputs, has_keys

    own = [output_base / name for name in (REPORT, DOCUMENT)]
    outputs = [Output("the report", path) for path in own if output_base.is_dir()]  # else analyse says it
    if save_json is not None and save_json.resolve() == own[1].resolve():
        save_json = None
    if save_json is not None:
        outputs.append(Output("--save_json", save_json, has_keys("output_base", "claims", "experiments")))
    check_outputs(outputs, files_of_runs([output_base]), overwrite)
    document = analyse(output_base, experiments or [], dataset, margin, unequal_budget)
    text = render(document)
    write_text(output_base / REPORT, text)
    for path in (output_base / DOCUMENT, save_json):
        if path is not None:
            write_json(path, document)
    show_result(document, f"{text}\nwrote {output_base / REPORT} and {DOCUMENT}", quiet)
    return 0
