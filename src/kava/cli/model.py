"""kava model: does a model work as a student - measured, check by check."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from kava.cli.common import show_result
from kava.cli.list_flags import ListFlagCommand
from kava.cli.student import Quiet, TrustRemoteCode
from kava.config import load_recipe
from kava.config.trust import code_allowed

if TYPE_CHECKING:
    from kava.lab.selfcheck.model_check.run import CheckResult

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.callback()
def model() -> None:
    """Does a model work as a student? Measured on a small random copy of it."""


@app.command("check", cls=ListFlagCommand)
def check(
    name: Annotated[
        str, typer.Argument(help="a model of the hub, or a folder; without --full its config.json is enough")
    ],
    full: Annotated[bool, typer.Option(help="check the model itself, with its weights, in float32")] = False,
    device: Annotated[str, typer.Option(help="where --full runs: auto, cpu, cuda, cuda:1, mps")] = "cpu",
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit on the hub")] = None,
    trust_remote_code: TrustRemoteCode = False,
    gguf_file: Annotated[str | None, typer.Option(help="read this .gguf file of the folder or repository")] = None,
    quiet: Quiet = False,
) -> int:
    """Compare a small random copy of a model, made from its config, with what transformers computes.

    Captured queries, keys and values against the library's cache; padding left, right and none; packed and separate
    passes; rounds against sequential decoding; gradients through keys and values into every layer; generation. A line for
    each check says what was seen; exit code 1 if any fails.
    """
    from kava.backbone.silence_libraries import silence_libraries
    from kava.lab.selfcheck.model_check.run import check_model, verdict

    silence_libraries()
    began = time.perf_counter()

    def show(result: "CheckResult") -> None:
        if not quiet:
            print(f"{'ok' if result.ok else 'FAIL':<4} {result.name:<10} {result.text}", flush=True)

    typed = {"name": name, "revision": revision, "gguf_file": gguf_file}
    words = [f"model.{key}={value}" for key, value in typed.items() if value is not None]
    settings = load_recipe("debug", words).changed("model", trust_remote_code=trust_remote_code).model
    with code_allowed(trust_remote_code):
        family, results = check_model(settings, full, device, show)
    supported = all(result.ok for result in results)
    seconds = round(time.perf_counter() - began, 1)
    document = {
        "model": name,
        "family": family,
        "supported": supported,
        "full": full,
        "seconds": seconds,
        "checks": [{"name": r.name, "ok": r.ok, "text": r.text, "seconds": r.seconds} for r in results],
    }
    show_result(document, f"{verdict(family, results)} ({seconds} s)", quiet)
    return 0 if supported else 1
