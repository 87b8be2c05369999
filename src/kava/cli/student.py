"""The flags of the verbs that load a student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[
    Path,
    typer.Option("--checkpoint", "--checkpoint_dir", help="a student's folder, such as a run's best_checkpoint"),
]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="longest answer; default: the recipe's")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="questions at once; changes nothing but the time")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")]
Base = Annotated[str | None, typer.Option(help="where the base model of a LoRA student is, if not where it was")]
Quiet = Annotated[bool, typer.Option("--quiet", help="one JSON document and nothing else")]
