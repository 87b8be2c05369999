"""Invented run folders for the report, and a reader of pages that complains about what is not well formed."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

SEEDS = (1, 2, 3)
N = 40
STEPS = [1 + i % 3 for i in range(N)]
RIGHT = {  # how many of the items each seed gets right
    "E1_baseline": (10, 12, 17),
    "E4_rkv": (20, 21, 25),
    "steps": (36, 39, 40),
    "full_cot": (40,),
}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "E1_baseline": {"loss": {"alpha2_kv": 0.0}},
    "E4_rkv": {"rkv": {"method": "rkv"}},
    "steps": {},
    "full_cot": {"loss": {"alpha2_kv": 0.0, "student_ce": 0.0}},
}


def recipe(member: str, seed: int) -> dict[str, Any]:
    made: dict[str, Any] = {
        "about": {"name": "tiny"},
        "model": {"name": "tiny-model"},
        "latent": {"num_tokens": 3, "num_iterations": 2},
        "loss": {"alpha2_kv": 5.0, "student_ce": 1.0},
        "rkv": {"method": "steps", "shuffle": "none"},
        "system": {"seed": seed},
    }
    for section, values in SETTINGS[member].items():
        made[section] |= values
    return made


def log(member: str, seed: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in (10, 20, 30, 40):
        line = {"step": step, "ce_student": 1 / step + seed / 100, "latent_norm": 5.0 + seed, "latent_cosine": -0.25}
        if member in ("E4_rkv", "steps"):
            line |= {"kv": 2.0 / step, "kept_share": 0.75, "kv_share_k": 0.8, "kv_share_v": 0.2}
            shares = {
                "k_0": 0.5 - step / 1000,
                "k_1": 0.3 + step / 1000,
                "v_0": 0.1 + seed / 100,
                "v_1": 0.1 - seed / 100,
            }
            line |= {f"kv_share_{place}": share for place, share in shares.items()}
        lines += [line, {"step": step, "eval_accuracy": step / 100}]
    return lines


def answer(folder: Path, name: str, correct: int, **more: Any) -> None:
    """results_<name>.yaml and its predictions: the first `correct` items are right."""
    right = [i < correct for i in range(N)]
    by_steps = {n: {"correct": 0, "total": 0} for n in sorted(set(STEPS))}
    for n, yes in zip(STEPS, right, strict=True):
        by_steps[n]["correct"] += yes
        by_steps[n]["total"] += 1
    fields = {
        "dataset": "chains",
        "mode": "latent",
        "cue": "given",
        "accuracy": correct / N,
        "correct": correct,
        "total": N,
        "unit": "fraction",
        "avg_forward_passes": 5.0,
        "avg_executed_calls": 4.0,
        "avg_generated_tokens": 2.0,
        "by_steps": by_steps,
        "set_size": N,
        "data_sha256": "ab" * 32,
        "wall_time_s": 1.5,
        "config": "tiny",
        "batch_size": 8,
        "device": "cpu",
        "versions": {"kava": "0.1.0", "torch": "2.9"},
    }
    (folder / f"results_{name}.yaml").write_text(yaml.safe_dump(fields | more, sort_keys=False))
    lines = [
        {"id": f"q{i}", "num_steps": n, "correct": yes} for i, (n, yes) in enumerate(zip(STEPS, right, strict=True))
    ]
    (folder / f"predictions_{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def run(root: Path, member: str, seed: int, finished: bool = True) -> Path:
    folder = root / member / f"seed_{seed}"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(member, seed), sort_keys=False))
    meta = {"versions": {"kava": "0.1.0"}, "device": "cpu", "seconds": 100.0 * seed, "data": {"sha256": "cd" * 32},
            "command": ["/x/kava/__main__.py", "train", "--seed", str(seed)], "finished": finished, "steps": 40,
            "effective_batch_size": 8}  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log(member, seed)))
    return folder


KEPT = {
    "keep": 2,
    "resampled": ["full"],
    "examples": [
        {
            "id": "one",
            "question": "2 & 3 <more>?",
            "tokens": ["$", "2", "+", "3", "=", "5", "$"],
            "is_result": [False, False, False, False, False, True, False],
            "kept": {"rkv": [[[0, 5], [1, 2]], [[5, 6], [4, 5]]], "full": [[[0, 6], [0, 6]], [[0, 6], [0, 6]]]},
        }
    ],
}


class Reader(HTMLParser):
    """Tables by label, figures, ids, references; complains about what is not closed in order."""

    VOID = ("meta", "br")

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables.setdefault(dict(attrs).get("aria-label", ""), [])
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else, line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if self.open and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def table(self, label: str) -> list[list[str]]:
        """The rows below the header that are no headings."""
        header, *rows = self.tables[label]
        return [row for row in rows if len(row) == len(header)]
