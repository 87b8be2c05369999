"""kava push: upload a student to the hub."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from kava.cli.common import show_result
from kava.cli.student import Base, Quiet, TrustRemoteCode
from kava.text_table import table


def push(
    checkpoint: Annotated[Path, typer.Argument(help="folder of a student, such as a run's best_checkpoint")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="the model repository")],
    public: Annotated[
        bool, typer.Option("--public", help="a new repository that everyone sees; default: private")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="a branch, made if there is none; default: main")] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="of the weights, as the hub names it: apache-2.0")
    ] = None,
    merged: Annotated[bool, typer.Option("--merged", help="what kava export makes, for transformers alone")] = False,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="of the weights of the --merged form; default: as they are"),
    ] = None,
    base: Base = None,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="also where files are that kava did not upload")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry_run", help="show card and files; ask nothing of the hub")] = False,
    quiet: Quiet = False,
) -> int:
    """Upload a student with a model card made from its run's files.

    Everything goes up in one commit: an interrupted push leaves the branch as it was and can be repeated. Afterwards
    Student.from_pretrained("owner/name") and --checkpoint owner/name load it. The token is that of hf auth login or
    HF_TOKEN.
    """
    from kava.share.push import listing
    from kava.share.push import push as upload

    result = upload(
        checkpoint, repo, private=not public, revision=revision, licence=licence, merged=merged, dtype=dtype, base=base,
        trust_remote_code=trust_remote_code, overwrite=overwrite, dry_run=dry_run,
        progress=not quiet,
    )  # fmt: skip
    if dry_run:
        text = f"{result.card}\n{table(listing(result.files), ('file', 'size'), left=1)}\n\nnothing was uploaded (--dry_run)"
    else:
        kind = "private" if result.private else "public"
        gone = f", {len(result.removed)} of an earlier push removed" if result.removed else ""
        text = f"uploaded {len(result.files)} files to {result.url} ({kind}), commit {result.commit}{gone}"
    show_result(result.to_dict(), text, quiet)
    return 0
