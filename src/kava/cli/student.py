"""Flags shared by the verbs that load models."""

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[
    Path,
    typer.Option(
        "--checkpoint", "--checkpoint_dir", help="folder of a student, such as a run's best_checkpoint, or owner/name"
    ),
]
Revision = Annotated[str | None, typer.Option(help="of a student on the hub: branch, tag or commit; default: main")]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="longest answer in tokens; default: the recipe's")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="questions at once; changes only the time")]
Device = Annotated[str, typer.Option(help="device: auto, cpu, cuda, cuda:1, mps")]
Base = Annotated[str | None, typer.Option(help="folder of a LoRA student's base model, if it was moved")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust_remote_code", help="run code that comes with the models; files cannot allow it")
]
ExactAdapters = Annotated[
    bool, typer.Option("--exact_adapters", help="LoRA as in training, not folded into the weights; slower, less memory")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="one JSON document and nothing else")]
