"""Runs the checks on a model: a name of the hub or a folder."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from kava.backbone.families import FAMILIES, Family, family_of
from kava.backbone.load import load_config, load_plain
from kava.config import ModelConfig
from kava.errors import KavaError, first_line
from kava.infer.student import pick_device
from kava.lab.selfcheck.model_check.checks import CHECKS, Subject, Unlike
from kava.lab.selfcheck.model_check.double import KeepDouble
from kava.lab.selfcheck.model_check.small_copy import random_copy

# what a check meets in a model that is built otherwise; anything else is a bug of ours
STRANGE = (
    Unlike,
    KavaError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    ImportError,
)
EXACT, ROUNDED = 1e-9, 1e-3


@dataclass(frozen=True)
class CheckResult:
    """What one check saw, or why it failed."""

    name: str
    ok: bool
    text: str
    seconds: float


Show = Callable[[CheckResult], None]


def check_model(model: ModelConfig, full: bool, device: str, show: Show) -> tuple[str, list[CheckResult]]:
    """A model's family, and every check's result on a small random copy of it in float64; `full`: on the model itself in
    float32."""
    config = load_config(model)
    lm = load_plain(model, torch.float32).to(pick_device(device)) if full else None
    return str(config.model_type), check_config(config, show, lm)


def check_config(config: Any, show: Show, lm: Any = None) -> list[CheckResult]:
    """Every check's result for a config of transformers. A family without a row is checked with the row of Llama."""
    results: list[CheckResult] = []

    def run(name: str, check: Callable[[], str]) -> bool:
        with KeepDouble():
            results.append(_run(name, check))
        show(results[-1])
        return results[-1].ok

    subjects: list[Subject] = []

    def build() -> str:
        row = FAMILIES.get(config.model_type, Family(config.model_type))
        windowed, tolerance = random_copy(config, force_window=True), EXACT if lm is None else ROUNDED
        subjects.append(Subject(random_copy(config) if lm is None else lm, row, windowed, tolerance))
        return "a random model with few, narrow layers" if lm is None else "the model with its weights"

    run("family", lambda: family_of(config, config.model_type).name)
    if run("model", build):
        for name, check in CHECKS.items():
            run(name, lambda check=check: check(subjects[0]))  # type: ignore[misc]
    return results


def verdict(family: str, results: list[CheckResult]) -> str:
    """One line: supported, or the checks that fail."""
    failed = [result.name for result in results if not result.ok]
    if not failed:
        return f"supported: family {family}, {len(results)} checks"
    if failed == ["family"]:
        return (
            f"not supported yet: family {family} has no row in the table of families, and passes every check with Llama's; "
            "docs/add-a-variant.md says how to add it"
        )
    return f"not supported: {', '.join(failed)} {'fails' if len(failed) == 1 else 'fail'}"


def _run(name: str, check: Callable[[], str]) -> CheckResult:
    began = time.perf_counter()
    try:
        ok, text = True, check()
    except STRANGE as error:
        ours = isinstance(error, (Unlike, KavaError))
        ok, text = False, first_line(error) if ours else f"{type(error).__name__}: {first_line(error)}"
    plain = text.encode("ascii", "backslashreplace").decode()
    return CheckResult(name, ok, plain, round(time.perf_counter() - began, 1))
