"""Aggregated results as LaTeX tables (booktabs) and CSV, and the paper's numbers beside them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kava.errors import DataError, RunError
from kava.lab.analysis.paper import SET, SOURCE, TABLE

AGGREGATED = "aggregated_results"
CSV_HEADER = (
    "Model", "Dataset", "Eval_Dataset", "Accuracy_Mean", "Accuracy_Std", "Forward_Passes_Mean", "Forward_Passes_Std",
    "Num_Seeds",
)  # fmt: skip
FIRST = ("gsm8k", "gsm8k-hard", "svamp")
TITLES = {
    "gsm8k": "GSM8k", "gsm8k-hard": "GSM8k-Hard", "svamp": "SVAMP", "whynlp/gsm8k-aug": "GSM8k-AUG",
    "whynlp/gsm8k-aug-nl": "GSM8k-AUG-NL", "meta-llama/Llama-3.2-1B-Instruct": "LLaMA-3.2-1B",
    "meta-llama/Llama-3.2-3B-Instruct": "LLaMA-3.2-3B", "Qwen/Qwen2.5-0.5B-Instruct": "Qwen2.5-0.5B",
}  # fmt: skip
STYLES = {"paren": "{} ({})", "pm": r"${} \pm {}$"}
_SPECIAL = {
    **{c: "\\" + c for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}


class AggregatedRecipe(NamedTuple):
    """One aggregated recipe: the config's name and what `kava aggregate` wrote under it."""

    config: str
    body: dict[str, Any]

    @property
    def model(self) -> str:
        name = self.body.get("model") or ""
        return TITLES.get(name) or self.body.get("model_name") or name or self.config

    @property
    def dataset(self) -> str:
        name = self.body.get("dataset") or ""
        return TITLES.get(name, name or "-")


def find_aggregated(input_dir: Path) -> list[AggregatedRecipe]:
    """Every aggregated_results.json (or .yaml) at or below a folder, each recipe once, in the order of their names."""
    if not input_dir.is_dir():
        raise RunError(f"no such folder: {input_dir}", "give the folder that holds the runs")
    places = {path.parent for ending in ("json", "yaml") for path in input_dir.rglob(f"{AGGREGATED}.{ending}")}
    if not places:
        raise RunError(f"{input_dir} holds no {AGGREGATED}.json or .yaml", "run kava seeds or kava aggregate first")
    rows: dict[str, tuple[AggregatedRecipe, Path]] = {}
    for place in sorted(places):
        for config, body in _read(place).items():
            if config in rows:
                raise DataError(
                    f"{config} is aggregated twice: in {rows[config][1]} and in {place}",
                    "give a folder with one of them",
                )
            rows[config] = (AggregatedRecipe(config, body), place)
    return [row for row, _ in rows.values()]


def sets_of(rows: Sequence[AggregatedRecipe]) -> list[str]:
    """The columns: the guide's three first, then the others as they come; those that nobody has are left out."""
    found = dict.fromkeys(name for row in rows for name in row.body["datasets"])
    return [name for name in FIRST if name in found] + [name for name in found if name not in FIRST]


def as_csv(rows: Sequence[AggregatedRecipe]) -> str:
    """Fractions, as in the files; a missing number is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for row in rows:
        for name, entry in row.body["datasets"].items():
            numbers = [entry.get(key) for key in _NUMBERS]
            cells = ["" if value is None else f"{value:.6g}" for value in numbers]
            writer.writerow([row.model, row.dataset, name, *cells, entry["num_seeds"]])
    return text.getvalue()


_NUMBERS = ("accuracy_mean", "accuracy_std", "forward_passes_mean", "forward_passes_std")


def as_latex(rows: Sequence[AggregatedRecipe], style: str = "paren") -> str:
    """Accuracy, forward passes, and where a published number exists a third table with both side by side."""
    columns = sets_of(rows)
    titles = [latex(TITLES.get(name, name)) for name in columns]
    seeds = _seeds(rows)
    accuracy = [
        [latex(row.model), latex(row.dataset), *[_cell(row, name, "accuracy", 100, style) for name in columns]]
        for row in rows
    ]
    passes = [
        [latex(row.model), latex(row.dataset), *[_cell(row, name, "forward_passes", 1, style) for name in columns]]
        for row in rows
    ]
    head = ["Model", "Dataset", *titles]
    spread = "mean (sample standard deviation)" if style == "paren" else r"mean $\pm$ sample standard deviation"
    parts = [
        "% needs \\usepackage{booktabs}",
        _table(head, accuracy, rf"Test accuracy (\%), {spread} over {seeds}. All items count.", "tab:accuracy"),
        _table(
            head,
            passes,
            rf"Forward passes per question, by the rule $1 + T +$ generated tokens; {spread} over {seeds}.",
            "tab:efficiency",
        ),
    ]
    paper = _beside_the_paper(rows)
    if paper:
        parts.append(paper)
    return "\n\n".join(parts) + "\n"


def as_text(rows: Sequence[AggregatedRecipe]) -> list[list[str]]:
    """Ours beside the paper's, for the console: a line per recipe with a GSM8k result or a published number."""
    found = []
    for row in rows:
        ours, published = row.body["datasets"].get(SET), TABLE.get(_key(row))
        if ours or published:
            mean = ours["accuracy_mean"] if ours else None
            cells = [_percent(mean), "-" if published is None else f"{published.kava:.1f}"]
            gap = "-" if mean is None or published is None else f"{100 * mean - published.kava:+.1f}"
            found.append([row.model, row.dataset, *cells, gap])
    return found


