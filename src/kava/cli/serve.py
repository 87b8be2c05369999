"""kava serve: a student behind an HTTP server that speaks OpenAI's API."""

import importlib.util
import os
from pathlib import Path
from typing import Annotated

import typer

from kava.cli.student import Base, Device, ExactAdapters, Revision, TrustRemoteCode
from kava.errors import ConfigError
from kava.infer.checkpoint import checkpoint_folder
from kava.infer.checks import stored_recipe
from kava.progress import loading_libraries

PACKAGES = ("fastapi", "uvicorn")


def check_packages() -> None:
    """Raises unless the packages of the server are installed."""
    if lacking := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"kava serve needs {' and '.join(lacking)}", "pip install 'kava[serve]'")


def serve(
    checkpoint: Annotated[Path, typer.Argument(help="folder of a student, or owner/name on the hub")],
    host: Annotated[str, typer.Option(help="address to bind to; one that others can reach needs a key")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one, which the log names")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="file with the key that clients send; or the variable KAVA_API_KEY")
    ] = None,
    allowed_hosts: Annotated[
        list[str] | None, typer.Option(help="names under which clients call it: n1 n2 ... (addresses always may)")
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(help="what requests call the model; default: the folder's name, or owner/name")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, max=4096, help="answers made at once; 1 = no batching")] = 64,
    max_queue: Annotated[int, typer.Option(min=0, max=100_000, help="answers that wait; then 429")] = 256,
    max_input_tokens: Annotated[int, typer.Option(min=1, max=2**20, help="longest question")] = 2048,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=2**16, help="longest answer that may be asked for")] = 1024,
    request_timeout: Annotated[float, typer.Option(min=0.1, max=86400, help="seconds for one request")] = 120.0,
    body_timeout: Annotated[float, typer.Option(min=0.1, max=3600, help="seconds in which a body arrives")] = 10.0,
    drain_seconds: Annotated[float, typer.Option(min=0, max=86400, help="for what is under way at SIGTERM")] = 120.0,
    log_prompts: Annotated[bool, typer.Option("--log_prompts", help="questions and answers in the log, too")] = False,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="torch threads; 0 = torch's default")] = 0,
    device: Device = "auto",
    base: Base = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    exact_adapters: ExactAdapters = False,
) -> int:
    """Serve a student over HTTP: a playground at /, OpenAI's API under /v1, /lens, /health, /ready and /metrics.

    Questions that arrive together are answered together. SIGTERM and Ctrl-C let accepted requests finish. The log is
    JSON lines on stderr, without questions and answers.
    """
    check_packages()
    folder = checkpoint_folder(checkpoint, revision)
    stored_recipe(folder)
    with loading_libraries():
        import torch

        from kava.infer.student import Student
        from kava.serve.limits import ServeLimits
        from kava.serve.server import Address, open_socket, read_key
        from kava.serve.server import serve as run
        from kava.serve.service import Service

    address = Address(host, port, tuple(allowed_hosts or ()))
    key = read_key(api_key_file, os.environ.get("KAVA_API_KEY"))
    with open_socket(address, key) as sock:
        if threads:
            torch.set_num_threads(threads)
        student = Student.from_pretrained(folder, device, base, trust_remote_code, exact_adapters)
        limits = ServeLimits(
            max_batch, max_queue, max_input_tokens=max_input_tokens, max_new_tokens=max_new_tokens,
            body_timeout=body_timeout, request_timeout=request_timeout,
        )  # fmt: skip
        name = model_name or (checkpoint.absolute().name if folder == checkpoint else checkpoint.as_posix())
        run(Service(student, name, limits), sock, address, key, log_prompts, drain_seconds)
    return 0
