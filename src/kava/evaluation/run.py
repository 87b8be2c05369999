"""Evaluate a student on datasets; write results and predictions."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kava.backbone.card import read_card
from kava.backbone.silence_libraries import silence_libraries
from kava.errors import ConfigError, DataError
from kava.evaluation.eval_sets import EvalSet, load_eval_set
from kava.evaluation.losses import held_out_losses
from kava.evaluation.overrides import UNCHANGED, EvalOverrides
from kava.evaluation.result_files import Files, check_writable, files_for, up_to_date, write
from kava.evaluation.score import cue_of, predict, summary
from kava.files import is_stream
from kava.infer.checkpoint import checkpoint_folder, on_hub
from kava.infer.checks import MODES, check_choice, check_count, own_mode, stored_recipe, student_files, untrained
from kava.infer.student import Student, device_name, sampling_of
from kava.outputs import as_path
from kava.provenance import versions

ROWS = "rows"  # the name of a set that was given as a list of rows


@dataclass(frozen=True)
class EvalResult:
    """One set's result; `fields` is everything in the results file."""

    dataset: str
    mode: str
    accuracy: float
    correct: int
    total: int
    forward_passes: float  # mean per question
    results: Path
    predictions: Path
    fields: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The fields and both paths, for JSON."""
        return self.fields | {"results": str(self.results), "predictions": str(self.predictions)}


def evaluate(
    student: Student | str | Path,
    datasets: Any = None,
    *,
    output: str | Path | None = None,
    mode: str | None = None,
    limit: int | None = None,
    num_steps: int | None = None,
    ablate: str | None = None,
    num_tokens: int | None = None,
    num_iterations: int | None = None,
    cue: str | None = None,
    samples: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    sampling_seed: int | None = None,
    losses: bool = False,
    missing: bool = False,
    overwrite: bool = False,
    max_new_tokens: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    base: str | None = None,
    trust_remote_code: bool = False,
    exact_adapters: bool = False,
    revision: str | None = None,
    quiet: bool = False,
    report: Callable[[EvalResult], object] | None = None,
) -> list[EvalResult]:
    """Accuracy and forward passes on each set; writes the same files as `kava evaluate`.

    student     a student's folder, such as a run's best_checkpoint, owner/name on the hub (at `revision`), or a Student
    datasets    a name or path, a list of them, rows [{"question": ..., "answer": ...}, ...], or {name: rows}; None: the
                sets of the student's recipe
    output      a .yaml or .json file, or a folder; None: beside best_checkpoint
    mode        latent, cot or direct; None: as the student was trained
    limit       so many items, always the same; num_steps: problems of exactly this length (built-in sets)
    ablate      zero, mean, swap or noise in place of the latents
    num_tokens, num_iterations, cue    another M, T or cue than the recipe's
    samples     so many drawn answers to each item: pass@k, majority vote, likeliest of n
    temperature, top_p, sampling_seed    of drawn answers; None: the recipe's temperature, top_p and seed
    losses      also the held-out loss terms
    missing     leave out sets that have results of this very checkpoint
    overwrite   replace the file `output` even if kava did not write it
    trust_remote_code    run code that came with the student or its base
    exact_adapters       LoRA adapters as in training, not folded into a copy of the weights
    quiet       no progress bars; `report` is called with each result as soon as its files are written
    """
    if isinstance(student, Student):
        if exact_adapters and not student.exact_adapters:
            message = "exact_adapters has no effect on a Student that is loaded"
            raise ConfigError(message, "give it to Student.from_pretrained")
        recipe, checkpoint = student.recipe, student.folder
    else:
        checkpoint = checkpoint_folder(student, revision, not quiet)
        recipe = stored_recipe(checkpoint)
    check_choice("mode", mode, MODES)
    counts = {"limit": limit, "num_steps": num_steps, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    for name, value in counts.items():
        check_count(name, value)
    how, output = mode or own_mode(recipe), as_path("output", output)
    sets = _named_sets(recipe.evaluation.datasets if datasets is None else datasets)
    if output is not None and len(sets) > 1 and (is_stream(output) or (output.suffix and not os.path.isdir(output))):
        raise ConfigError(f"--output {output} is one file, there are {len(sets)} sets", "give --output a folder")
    if checkpoint is None and output is None:
        raise ConfigError("this student was not loaded from a folder, so results have no place", "give output=FOLDER")
    if checkpoint is not None and output is None and on_hub(checkpoint):
        raise ConfigError("results of a student of the hub have no run's folder to go to", "give --output FOLDER")
    if losses and (ablate is not None or how == "direct"):
        what = "--ablate" if ablate is not None else "mode direct"
        raise ConfigError(f"--losses has no effect with {what}", "they are measured with the student's own latents")
    overrides = EvalOverrides(
        ablate, num_tokens, num_iterations, cue, samples, temperature, top_p, sampling_seed
    ).checked(recipe, how)
    silence_libraries()
    eval_sets = [load_eval_set(recipe, name, limit, num_steps, rows) for name, rows in sets.items()]
    for items in eval_sets:
        overrides.check_items(items.examples, items.name)
    pairs = [(items, files_for(checkpoint or Path(), items, how, output, overrides)) for items in eval_sets]
    inputs = [*map(Path, sets), *([] if checkpoint is None else student_files(checkpoint))]
    named = output is not None and any(paths.results == output for _, paths in pairs)
    check_writable([paths for _, paths in pairs], inputs, overwrite or not named)
    if missing and checkpoint is not None:
        facts = {"step": read_card(checkpoint).step, "mode": how}
        pairs = [pair for pair in pairs if not up_to_date(pair[1], facts | {"data_sha256": pair[0].sha256}, losses)]
    if pairs and not isinstance(student, Student):
        student = Student.from_pretrained(checkpoint or student, device, base, trust_remote_code, exact_adapters)
    results = []
    for items, paths in pairs:
        assert isinstance(student, Student)
        fields = evaluate_set(
            student, items, paths, checkpoint, how, batch_size, max_new_tokens, overrides, losses, progress=not quiet
        )
        accuracy, correct, total = fields["accuracy"], fields["correct"], fields["total"]
        passes = fields["avg_forward_passes"]
        result = EvalResult(items.name, how, accuracy, correct, total, passes, paths.results, paths.predictions, fields)
        results.append(result)
        if report is not None:
            report(result)
    return results


def _named_sets(datasets: Any) -> dict[str, Any]:
    """Name -> rows; None where the set is found by its name."""
    if isinstance(datasets, Mapping):
        sets = {str(name): rows for name, rows in datasets.items()}
    elif isinstance(datasets, str | Path):
        sets = {str(datasets): None}
    elif isinstance(datasets, Sequence) and all(isinstance(name, str | Path) for name in datasets):
        sets = {str(name): None for name in datasets}
    else:
        sets = {ROWS: datasets}
    if not sets:
        raise DataError("there is no set to evaluate on", "give a name, a path or rows; None takes the recipe's sets")
    return sets


def evaluate_set(
    student: Student,
    items: EvalSet,
    files: Files,
    checkpoint: Path | None,
    mode: str = "latent",
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    overrides: EvalOverrides = UNCHANGED,
    losses: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Answers every item, writes both files and returns what is in the results file."""
    with overrides.applied(student) as recipe:
        limit = max_new_tokens or recipe.evaluation.max_new_tokens
        size = batch_size or recipe.evaluation.batch_size
        seed = recipe.system.seed if overrides.sampling_seed is None else overrides.sampling_seed
        sampling = sampling_of(recipe, seed=seed)
        began = time.perf_counter()
        predictions = predict(
            student, items.examples, mode, size, limit, progress=progress, sampling=sampling, ablate=overrides.ablate,
            samples=overrides.samples,
        )  # fmt: skip
        assert predictions is not None  # only `stop` gives None
        seconds = time.perf_counter() - began
        loss_fields = held_out_losses(student, items, size, progress) if losses else {}
    note = untrained(student.recipe, "direct" if overrides.num_tokens == 0 else mode)
    results = {
        "dataset": items.name,
        "mode": mode,
        "cue": cue_of(recipe, mode),
        **overrides.fields,
        **({"note": note} if note else {}),
        **summary(predictions),
        **loss_fields,
        "set_size": items.set_size,
        "data_sha256": items.sha256,
        "wall_time_s": round(seconds, 3),
        "config": recipe.about.name,
        "seed": recipe.system.seed,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "step": None if checkpoint is None else read_card(checkpoint).step,
        "max_new_tokens": limit,
        "batch_size": size,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        **({"sampling_seed": seed} if sampling.temperature > 0 else {}),
        "device": device_name(student.model.device),
        "versions": versions(),
    }
    write(files, results, predictions)
    return results
