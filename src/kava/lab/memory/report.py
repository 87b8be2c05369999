"""`kava memory`: what a run will hold on one of its processes, which part is the largest, and what to change first."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from kava.backbone.load import load_tokenizer, locate
from kava.config import Recipe
from kava.data.encode import Encoded
from kava.errors import ConfigError
from kava.lab.memory.estimate import device_of, estimate
from kava.progress import progress
from kava.text_table import table
from kava.training.data import load_data
from kava.training.memory import token_budget
from kava.training.sharding_rules import sharding_of

CUE = 4  # tokens of the cue, where lengths are given
PARTS = {  # what is changed together
    "weights": ("weights",),
    "training state": ("gradients", "optimizer"),
    "activations": ("activations", "logits"),
    "teacher": ("teacher",),
    "store": ("store",),
}
NOT_COUNTED = (
    "Not counted: what imports and a CUDA context take, what an allocator leaves unused, processes for batches."
)
Change = tuple[str, Recipe, bool]  # the setting in words, the changed recipe, and whether the update stays the same


def memory_report(recipe: Recipe, lengths: Sequence[int] | None, processes: int) -> dict[str, Any]:
    """Bytes by kind at the peak, and for the largest part each change that makes it less, with what it saves."""
    rows = _given_rows(recipe, lengths) if lengths is not None else _longest_rows(recipe)
    with progress("an update without numbers"):
        now = estimate(recipe, rows, processes)
    groups = {name: sum(now.parts[kind] for kind in kinds) for name, kinds in PARTS.items()}
    largest = max(groups, key=lambda name: groups[name])
    changes: list[dict[str, Any]] = []
    for setting, changed, same in _changes(recipe, largest, device_of(recipe, processes)):
        with progress(f"the same with {setting}"):
            then = estimate(changed, rows[: changed.training.batch_size], processes)
        if then.total < now.total:
            changes.append({"setting": setting, "saves_bytes": now.total - then.total, "same_update": same})
    changes.sort(key=lambda change: change["saves_bytes"], reverse=True)
    return {
        "config": recipe.about.name,
        "processes": processes,
        "sharding": sharding_of(recipe, processes) if processes > 1 else "none",
        "batch_size": len(rows),
        "tokens": {"question": len(rows[0].question), "cot": len(rows[0].cot), "answer": len(rows[0].answer)},
        "parameters": now.whole,
        "trained_parameters": now.trained,
        "bytes": now.parts,
        "total_bytes": now.total,
        "largest": largest,
        "changes": changes,
    }


def _given_rows(recipe: Recipe, lengths: Sequence[int]) -> list[Encoded]:
    question, cot, answer = lengths
    row = Encoded("row", [0] * question, [0] * cot, [True] * cot, [0] * CUE, [0] * answer, 0)
    return [row] * recipe.training.batch_size


def _longest_rows(recipe: Recipe) -> list[Encoded]:
    """The longest training examples: the largest batch that can come."""
    if recipe.dataset.streaming:
        raise ConfigError("a stream's lengths are not known before it is read", "give --question, --cot and --answer")
    tokenizer = load_tokenizer(locate(recipe.model.name, recipe.model.gguf_file), recipe.model)
    data = load_data(recipe, tokenizer).train
    total = data.lengths("question") + data.lengths("cot") + data.lengths("answer")
    order = sorted(range(len(total)), key=total.tolist().__getitem__, reverse=True)
    return [data[place] for place in order[: recipe.training.batch_size]]


def _changes(recipe: Recipe, largest: str, device: torch.device) -> Iterator[Change]:
    """What makes the largest part less."""
    training = recipe.training
    if largest == "activations":
        if not training.gradient_checkpointing:
            yield "training.gradient_checkpointing=true", recipe.changed("training", gradient_checkpointing=True), True
        if (budget := token_budget(recipe, device)) is not None:
            changed = recipe.changed("training", tokens_per_piece=max(1, budget // 2))
            yield f"training.tokens_per_piece={budget // 2}", changed, True
        elif training.batch_size > 1:
            half, twice = training.batch_size // 2, 2 * training.gradient_accumulation_steps
            setting = f"training.batch_size={half} training.gradient_accumulation_steps={twice}"
            changed = recipe.changed("training", batch_size=half, gradient_accumulation_steps=twice)
            yield setting, changed, training.batch_size % 2 == 0
    if largest in ("weights", "training state"):
        if not recipe.lora.enabled:
            yield "lora.enabled=true", recipe.changed("lora", enabled=True), False
        if recipe.model.dtype == "float32":
            yield "model.dtype=bfloat16", recipe.changed("model", dtype="bfloat16"), False
    if largest == "teacher":
        if recipe.teacher.quantization == "none":
            yield "teacher.quantization=nf4", recipe.changed("teacher", quantization="nf4"), False
        if recipe.teacher.dtype == "float32":
            yield "teacher.dtype=bfloat16", recipe.changed("teacher", dtype="bfloat16"), False


def memory_text(report: dict[str, Any]) -> str:
    """The report for people."""
    unit, divisor = ("GiB", 2**30) if report["total_bytes"] >= 2**30 else ("MiB", 2**20)
    parts = [(kind, f"{count / divisor:.2f}") for kind, count in report["bytes"].items() if count]
    rows = [*parts, ("together", f"{report['total_bytes'] / divisor:.2f}")]
    tokens = ", ".join(f"{name} {count}" for name, count in report["tokens"].items())
    on = (
        "" if report["processes"] == 1 else f", each of {report['processes']} processes (sharding {report['sharding']})"
    )
    lines = [
        f"{report['config']}: {report['trained_parameters']:,} of {report['parameters']:,} parameters trained{on}",
        f"at the peak of an update on {report['batch_size']} rows (tokens of the longest: {tokens})",
        "",
        table(rows, ("held", unit), left=1, foot=1),
        "",
        f"largest: {report['largest']}",
    ]
    for change in report["changes"]:
        same = "the same update" if change["same_update"] else "another experiment"
        lines.append(f"  {change['setting']} saves {change['saves_bytes'] / divisor:.2f} {unit} ({same})")
    return "\n".join([*lines, "", NOT_COUNTED])
