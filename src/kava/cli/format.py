"""kava format: aggregated results as LaTeX and CSV."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from kava.cli.common import Overwrite, show_result
from kava.console import tell
from kava.errors import ConfigError
from kava.files import write_text
from kava.lab.analysis.paper import SOURCE
from kava.lab.analysis.tables import (
    CSV_HEADER,
    as_csv,
    as_latex,
    as_text,
    find_aggregated,
    is_latex_of_ours,
    namesakes,
)
from kava.outputs import Output, begins, check_outputs
from kava.text_table import table


def format(
    input_dir: Annotated[Path, typer.Option(help="every aggregated_results.json or .yaml below it is read")] = Path(
        "outputs"
    ),
    output_latex: Annotated[
        Path, typer.Option(help="the tables: accuracy, forward passes, comparison with the paper")
    ] = Path("paper_tables.tex"),
    output_csv: Annotated[Path, typer.Option(help="a line per recipe and set, as fractions")] = Path("results.csv"),
    latex_only: Annotated[bool, typer.Option("--latex_only", help="no CSV")] = False,
    csv_only: Annotated[bool, typer.Option("--csv_only", help="no LaTeX")] = False,
    style: Annotated[Literal["paren", "pm"], typer.Option(help="56.5 (0.4), or with a plus-minus sign")] = "paren",
    overwrite: Overwrite = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="only the names of the files, as JSON")] = False,
) -> None:
    """LaTeX tables (booktabs) and a CSV file from the aggregated results of any number of recipes.

    Variants of a recipe are told apart by the names that kava aggregate --config_name gave them, else by their folders.
    Rehearsals (--quick_test) are left out, unless there is nothing else. Columns
    are the sets that have results. A missing number is a dash; a cell of one seed has no spread.
    """
    if latex_only and csv_only:
        raise ConfigError("--latex_only and --csv_only exclude each other", "leave both out to get both files")
    recipes, left_out = find_aggregated(input_dir)
    for line in left_out:
        tell(f"note: {line}")
    for config in namesakes(recipes):
        tell(
            f"note: {config} is aggregated in several folders, which name its rows; other names: kava aggregate "
            "--config_name NAME"
        )
    latex = [] if csv_only else [Output("--output_latex", output_latex, is_latex_of_ours)]
    csv = [] if latex_only else [Output("--output_csv", output_csv, begins(",".join(CSV_HEADER.split())))]
    check_outputs([*latex, *csv], [file for recipe in recipes for file in recipe.files], overwrite)
    files = {}
    if not csv_only:
        write_text(output_latex, as_latex(recipes, style))
        files["latex"] = str(output_latex)
    if not latex_only:
        write_text(output_csv, as_csv(recipes))
        files["csv"] = str(output_csv)
    text = f"wrote {' and '.join(files.values())}: {len(recipes)} recipe{'' if len(recipes) == 1 else 's'}"
    if rows := as_text(recipes):
        text += (
            f"\n\n{table(rows, ('model', 'trained on', 'GSM8k ours, %', 'paper, %', 'difference'))}\npaper: {SOURCE}"
        )
    show_result(files, text, quiet)
