"""The process that runs the items of `kava bench gpu`: one line of JSON for each thing that happens, on its stdout.

An item that raises what it never should ends the process: after an error of the device nothing in it can be trusted.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kava.errors import ConfigError, KavaError, first_line
from kava.files import make_folder
from kava.lab.bench.gpu.items import ITEMS, KitFailure, KitItem, KitSetup
from kava.lab.selfcheck.context import Skipped

# {machine: facts}, {begins: name}, {record: an item's record; ends: the process ends with it}, {refused: message, hint}
Event = dict[str, Any]


def events(device: str, tiny: bool, names: Sequence[str], scratch: str) -> Iterator[Event]:
    """What happens while the items run one after the other. A device that cannot be used is a ConfigError."""
    opened = _open_device(device, tiny)
    import torch

    yield {"machine": _machine(*opened)}
    for name in names:
        folder = Path(scratch) / name
        make_folder(folder)
        yield {"begins": name}
        yield from _records(ITEMS[name], KitSetup(*opened, tiny, folder))
        gc.collect()
        if opened[0].type == "cuda":
            torch.cuda.empty_cache()


def _records(item: KitItem, setup: KitSetup) -> Iterator[Event]:
    """The item's record. An unforeseen error is recorded, too, and then raised."""
    began = time.perf_counter()

    def record(state: str, text: str, figures: dict[str, Any] | None = None) -> Event:
        plain = " ".join(text.split()).encode("ascii", "backslashreplace").decode()
        seconds = round(time.perf_counter() - began, 1)
        facts = {"state": state, "text": plain, "seconds": seconds, "figures": figures or {}}
        return {"record": {"name": item.name, "title": item.title, **facts}}

    try:
        finding = item.run(setup)
    except Skipped as reason:
        yield record("skipped", str(reason))
    except KitFailure as error:
        yield record("failed", str(error))
    except KavaError as error:
        yield record("failed", error.message)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("kava"):
            yield record("skipped", f"the package {error.name} is not installed")
            return
        yield {**record("failed", f"{type(error).__name__}: {first_line(error)}"), "ends": True}
        raise
    else:
        yield record("ok", finding.text, finding.figures)


def _open_device(name: str, tiny: bool) -> tuple[Any, Any]:
    """The device, and the type of two bytes that it computes natively."""
    from kava.backbone.quantize import compute_dtype
    from kava.backbone.silence_libraries import silence_libraries
    from kava.infer.student import pick_device

    silence_libraries()
    import torch

    device = pick_device(name)
    if device.type == "cuda":
        return torch.device("cuda", torch.cuda.current_device()), compute_dtype(device)
    if not tiny:
        raise ConfigError("the sizes of the GPU kit are too large for a CPU", "add --tiny, which tries every item")
    return device, torch.bfloat16


def _machine(device: Any, half: Any) -> dict[str, Any]:
    """The device, and the versions of what computes on it; null for what is not installed."""
    import torch

    from kava.lab.bench.timing import hardware
    from kava.provenance import surroundings, version_of

    around = surroundings()
    facts = {**hardware(device), "half": str(half).removeprefix("torch.")}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts |= {
            "memory_bytes": card.total_memory,
            "capability": f"{card.major}.{card.minor}",
            "cuda": torch.version.cuda,
        }
    versions = around["versions"] | {name: version_of(name) for name in ("bitsandbytes", "triton")}
    return {"hardware": facts, "versions": versions, **{name: around[name] for name in ("git", "platform", "started")}}


def main(request: str) -> int:
    """Runs {device, tiny, names, scratch}; what libraries print goes to stderr, so that stdout holds events alone."""
    sys.stdout.flush()
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(event: Event) -> None:
        print(json.dumps(event), file=lines, flush=True)

    try:
        for event in events(**json.loads(request)):
            tell(event)
    except ConfigError as error:
        tell({"refused": error.message, "hint": error.hint})
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
