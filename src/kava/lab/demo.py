"""The program of `kava demo`: train three students, measure them on the test problems, and write table, plot and JSON."""

import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from kava import text_table
from kava.errors import RunError
from kava.files import write_bytes, write_json, write_text
from kava.lab.analysis.stats import McNemarTest, mcnemar
from kava.lab.plan import plan_run
from kava.lab.run_local import run_jobs
from kava.outputs import Output, begins, check_folder, check_outputs, has_keys, rows_have
from kava.progress import loading_libraries, progress, say

if TYPE_CHECKING:
    from kava.data.example import Example
    from kava.infer.student import Student

Row = Mapping[str, Any]  # name, by_steps {n: {correct, total}}, avg_forward_passes, ms
Predictions = dict[str, list[dict[str, Any]]]  # by key of TITLES


STUDENTS = {  # the settings that differ from the recipe
    "no_cot": ("latent.num_tokens=0", "loss.alpha2_kv=0"),
    "no_kv": ("loss.alpha2_kv=0",),
    "kava": (),
}
TITLES = {
    "cot": "explicit chain of thought",
    "no_cot": "no-CoT student, same updates",
    "no_kv": "latent student, no KV term",
    "kava": "latent student, KV term",
}
NOTE = "All three students also keep training the teacher's cross-entropy; passes by the rule 1 + T + generated tokens."
TIMED = 40  # questions answered one by one for the time per question


def run_demo(folder: Path, config: str, seed: int, jobs: int, quiet: bool) -> tuple[dict[str, Any], str]:
    """Trains and measures; returns the result as data and as text. What is finished in `folder` is not trained again."""
    check_folder("--output_dir", folder)
    texts = [Output("the table", folder / "table.txt", begins("model ")), Output("the plot", folder / "plot.png")]
    results = Output("the result", folder / "result.json", has_keys("seed", "rows", "paired"))
    answers = [Output("the predictions", _predictions_file(folder, key), rows_have("gold", "text")) for key in TITLES]
    check_outputs([*texts, results, *answers])
    runs = {key: folder / key / f"seed_{seed}" for key in STUDENTS}
    queue = [
        plan_run(key, config, runs[key], seed, ["logging.report_to=[]", *settings], [])
        for key, settings in STUDENTS.items()
    ]
    for key, reason in run_jobs(queue, jobs or len(STUDENTS), quiet).items():
        raise RunError(f"{key}: {reason}", f"the whole output is in {runs[key]}.out")
    rows, predictions = _measure(folder, runs, quiet)
    steps = max(rows[0]["by_steps"])
    correct = {
        key: [item["correct"] for item in items if item["num_steps"] == steps] for key, items in predictions.items()
    }
    paired = {key: mcnemar(correct["kava"], correct[key]) for key in ("no_cot", "no_kv")}
    verdicts = [verdict(TITLES["kava"], TITLES[key], steps, test) for key, test in paired.items()]
    text = "\n".join([table(rows), "", *verdicts, NOTE])
    write_text(folder / "table.txt", text + "\n")
    result = {"seed": seed, "rows": rows, "paired": {key: test._asdict() for key, test in paired.items()}}
    write_json(folder / "result.json", result)
    with progress("drawing the plot"):
        plot(rows, folder / "plot.png")
    return result, text


def _predictions_file(folder: Path, key: str) -> Path:
    return folder / f"predictions_{key}.jsonl"


