"""kava selection: which tokens of the chain of thought each compressor keeps."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from kava.cli.common import Overwrite, show_result
from kava.cli.student import Base, Checkpoint, Device, Quiet, TrustRemoteCode
from kava.errors import ConfigError
from kava.files import is_stream
from kava.infer.checks import stored_recipe, student_files
from kava.progress import loading_libraries
from kava.text_table import table

DEFAULT = ["rkv", "full", "crop", "steps", "uniform", "random"]


def selection(
    checkpoint: Checkpoint,
    examples: Annotated[int, typer.Option(min=1, help="validation problems to look at")] = 3,
    compressors: Annotated[
        list[str] | None, typer.Option(help=f"names, or package.module:Name; default: {' '.join(DEFAULT)}")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="a .json file; default: kept.json beside best_checkpoint")] = None,
    device: Device = "auto",
    base: Base = None,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> int:
    """Which tokens of the chain of thought each compressor keeps of this student's own teacher mode.

    Takes the first validation problems whose chain of thought is longer than M, and writes kept.json: the tokens, which
    of them are step results, and the kept ones by compressor, layer and head. Nothing is trained or generated.
    """
    recipe = stored_recipe(checkpoint)
    if output is not None and (output.suffix != ".json" or os.path.isdir(output)) and not is_stream(output):
        raise ConfigError(f"--output {output} is no .json file", "name one, such as kept.json")

    with loading_libraries():
        from kava.backbone.silence_libraries import silence_libraries
        from kava.evaluation.result_files import results_folder
        from kava.evaluation.selection import compressors_of, selection_document, shares, validation
        from kava.files import write_json
        from kava.infer.student import Student
    from kava.outputs import Output, check_outputs, has_keys

    path = output or results_folder(checkpoint) / "kept.json"
    is_ours = None if output is None else has_keys("keep", "heads", "examples")
    check_outputs([Output("--output", path, is_ours)], student_files(checkpoint), overwrite)
    silence_libraries()
    chosen, problems = compressors_of(recipe, compressors or DEFAULT), validation(recipe)
    student = Student.from_pretrained(checkpoint, device, base, trust_remote_code)
    document = selection_document(student, checkpoint, chosen, examples, problems)
    write_json(path, document)
    rows = shares(document)
    show_result({"output": str(path), "shares": rows}, f"{_text(document, rows)}\nwrote {path}", quiet)
    return 0


def _text(document: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    head = (
        f"{len(document['examples'])} problems, {document['layers']} layers x {document['heads']} heads, "
        f"at most {document['keep']} entries kept in each"
    )
    lines = []
    for row in rows:
        share = f"{100 * row['results'] / row['entries']:.1f} %" if row["entries"] else "-"
        tokens = "  ".join(f"{token!a} {number}" for token, number in row["tokens"].items())
        lines.append([row["compressor"], str(row["entries"]), share, tokens])
    return f"{head}\n{table(lines, ['compressor', 'entries', 'step results', 'most kept tokens'])}"
