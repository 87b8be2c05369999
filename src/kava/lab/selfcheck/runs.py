"""The components of `kava smoke` that use whole verbs: train, evaluate, aggregate, format, report, as a user would."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from kava.backbone.artifact import WEIGHTS, save_student
from kava.cli.main import main
from kava.config import load_recipe
from kava.errors import RunError
from kava.evaluation.eval_sets import load_eval_set
from kava.infer.student import Student
from kava.lab.selfcheck import components as below
from kava.lab.selfcheck.context import Place, Skipped, expect, nearness

SEEDS = (1, 2)
SETTINGS = ("logging.report_to=[]", "training.learning_rate=1e-3")
MODES = ("latent", "direct", "cot")


def run_verb(*words: str) -> Any:
    """What a verb prints with --quiet, as data."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = main([*words, "--quiet"])
    if code >= 128:  # the verb ended at Ctrl-C or a signal, and so do we
        raise KeyboardInterrupt
    if code:
        raise RunError(f"kava {' '.join(words)}: exit code {code}, {errors.getvalue()[:500]}")
    return json.loads(out.getvalue())


def try_training(place: Place) -> str:
    run = _run(place, SEEDS[0])
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    validated = [line["eval_accuracy"] for line in lines if "eval_accuracy" in line]
    expect(len(losses) == 4, f"{len(losses)} of 4 updates are in log.jsonl")
    expect(bool(validated) and (run / "best_checkpoint").is_dir(), "nothing was validated, or no student saved")
    return f"recipe debug, 4 updates: loss {losses[0]:.2f} to {losses[-1]:.2f}, {len(validated)} validations, a student"


def try_resume(place: Place) -> str:
    """LoRA with dropout, stopped behind update 2 and continued, against the same run left alone."""
    words = ["lora.enabled=true", "lora.r=4", "lora.dropout=0.1"]
    whole = _train(place, place.folder / "whole", SEEDS[0], *words)
    again = place.folder / "again"
    shutil.copytree(whole, again)
    for path in (*again.glob("checkpoint-step4"), *again.glob("checkpoint-ep*"), again / "best_checkpoint"):
        shutil.rmtree(path)
    meta = json.loads((again / "meta.json").read_text(encoding="utf-8"))
    (again / "meta.json").write_text(json.dumps(meta | {"finished": False}), encoding="utf-8")
    _train(place, again, SEEDS[0], *words, "--resume", "auto")
    gap = weight_gap(whole / "checkpoint-step4", again / "checkpoint-step4")
    allowed = 0 if place.device == "cpu" else 1e-4  # accelerators add up in any order
    expect(gap <= allowed, f"weights differ by {gap:.1e} from those of a run that was not stopped")
    return f"a LoRA run stopped at update 2 of 4 and continued: the same weights, {nearness(gap)}"


def try_evaluate(place: Place) -> str:
    found = [_evaluate(place, SEEDS[0], mode) for mode in MODES]
    for mode, result in zip(MODES, found, strict=True):
        lines = Path(result["predictions"]).read_text(encoding="utf-8").splitlines()
        correct = sum(json.loads(line)["correct"] for line in lines)
        same = (result["correct"], result["total"], result["mode"]) == (correct, len(lines), mode)
        expect(same, f"{mode}: {result['correct']}/{result['total']} reported, {correct}/{len(lines)} written")
    parts = ", ".join(f"{mode} {one['correct']}/{one['total']}" for mode, one in zip(MODES, found, strict=True))
    return f"{parts} right; results and predictions agree"


def try_reload(place: Place) -> str:
    first = _student(place)
    save_student(first.model, first.tokenizer, first.recipe, place.folder / "copy")
    second = Student.from_pretrained(place.folder / "copy", place.device)
    questions = _questions(place)
    for mode in MODES:
        same = first.answer(questions, mode) == second.answer(questions, mode)
        expect(same, f"{mode} answers change when the student is saved and loaded again")
    return f"saved and loaded again: the same answers to {len(questions)} questions in {len(MODES)} modes"


def try_batches(place: Place) -> str:
    student, questions = _student(place), _questions(place)
    for mode in MODES:
        one, four = (student.answer(questions, mode, size) for size in (1, 4))
        expect(one == four, f"{mode} answers at batch 1 and 4 differ")
    return f"batch 1 and 4: the same answers to {len(questions)} questions in {len(MODES)} modes"


