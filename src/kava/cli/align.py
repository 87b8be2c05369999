"""kava align: how a teacher's tokens and layers match a student's."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from kava.cli.common import Overwrite, show_result
from kava.cli.student import Device, Quiet, TrustRemoteCode
from kava.config import DatasetConfig, ModelConfig
from kava.config.trust import allow_code
from kava.config.typed_file import checked
from kava.errors import ConfigError
from kava.outputs import Output, check_outputs, has_keys
from kava.progress import loading_libraries

HELP = "How a teacher's tokens and layers match a student's: for one text, or as a layer map measured on many."
app = typer.Typer(help=HELP, add_completion=False, rich_markup_mode=None)

ModelName = Annotated[str, typer.Option(help="hub name or local folder")]
Threshold = Annotated[
    float, typer.Option(min=0, max=1, help="tokens with a smaller overlap (IoU of characters) are not matched")
]


@app.command("show")
def show(
    student_model: ModelName,
    teacher_model: ModelName,
    text: Annotated[str, typer.Option(help="the text that both tokenize")],
    threshold: Threshold = 0.1,
    layer_map: Annotated[
        Literal["ratio", "blend", "uniform", "skip"], typer.Option(help="rule that makes the layer map")
    ] = "ratio",
    layer_map_file: Annotated[Path | None, typer.Option(help="layer map written by kava align precompute")] = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
) -> int:
    """Print both tokenizations of a text, which tokens cover the same characters, and the layer map. Loads no weights."""
    with loading_libraries():
        from kava.lab.model_alignment import align_text, alignment_table

    student, teacher = _models(student_model, teacher_model, trust_remote_code)
    result = align_text(student, teacher, text, threshold, layer_map, layer_map_file)
    show_result(result, alignment_table(result), quiet)
    return 0


@app.command("precompute")
def precompute(
    student_model: ModelName,
    teacher_model: ModelName,
    output: Annotated[Path, typer.Option(help="the .json file to write, for mixture.layer_map_files")],
    dataset_name: Annotated[str | None, typer.Option(help="hub name, folder, or a built-in set (chains)")] = None,
    dataset_config: Annotated[str | None, typer.Option(help="configuration of a hub data set, e.g. main")] = None,
    train_file: Annotated[str | None, typer.Option(help="a local .jsonl file instead of --dataset_name")] = None,
    num_samples: Annotated[int, typer.Option(min=1, help="number of training examples that both models read")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="examples per forward pass")] = 4,
    max_length: Annotated[int, typer.Option(min=8, help="skip examples of more student tokens")] = 512,
    top_k: Annotated[int, typer.Option(min=1, help="teacher layers of each student layer")] = 2,
    threshold: Threshold = 0.1,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> int:
    """Measure a layer map: for each student layer the teacher layers with the most similar keys and values (CKA).

    Both models read the same reasoning texts; tokens are matched by characters, keys are taken before the rotary
    embedding. The file holds the similarities and the map; a recipe uses it with mixture.layer_map=cka.
    """
    if (dataset_name is None) == (train_file is None):
        raise ConfigError("kava align precompute needs --dataset_name or --train_file, one of them")
    if train_file is not None and dataset_config is not None:
        raise ConfigError("--dataset_config has no effect with --train_file", "leave one of them out")

    is_ours = has_keys("similarity_matrix", "layer_mapping")
    check_outputs([Output("--output", output, is_ours)], [Path(train_file)] if train_file else [], overwrite)

    with loading_libraries():
        from kava.lab.model_alignment import layer_map_table, measure_layer_map

    student, teacher = _models(student_model, teacher_model, trust_remote_code)
    named = {"name": dataset_name or str(train_file), "config": dataset_config}
    dataset = checked(named, DatasetConfig, "kava align: the data set", raises=ConfigError)
    result = measure_layer_map(
        student, teacher, dataset, output, num_samples=num_samples, batch_size=batch_size, max_length=max_length,
        top_k=top_k, threshold=threshold, device=device, progress=not quiet,
    )  # fmt: skip
    unlike = ", ".join(map(str, result["unlike_student_layers"]))
    note = f"note: student layers like no teacher layer (CKA <= 0): {unlike}\n" if unlike else ""
    done = f"{result['num_samples']} of {result.pop('num_examples')} examples had enough matched tokens; wrote {output}"
    show_result(result, f"{layer_map_table(result)}\n{note}{done}", quiet)
    return 0


def _models(student: str, teacher: str, trust_remote_code: bool) -> list[ModelConfig]:
    with loading_libraries():
        from kava.backbone.silence_libraries import silence_libraries

    silence_libraries()
    if trust_remote_code:
        allow_code()
    named = [{"name": name, "trust_remote_code": trust_remote_code} for name in (student, teacher)]
    return [checked(model, ModelConfig, "kava align: a model", raises=ConfigError) for model in named]
