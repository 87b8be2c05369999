"""kava demo: the whole method in minutes on a CPU, with its controls."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from kava.errors import RunError


class Member(NamedTuple):
    """One student of the demo: what it is called and how it differs from the recipe."""

    name: str
    settings: tuple[str, ...]


MEMBERS = {
    "no_cot": Member("no-CoT student, same steps", ("latent.num_tokens=0", "loss.alpha2_kv=0")),
    "no_kv": Member("latent student, no KV term", ("loss.alpha2_kv=0",)),
    "kava": Member("latent student, KV term", ()),
}
NOTE = "All three students also keep training the teacher's cross-entropy; passes by the rule 1 + T + generated tokens."
TIMED = 40  # questions asked one by one for the time per question


def demo(
    output_dir: Annotated[Path, typer.Option(help="where the runs, the table and the plot go")] = Path("outputs/demo"),
    seed: Annotated[int, typer.Option(help="seed of all three students")] = 42,
    config: Annotated[str, typer.Option(help="the recipe of the latent student with the KV term")] = "embedded",
    jobs: Annotated[int, typer.Option(help="students trained at once; 0 = all three, so that no core is idle")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="only the result, as JSON")] = False,
) -> int:
    """Distil the shipped checkpoint on built-in arithmetic: about five minutes on two cores.

    Three students start from the same checkpoint and train for the same steps on the same data: one without thoughts,
    one with latents but no KV term, one with the KV term. The table compares them with the explicit chain of thought
    that the last one's weights write as their own teacher, on held-out problems; the tests are paired and exact.
    """
    from kava.files import write_json, write_text
    from kava.lab import demo as report

    folders = {key: output_dir / key / f"seed_{seed}" for key in MEMBERS}
    _train(folders, config, seed, jobs or len(MEMBERS), quiet)
    rows, predictions = _measure(folders, quiet)
    longest = max(rows[0]["by_steps"])
    paired = {other: _compare(predictions["kava"], predictions[other], longest) for other in ("no_cot", "no_kv")}
    lines = [report.verdict(MEMBERS["kava"].name, MEMBERS[k].name, longest, paired[k]) for k in paired]
    text = "\n".join([report.table(rows), "", *lines, NOTE])
    write_text(output_dir / "table.txt", text + "\n")
    result = {"seed": seed, "rows": rows, "paired": {key: value._asdict() for key, value in paired.items()}}
    write_json(output_dir / "result.json", result)
    report.plot(rows, output_dir / "plot.png")
    print(json.dumps(result, indent=2) if quiet else f"\n{text}\n\ntable, plot and runs: {output_dir}")
    return 0


def _train(folders: dict[str, Path], config: str, seed: int, jobs: int, quiet: bool) -> None:
    """Runs `kava train` for every member; what is finished stays as it is."""
    from kava.lab.plan import job
    from kava.lab.run_local import run_jobs

    queue = [
        job(key, config, folders[key], seed, ["logging.report_to=[]", *member.settings], [])
        for key, member in MEMBERS.items()
    ]
    for key, reason in run_jobs(queue, jobs, quiet).items():
        raise RunError(f"{key}: {reason}", f"the whole output is in {folders[key]}.out")


def _measure(folders: dict[str, Path], quiet: bool) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Every member and the explicit chain of thought on the test problems."""
    from kava.data.load import load_examples
    from kava.evaluation.score import predict, summary
    from kava.files import write_text
    from kava.infer.student import Student

    rows, predictions = [], {}
    students = {key: Student.from_pretrained(folder / "best_checkpoint") for key, folder in folders.items()}
    asked = [("cot", "explicit chain of thought", students["kava"], "cot")]
    asked += [(key, member.name, students[key], "latent") for key, member in MEMBERS.items()]
    examples = list(load_examples(students["kava"].recipe.dataset, "test"))
    for key, name, student, mode in asked:
        if not quiet:
            print(f"answering {len(examples)} held-out problems: {name}", flush=True)
        found = predict(student, examples, mode, batch_size=128, progress=not quiet)
        assert found is not None
        predictions[key] = found
        numbers = summary(found)
        rows.append({"name": name, "ms": _milliseconds(student, examples, mode), **numbers})
        lines = "".join(json.dumps(item) + "\n" for item in found)
        write_text(folders["kava"].parent.parent / f"predictions_{key}.jsonl", lines)
    return rows, predictions


def _milliseconds(student: Any, examples: Any, mode: str) -> float:
    """Median time of one question asked alone, over some of the longest problems."""
    from statistics import median

    longest = max(len(example.steps) for example in examples)
    questions = [example.question for example in examples if len(example.steps) == longest][:TIMED]
    times = []
    for question in questions:
        began = time.perf_counter()
        student.answer([question], mode)
        times.append(1000 * (time.perf_counter() - began))
    return median(times)


def _compare(first: list[dict[str, Any]], second: list[dict[str, Any]], steps: int) -> Any:
    from kava.lab.analysis.stats import mcnemar

    def right(items: list[dict[str, Any]]) -> list[bool]:
        return [item["correct"] for item in items if item["num_steps"] == steps]

    return mcnemar(right(first), right(second))
