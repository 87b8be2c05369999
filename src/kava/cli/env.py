"""kava env: describe and check this machine, and recommend settings."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kava.console import fitted, paint
from kava.errors import KavaError

if TYPE_CHECKING:
    from kava.machine.checks import Check


def env(
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="environment file to use instead of configs/environment_config.yaml"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", "--quiet", help="one JSON document and nothing else")] = False,
) -> int:
    """Check this machine: scheduler, device, precision, paths, packages, KV extractor; recommend settings.

    Creates no file and no folder. Exit code 1 if a required package is missing or too old, a path cannot be used, the GPU
    does not answer or the extractor fails; having no GPU is no error. An environment file of yours holds only what differs
    from the shipped kava/machine/environment_config.yaml, which lists every key.
    """
    from kava.machine.adapter import find_environment, say
    from kava.machine.checks import next_step
    from kava.progress import loading_libraries, progress, silent

    with silent(as_json), loading_libraries():
        adapter = find_environment(config)
    if not as_json:
        say(fitted(adapter.report()) + "\n")
    known = adapter.hardware.device != "UNKNOWN"
    with silent(as_json), progress("checking paths and the extractor"):
        checks = [*adapter.checks(), _check_extractor(known)]
    ok = all(check.status != "failed" for check in checks)
    recommended = adapter.recommend() if known else None
    step = next_step(checks, adapter.launch())
    if as_json:
        judged = {"checks": [vars(check) for check in checks], "recommended": recommended, "next_step": step, "ok": ok}
        print(json.dumps(adapter.to_dict() | judged, indent=2, allow_nan=False))
    else:
        lines = [f"   {name}: {_plain(value)}" for name, value in (recommended or {}).items() if name != "paths"]
        advice = "\n".join(["[Recommended Configuration]:", *lines]) + ("" if lines else " not known without torch")
        say(fitted("\n".join(["[Checks]:", *map(_coloured, checks), "", advice, "", "[Next Step]:", f"   {step}"])))
    return 0 if ok else 1


def _coloured(check: "Check") -> str:
    mark, _, rest = str(check).partition("]")
    colour = {"ok": "green", "warning": "yellow", "failed": "red"}.get(check.status, "dim")
    return f"   {paint(mark + ']', colour)}{rest}"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (", ".join(value) or "none") if isinstance(value, list) else str(value)


def _check_extractor(torch_works: bool) -> "Check":
    """Whether the extractor reads the right sizes from a tiny random model: 3 layers, 2 heads of 8, 48 in all."""
    from kava.machine.checks import Check
    from kava.machine.detect import IMPORT_ERRORS, first_line

    name, layers, heads, size = "KV Extractor", 3, 2, 8
    if not torch_works:
        return Check(name, "not run", "torch is needed")
    try:
        from kava.backbone.extractor import probe
        from kava.backbone.silence_libraries import silence_libraries
        from kava.config import LatentConfig
        from kava.lab.bench.reference import library_twin, random_model

        silence_libraries()
        model = library_twin(random_model(layers, 4 * size, 4, heads, 64, LatentConfig()))
        shape = probe(model)
        sizes = (shape.num_layers, shape.num_heads, shape.head_dim, shape.total_dim)
    except (KavaError, LookupError, *IMPORT_ERRORS) as error:
        return Check(name, "failed", f"{type(error).__name__}: {first_line(error)}", "kava smoke")
    wanted = (layers, heads, size, layers * heads * size)
    if sizes != wanted:
        return Check(name, "failed", f"layers, heads, head size, sum are {sizes}, not {wanted}", "kava smoke")
    return Check(name, "ok", f"ready ({layers} layers x {heads} heads x {size} = {wanted[-1]})")