def latex(text: str) -> str:
    """Plain text with LaTeX's special characters escaped."""
    return "".join(_SPECIAL.get(c, c) for c in text)


def _beside_the_paper(rows: Sequence[AggregatedRecipe]) -> str | None:
    known = [row for row in rows if _key(row) in TABLE]
    if not known:
        return None
    body = []
    for row in known:
        published, ours = TABLE[_key(row)], row.body["datasets"].get(SET)
        mean = ours["accuracy_mean"] if ours else None
        gap = "-" if mean is None else f"${100 * mean - published.kava:+.1f}$"
        paper = [f"{value:.1f}" for value in (published.full_cot, published.codi, published.pccot, published.kava)]
        body.append([latex(row.model), latex(row.dataset), *paper, _percent(mean), gap])
    head = ["Model", "Dataset", "CoT", "CODI", "PCCoT", "KaVa", "ours", r"$\Delta$"]
    caption = (
        rf"GSM8k test accuracy (\%): published values, ours, and ours $-$ KaVa ($\Delta$). Published: {latex(SOURCE)}."
    )
    return _table(head, body, caption, "tab:paper")


def _table(head: Sequence[str], body: Sequence[Sequence[str]], caption: str, label: str) -> str:
    lines = [" & ".join(cells) + r" \\" for cells in body]
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{{label}}}",
            *([r"\small", r"\setlength{\tabcolsep}{4pt}"] if len(head) > 6 else []),
            rf"\begin{{tabular}}{{ll{'c' * (len(head) - 2)}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _cell(row: AggregatedRecipe, name: str, what: str, scale: float, style: str) -> str:
    """mean (std); the mean alone where one seed has no spread; a dash where there is nothing."""
    entry = row.body["datasets"].get(name, {})
    mean, std = entry.get(f"{what}_mean"), entry.get(f"{what}_std")
    if mean is None:
        return "-"
    if std is None:
        return f"{scale * mean:.1f}"
    return STYLES[style].format(f"{scale * mean:.1f}", f"{scale * std:.1f}")


def _seeds(rows: Sequence[AggregatedRecipe]) -> str:
    """The number of seeds behind the cells, and which cells have fewer."""
    counts = sorted({row.body["num_seeds"] for row in rows})
    short = [
        f"{latex(row.model)} {latex(row.dataset)} on {latex(TITLES.get(name, name))}: {entry['num_seeds']}"
        for row in rows
        for name, entry in row.body["datasets"].items()
        if entry["num_seeds"] < row.body["num_seeds"]
    ]
    text = f"{' or '.join(map(str, counts))} seed{'' if counts == [1] else 's'}"
    return text + (f" (fewer for {'; '.join(short)})" if short else "")


def _key(row: AggregatedRecipe) -> tuple[str, str]:
    return row.body.get("model") or "", row.body.get("dataset") or ""


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _read(place: Path) -> dict[str, Any]:
    from kava.config.text import read_file

    path = next(path for path in (place / f"{AGGREGATED}.json", place / f"{AGGREGATED}.yaml") if path.is_file())
    data = read_file(path, str(path))
    for config, body in data.items():
        sets = body.get("datasets") if isinstance(body, dict) else None
        if not isinstance(sets, dict) or "num_seeds" not in body or not all(isinstance(e, dict) for e in sets.values()):
            raise DataError(f"{path}: {config} has no num_seeds and datasets", "make it again with kava aggregate")
        for name, entry in sets.items():
            entry.setdefault("num_seeds", body["num_seeds"])
            value = entry.get("accuracy_mean")
            if value is not None and not 0 <= value <= 1:
                raise DataError(f"{path}: accuracy_mean of {name} is {value}, not a fraction", "store fractions")
    return data