def _measure(folder: Path, runs: Mapping[str, Path], quiet: bool) -> tuple[list[dict[str, Any]], Predictions]:
    """Every student and the explicit chain of thought on the test problems; writes their predictions."""
    with loading_libraries():
        from kava.data.load import load_examples
        from kava.evaluation.score import predict, summary
        from kava.infer.student import Student

    students = {key: Student.from_pretrained(run / "best_checkpoint") for key, run in runs.items()}
    examples = list(load_examples(students["kava"].recipe.dataset, "test"))
    rows, predictions = [], {}
    for key, title in TITLES.items():
        student, mode = (students["kava"], "cot") if key == "cot" else (students[key], "latent")
        if not quiet:
            say(f"answering {len(examples)} held-out problems: {title}")
        predictions[key] = predict(student, examples, mode, batch_size=128, progress=not quiet) or []
        rows.append({"name": title, "ms": _milliseconds(student, examples, mode), **summary(predictions[key])})
        lines = [json.dumps(item) + "\n" for item in predictions[key]]
        write_text(_predictions_file(folder, key), "".join(lines))
    return rows, predictions


def _milliseconds(student: "Student", examples: "Sequence[Example]", mode: str) -> float:
    """Median time of one question answered alone, over some of the longest problems."""
    longest = max(len(example.steps) for example in examples)
    questions = [example.question for example in examples if len(example.steps) == longest][:TIMED]
    times = []
    with progress("questions one by one", len(questions), "questions") as meter:
        for question in questions:
            began = time.perf_counter()
            student.answer([question], mode)
            times.append(1000 * (time.perf_counter() - began))
            meter.advance()
    return median(times)


def table(rows: Sequence[Row]) -> str:
    """Accuracy by number of steps, forward passes, milliseconds per question, one line per model."""
    lengths = sorted(rows[0]["by_steps"])
    header, lines = ["model", *map(_steps, lengths), "passes", "ms/question"], []
    for row in rows:
        accuracies = [f"{100 * share(row, n):.1f} %" for n in lengths]
        lines.append([row["name"], *accuracies, f"{row['avg_forward_passes']:.1f}", f"{row['ms']:.1f}"])
    lines.append(["problems", *[str(rows[0]["by_steps"][n]["total"]) for n in lengths], "", ""])
    return text_table.table(lines, header, left=1, foot=1)


def verdict(name: str, other: str, steps: int, paired: McNemarTest) -> str:
    """One sentence on a paired comparison, with the numbers it rests on."""
    if paired.p >= 0.01:
        word = "no significant difference"
    else:
        word = "better" if paired.only_first > paired.only_second else "worse"
    p = f"= {paired.p:.2g}" if paired.p > 0 else "< 1e-300"
    return (
        f"{name} against {other}, {steps}-step problems: {word} "
        f"(only the first right {paired.only_first}, only the second {paired.only_second}, exact paired p {p})"
    )


def share(row: Row, steps: int) -> float:
    """The share of problems with that many steps that are answered correctly."""
    cell = row["by_steps"][steps]
    return cell["correct"] / cell["total"]


def _steps(count: int) -> str:
    return f"{count} step{'s' if count > 1 else ''}"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Left: accuracy by number of steps. Right: accuracy of the longest problems by forward passes."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    lengths = sorted(rows[0]["by_steps"])
    colours = ["#4d4d4d", "#d95f02", "#7570b3", "#1b9e77"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), constrained_layout=True)
    width = 0.8 / len(rows)
    for i, (row, colour) in enumerate(zip(rows, colours, strict=False)):
        values = [100 * share(row, n) for n in lengths]
        places = [x + (i - (len(rows) - 1) / 2) * width for x in range(len(lengths))]
        left.bar(places, values, width * 0.92, color=colour, label=row["name"])
        right.scatter(row["avg_forward_passes"], values[-1], s=90, color=colour, label=row["name"], zorder=3)
    left.set_xticks(range(len(lengths)), [_steps(n) for n in lengths])
    left.set(ylabel="accuracy, %", title="accuracy by number of steps", ylim=(0, 105))
    right.set(xlabel="forward passes per question", ylabel=f"accuracy on {lengths[-1]}-step problems, %")
    right.set(title="accuracy against forward passes", ylim=(0, 105))
    right.set_xlim(left=0)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    right.legend(loc="lower right", frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_bytes(path, picture.getvalue())
    plt.close(figure)
