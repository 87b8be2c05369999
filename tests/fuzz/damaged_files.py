"""Cases about files that are read back: a student's folder, results, logs and job records."""

import json
from pathlib import Path
from typing import Any

import yaml
from behaviour import FIXTURES, Case
from hypothesis import assume
from hypothesis import strategies as st
from rows import damaged_bytes

from kava.config.text import dump_yaml

RUN = "results/E1_baseline/seed_1"
OTHER_VALUES = (
    None,
    [],
    {},
    [1],
    {"a": 1},
    0,
    -1,
    1.5,
    10**30,
    float("nan"),
    True,
    "x",
    "",
    "a\x1b[2Jb",
    "\ud800",
    [[[]]],
)
OTHER_FILES: dict[str, bytes] = {
    "is empty": b"",
    "is null": b"null",
    "is a list": b"[]",
    "is a number": b"1",
    "is a word": b"x",
    "is binary": bytes(range(256)),
    "is Latin-1": "caf\u00e9: 1".encode("latin-1"),
    "is UTF-16": '{"a": 1}'.encode("utf-16"),
    "is NULs": b"\0" * 100,
    "is brackets": b"[" * 3000,
    "is a number of 5,000 digits": b"9" * 5000,
    "has no end": b'{"a": ',
}


def damaged_tree(draw: st.DrawFn, data: Any) -> Any:
    """The data with one value of another type, or one key left out."""
    node, path = data, []
    while isinstance(node, dict | list) and node and (not path or draw(st.integers(0, 4))):
        key = draw(st.sampled_from(list(node))) if isinstance(node, dict) else draw(st.integers(0, len(node) - 1))
        path.append((node, key))
        node = node[key]
    if not path:
        return draw(st.sampled_from(OTHER_VALUES))
    parent, key = path[-1]
    if draw(st.integers(0, 2)):
        parent[key] = draw(st.sampled_from(OTHER_VALUES))
    else:
        del parent[key]
    return data


def damaged(draw: st.DrawFn, path: str) -> tuple[bytes | None, str]:
    """The fixture file's new content, None for a file that is gone, and why it is surely wrong."""
    content = (FIXTURES / path).read_bytes()
    kind = draw(st.sampled_from(("tree", "tree", "bytes", "other", "gone")))
    if kind == "gone":
        return None, "is not there"
    if kind == "other":
        what, other = draw(st.sampled_from(list(OTHER_FILES.items())))
        return other, what
    suffix = Path(path).suffix
    if kind == "tree" and suffix == ".json":
        return json.dumps(damaged_tree(draw, json.loads(content))).encode(), ""
    if kind == "tree" and suffix == ".jsonl":
        lines = content.splitlines()
        number = draw(st.integers(0, len(lines) - 1))
        lines[number] = json.dumps(damaged_tree(draw, json.loads(lines[number]))).encode()
        return b"\n".join(lines) + b"\n", ""
    if kind == "tree" and suffix == ".yaml":
        data = damaged_tree(draw, yaml.safe_load(content))
        return (dump_yaml(data) if isinstance(data, dict) else json.dumps(data)).encode(errors="replace"), ""
    return damaged_bytes(draw, content), ""


@st.composite
def students(draw: st.DrawFn) -> Case:
    """`kava infer` of a student with one damaged file."""
    name = draw(
        st.sampled_from(
            (
                "config.json",
                "kava.json",
                "recipe.yaml",
                "tokenizer.json",
                "tokenizer_config.json",
                "trained.safetensors",
            )
        )
    )
    content, wrong = damaged(draw, f"latent_student/{name}")
    assume(b'"num_hidden_layers": 1000' not in (content or b""))  # they would be built, one after the other
    words = (
        "infer",
        "--checkpoint",
        "latent_student",
        "--device",
        "cpu",
        "--max_new_tokens",
        "2",
        "--questions",
        "1+1?",
    )
    files = {f"latent_student/{name}": content}
    return Case(words, files, ("latent_student", "base"), wrong and f"{name} {wrong}")


RESULT_READERS: dict[str, tuple[str, ...]] = {
    "aggregate": ("aggregate", "--seed_dirs", RUN, "results/E1_baseline/seed_2"),
    "analyze": ("analyze", "--output_base", "results"),
    "format": ("format", "--input_dir", "results"),
    "rescore": ("rescore", f"{RUN}/predictions_chains.jsonl"),
    "show": ("show", RUN),
    "runs": ("runs", "results"),
    "evaluate": ("evaluate", "--checkpoint", "latent_student", "--limit", "2", "--missing", "--output", RUN),
}
READ_BY = {
    "results_chains.yaml": ("aggregate", "analyze", "rescore", "show", "runs"),
    "predictions_chains.jsonl": ("rescore", "analyze"),
    "recipe.yaml": ("aggregate", "analyze", "show", "runs"),
    "meta.json": ("aggregate", "analyze", "show", "runs"),
    "log.jsonl": ("aggregate", "analyze", "show", "runs"),
    "data_card.json": ("aggregate", "analyze"),
}
WRITTEN = (
    f"{RUN}/predictions_chains.jsonl",
    f"{RUN}/results_chains.yaml",
    "results/EXPERIMENT_REPORT.txt",
    "results/EXPERIMENT_REPORT.json",
)


@st.composite
def results(draw: st.DrawFn) -> Case:
    """A verb that reads results or logs, with one damaged file of a run."""
    name = draw(st.sampled_from([name for name in READ_BY if (FIXTURES / RUN / name).exists()]))
    verb = draw(st.sampled_from(READ_BY[name]))
    content, _ = damaged(draw, f"{RUN}/{name}")
    return Case(
        RESULT_READERS[verb], {f"{RUN}/{name}": content}, ("results",), writes=WRITTEN, checks=verb == "aggregate"
    )


@st.composite
def aggregated(draw: st.DrawFn) -> Case:
    """`kava format` of damaged aggregated results."""
    path = draw(
        st.sampled_from(
            sorted(path.relative_to(FIXTURES).as_posix() for path in FIXTURES.glob("results/*/aggregated*"))
        )
    )
    content, _ = damaged(draw, path)
    return Case(RESULT_READERS["format"], {path: content}, ("results",), writes=("paper_tables.tex", "results.csv"))


JOBS = {
    "name": "train",
    "scheduler": "local",
    "folder": "run",
    "command": ["kava", "submit"],
    "submitted": "2026-01-01T00:00:00+00:00",
    "jobs": [
        {
            "label": "train",
            "id": "1",
            "tasks": None,
            "after": [],
            "script": "run/.jobs/train/train.sh",
            "status": ["run/.jobs/train/status-train.json"],
        }
    ],
}


@st.composite
def job_records(draw: st.DrawFn) -> Case:
    """`kava jobs` of a damaged record."""
    data = damaged_tree(draw, json.loads(json.dumps(JOBS)))
    content = json.dumps(data).encode()
    if not draw(st.integers(0, 3)):
        content = draw(st.sampled_from(list(OTHER_FILES.values())))
    return Case(("jobs", "run", "--offline"), {"run/.jobs/train/jobs.json": content})
