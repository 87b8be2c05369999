"""kava aggregate: mean and standard deviation over seeds."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from kava.cli.common import Overwrite, show_result
from kava.console import tell
from kava.lab.analysis.aggregate import accuracy_table, held_out_table, missing, seed_folders, title, write
from kava.lab.analysis.aggregate import aggregate as over_seeds
from kava.lab.analysis.runs import files_of_runs
from kava.outputs import Output, check_outputs, has_keys


def aggregate(
    seed_dirs: Annotated[list[Path], typer.Option(help="the runs of one recipe, one folder per seed")],
    datasets: Annotated[list[str] | None, typer.Option(help="sets; default: all with results")] = None,
    model_name: Annotated[str | None, typer.Option(help="the model's name in tables; default: the recipe's")] = None,
    config_name: Annotated[str | None, typer.Option(help="the root key; default: the recipe's name")] = None,
    mode: Annotated[
        Literal["latent", "cot", "direct"] | None,
        typer.Option(help="the mode whose results are averaged; default: as the students were trained"),
    ] = None,
    quick_test: Annotated[
        bool, typer.Option("--quick_test", help="of runs made with --quick_test: a rehearsal's table, marked as one")
    ] = False,
    output_json: Annotated[Path | None, typer.Option(help="write the result here")] = None,
    output_yaml: Annotated[Path | None, typer.Option(help="and here")] = None,
    overwrite: Overwrite = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="only the result, as JSON")] = False,
) -> int:
    """Mean, sample standard deviation and every seed's value, per set.

    Reads results_<set>.yaml of every folder; `--seed_dirs outputs/x/seed_*` may match files too. A seed without results is
    listed as missing and not imputed, and the exit code is 1; results of different sizes, items or protocols are refused.
    """
    folders, notes = seed_folders(seed_dirs)
    for line in notes:
        tell(f"note: {line}")
    places = {"--output_json": output_json, "--output_yaml": output_yaml}
    is_ours = has_keys("num_seeds", "datasets", below_root=True)
    outputs = [Output(flag, path, is_ours) for flag, path in places.items() if path is not None]
    check_outputs(outputs, files_of_runs(folders), overwrite)
    document = over_seeds(folders, datasets or [], model_name, mode, config_name, quick_test)
    write(document, output_json, output_yaml)
    absent = missing(document)
    for line in absent:
        tell(f"warning: {line}")
    text = f"{title(document)}\n{accuracy_table(document)}"
    if held_out := held_out_table(document):
        text += f"\n\nheld out, at the last validation\n{held_out}"
    show_result(document, text, quiet)
    return 1 if absent else 0