def try_explicit(place: Place) -> str:
    """Two updates with a separate teacher, live and from a store of what it gives."""
    words = ["dataset.generator.train_size=16", "dataset.generator.val_size=4", "training.batch_size=8"]
    recipe = ["--config", "explicit_embedded", *words]
    device = f"system.device={place.device.partition(':')[0]}"
    store = place.folder / "teacher_kv"
    run_verb("extract", *recipe, "--output_dir", str(store), "--with_importance", "--batch_size", "8", device)
    runs = []
    for name, more in (("live", []), ("stored", [f"teacher.store={store}"])):
        folder = place.folder / f"explicit_{name}"
        settings = ["training.max_steps=2", "logging.eval_steps=2", device, SETTINGS[0], *more]
        run_verb("train", *recipe, "--output_dir", str(folder), *settings)
        runs.append(folder)
    gap = weight_gap(*(run / "best_checkpoint" for run in runs))
    expect(gap <= 1e-4, f"a teacher read from its store trains other weights, off by {gap:.1e}")
    answers = run_verb(
        "evaluate", "--checkpoint", str(runs[0] / "best_checkpoint"), "--device", place.device, "--limit", "4"
    )
    expect(answers[0]["mode"] == "cot", f"asked in mode {answers[0]['mode']}")
    expect((runs[0] / "final_model" / "student" / "config.json").is_file(), "no final_model/student")
    return f"a teacher live and from its store: the same weights, {nearness(gap)}; answers with steps"


def try_tables(place: Place) -> str:
    _needs("aggregate", "format")
    for seed in SEEDS:
        _evaluate(place, seed, "latent")
    root = place.folder / "debug_multi_seed"
    folders = [str(_run(place, seed)) for seed in SEEDS]
    files = ["--output_json", str(root / "aggregated_results.json"), "--output_yaml", str(root / "a.yaml")]
    run_verb("aggregate", "--seed_dirs", *folders, "--datasets", "chains", *files)
    run_verb(
        "format", "--input_dir", str(root), "--output_latex", str(root / "t.tex"), "--output_csv", str(root / "t.csv")
    )
    latex, rows = ((root / name).read_text(encoding="utf-8") for name in ("t.tex", "t.csv"))
    expect("\\toprule" in latex and len(rows.splitlines()) > 1, f"the tables are empty: {rows!r}")
    return f"{len(SEEDS)} seeds aggregated; LaTeX of {len(latex)} characters, CSV of {len(rows.splitlines())} lines"


def try_report(place: Place) -> str:
    _needs("report", library="matplotlib")
    page = place.folder / "report.html"
    run_verb("report", str(_run(place, SEEDS[0])), "--output", str(page))
    text = page.read_text(encoding="utf-8")
    expect("</html>" in text and ("<svg" in text or "<img" in text), "the page has no figures")
    return f"a page of {len(text) // 1024} KiB with figures"


def _needs(*verbs: str, library: str | None = None) -> None:
    for verb in verbs:
        if importlib.util.find_spec(f"kava.cli.{verb}") is None:
            raise Skipped(f"there is no kava {verb}")
    if library is not None and importlib.util.find_spec(library) is None:
        raise Skipped(f"{library} is not installed")


def _run(place: Place, seed: int) -> Path:
    """A short finished run of that seed, trained when first asked for."""
    folder = place.folder / "debug_multi_seed" / f"seed_{seed}"
    return folder if folder.exists() else _train(place, folder, seed)


def _train(place: Place, folder: Path, seed: int, *words: str) -> Path:
    given = ["--config", "debug", "--output_dir", str(folder), "--seed", str(seed)]
    run_verb("train", *given, f"system.device={place.device.partition(':')[0]}", *SETTINGS, *words)
    return folder


def _evaluate(place: Place, seed: int, mode: str) -> dict[str, Any]:
    checkpoint = str(_run(place, seed) / "best_checkpoint")
    return run_verb("evaluate", "--checkpoint", checkpoint, "--mode", mode, "--device", place.device)[0]


def _student(place: Place) -> Student:
    return Student.from_pretrained(_run(place, SEEDS[0]) / "best_checkpoint", place.device)


def _questions(place: Place) -> list[str]:
    return [example.question for example in load_eval_set(load_recipe("debug"), "chains", 10).examples]


def weight_gap(first: Path, second: Path) -> float:
    """The largest difference between two students' weights."""
    left, right = (load_file(folder / WEIGHTS) for folder in (first, second))
    return max(float((left[name] - right[name]).abs().max()) for name in left)


COMPONENTS = {
    **below.COMPONENTS,
    "training": try_training,
    "resume": try_resume,
    "evaluate": try_evaluate,
    "reload": try_reload,
    "batches": try_batches,
    "explicit": try_explicit,
    "tables": try_tables,
    "report": try_report,
}
