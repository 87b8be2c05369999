"""Aggregated results as LaTeX tables (booktabs) and CSV, and next to the paper's numbers."""

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from kava.config.typed_file import Count, Finite, Record, read_dict
from kava.console import visible
from kava.errors import RunError
from kava.lab.analysis.paper import SET, SOURCE, TABLE, Published
from kava.text_table import percent

AGGREGATED = "aggregated_results"
CSV_HEADER = "Model Dataset Eval_Dataset Accuracy_Mean Accuracy_Std Forward_Passes_Mean Forward_Passes_Std Num_Seeds"
LATEX_HEAD = "% written by kava format; needs \\usepackage{booktabs}; hash of what follows: "
CSV_NUMBERS = ("accuracy_mean", "accuracy_std", "forward_passes_mean", "forward_passes_std")
FIRST = ("gsm8k", "gsm8k-hard", "svamp")
TITLES = {
    "gsm8k": "GSM8k", "gsm8k-hard": "GSM8k-Hard", "svamp": "SVAMP", "whynlp/gsm8k-aug": "GSM8k-AUG",
    "whynlp/gsm8k-aug-nl": "GSM8k-AUG-NL", "meta-llama/Llama-3.2-1B-Instruct": "LLaMA-3.2-1B",
    "meta-llama/Llama-3.2-3B-Instruct": "LLaMA-3.2-3B", "Qwen/Qwen2.5-0.5B-Instruct": "Qwen2.5-0.5B",
}  # fmt: skip
STYLES = {
    "paren": ("{} ({})", "mean (sample standard deviation)"),
    "pm": (r"${} \pm {}$", r"mean $\pm$ sample standard deviation"),
}
_SPECIAL = {
    **{c: "\\" + c for c in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
}


class AggregatedSet(Record):
    """The numbers of one set over the seeds; null where there is none."""

    accuracy_mean: Annotated[Finite, Field(ge=0, le=1)] | None = None
    accuracy_std: Finite | None = None
    forward_passes_mean: Finite | None = None
    forward_passes_std: Finite | None = None
    num_seeds: Count = 0


class AggregatedBody(Record):
    """What aggregated_results.json has under a config's name."""

    num_seeds: Count
    datasets: dict[str, AggregatedSet]
    model: str | None = None
    model_name: str | None = None
    dataset: str | None = None
    rehearsal: bool = False


class AggregatedRecipe(NamedTuple):
    """The config's name and what `kava aggregate` wrote under it, in which folder."""

    config: str
    body: dict[str, Any]
    folder: Path
    variant: str = ""  # what tells it from other recipes of the same model and data

    @property
    def files(self) -> list[Path]:
        """The files that it may have been read from."""
        return [self.folder / f"{AGGREGATED}.{ending}" for ending in ("json", "yaml")]

    @property
    def model(self) -> str:
        name = self.body.get("model") or ""
        title = TITLES.get(name) or self.body.get("model_name") or name or self.config
        return f"{title} ({self.variant})" if self.variant else str(title)

    @property
    def rehearsal(self) -> bool:
        return bool(self.body.get("rehearsal"))

    @property
    def dataset(self) -> str:
        name = self.body.get("dataset") or ""
        return TITLES.get(name, name or "-")

    @property
    def published(self) -> Published | None:
        return TABLE.get((self.body.get("model") or "", self.body.get("dataset") or ""))

    def number(self, set_name: str, name: str) -> float | None:
        """One number on one set; None without a result."""
        value: float | None = self.body["datasets"].get(set_name, {}).get(name)
        return value


def find_aggregated(input_dir: Path) -> tuple[list[AggregatedRecipe], list[str]]:
    """Every aggregated_results.json (or .yaml) at or below a folder, sorted by path; and a line about each left out.

    Rehearsals are left out, unless there is nothing else."""
    if not input_dir.is_dir():
        raise RunError(f"no such folder: {input_dir}", "give the folder that holds the runs")
    folders = {path.parent for ending in ("json", "yaml") for path in input_dir.rglob(f"{AGGREGATED}.{ending}")}
    if not folders:
        raise RunError(f"{input_dir} holds no {AGGREGATED}.json or .yaml", "run kava seeds or kava aggregate first")
    every = [AggregatedRecipe(*item, folder) for folder in sorted(folders) for item in _read(folder).items()]
    rehearsals = [recipe for recipe in every if recipe.rehearsal]
    whole = [recipe for recipe in every if not recipe.rehearsal]
    left_out = [f"{recipe.config} in {recipe.folder} is a rehearsal: left out" for recipe in rehearsals if whole]
    recipes = whole or rehearsals
    return [recipe._replace(variant=_variant(recipe, recipes, input_dir)) for recipe in recipes], left_out


def _variant(recipe: AggregatedRecipe, recipes: Sequence[AggregatedRecipe], input_dir: Path) -> str:
    """What tells a recipe from the others of its model and data: its config's name, and where that is not enough its folder."""
    alike = [other for other in recipes if (other.model, other.dataset) == (recipe.model, recipe.dataset)]
    same_config = [other for other in alike if other.config == recipe.config]
    place = recipe.folder.relative_to(input_dir).as_posix() if len(same_config) > 1 else ""
    parts = [recipe.config if len(alike) > 1 else "", place, "rehearsal" if recipe.rehearsal else ""]
    return ", ".join(filter(None, parts))


def namesakes(recipes: Sequence[AggregatedRecipe]) -> list[str]:
    """The configs' names that several recipes have."""
    names = [recipe.config for recipe in recipes]
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def as_csv(recipes: Sequence[AggregatedRecipe]) -> str:
    """A line per recipe and set; fractions, as in the files; a missing number is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER.split())
    for recipe in recipes:
        for name, entry in recipe.body["datasets"].items():
            cells = ["" if entry.get(key) is None else f"{entry[key]:.6g}" for key in CSV_NUMBERS]
            names = map(no_formula, (recipe.model, recipe.dataset, name))
            writer.writerow([*names, *cells, entry["num_seeds"]])
    return text.getvalue()


def as_latex(recipes: Sequence[AggregatedRecipe], style: str = "paren") -> str:
    """Tables of accuracy and forward passes, and of our and the published numbers where there are any.

    Columns: the guide's three sets first, then the others as they occur; sets without results are left out.
    """
    names: dict[str, None] = dict.fromkeys(name for recipe in recipes for name in recipe.body["datasets"])
    columns = [name for name in FIRST if name in names] + [name for name in names if name not in FIRST]
    head = ["Model", "Dataset", *(latex(TITLES.get(name, name)) for name in columns)]
    over = f"{STYLES[style][1]} over {_seeds(recipes)}."
    parts = []
    for key, scale, label, caption in (
        ("accuracy", 100, "tab:accuracy", rf"Test accuracy (\%), {over} All items count."),
        ("forward_passes", 1, "tab:efficiency",
         rf"Forward passes per question, by the rule $1 + T +$ generated tokens; {over}"),
    ):  # fmt: skip
        body = [[*_names(recipe), *(_cell(recipe, name, key, scale, style) for name in columns)] for recipe in recipes]
        parts.append(_table(head, body, caption, label))
    compared = [[*_names(recipe), *numbers] for recipe, numbers in _beside_the_paper(recipes) if recipe.published]
    if compared:
        head = ["Model", "Dataset", "CoT", "CODI", "PCCoT", "KaVa", "ours", r"$\Delta$"]
        caption = r"GSM8k test accuracy (\%): published values, ours, and ours $-$ KaVa ($\Delta$). Published: "
        body = [[*cells[:-1], cells[-1] if cells[-1] == "-" else f"${cells[-1]}$"] for cells in compared]
        parts.append(_table(head, body, f"{caption}{latex(SOURCE)}.", "tab:paper"))
    tables = "\n\n".join(parts) + "\n"
    return f"{LATEX_HEAD}{_digest(tables)}\n\n{tables}"


def is_latex_of_ours(path: Path) -> bool:
    """Whether `kava format` wrote this file and nobody changed it since: its first line has the hash of the rest."""
    head, _, tables = path.read_text(encoding="utf-8").partition("\n\n")
    return head == LATEX_HEAD + _digest(tables)


def _digest(tables: str) -> str:
    return hashlib.sha256(tables.encode()).hexdigest()[:16]


def as_text(recipes: Sequence[AggregatedRecipe]) -> list[list[str]]:
    """Rows for the console: ours, the paper's, the difference, for recipes with a GSM8k result or a published number."""
    return [[r.model, r.dataset, ours, kava, gap] for r, (*_, kava, ours, gap) in _beside_the_paper(recipes)]


def latex(text: str) -> str:
    """Plain text on one line with LaTeX's special characters escaped."""
    return "".join(_SPECIAL.get(c, c) for c in visible(" ".join(text.split())))


def no_formula(text: str) -> str:
    """A text on one line of a cell of CSV, behind a quote where a spreadsheet would compute it (OWASP, CSV injection)."""
    line = visible(" ".join(text.split()))
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) and line != "-" else line


def _beside_the_paper(recipes: Sequence[AggregatedRecipe]) -> Iterator[tuple[AggregatedRecipe, list[str]]]:
    """Percent on GSM8k, a dash where missing: the paper's CoT, CODI, PCCoT and KaVa, ours, ours - KaVa."""
    for recipe in recipes:
        mean, published = recipe.number(SET, "accuracy_mean"), recipe.published
        if SET in recipe.body["datasets"] or published:
            paper = ["-"] * 4 if published is None else [f"{value:.1f}" for value in published]
            gap = "-" if mean is None or published is None else f"{100 * mean - published.kava:+.1f}"
            yield recipe, [*paper, percent(mean), gap]


def _table(head: Sequence[str], body: Sequence[Sequence[str]], caption: str, label: str) -> str:
    lines = [r"\begin{table}[t]", r"\centering", rf"\caption{{{caption}}}", rf"\label{{{label}}}"]
    lines += [r"\small", r"\setlength{\tabcolsep}{4pt}"] if len(head) > 6 else []
    lines += [rf"\begin{{tabular}}{{ll{'c' * (len(head) - 2)}}}", r"\toprule", " & ".join(head) + r" \\", r"\midrule"]
    lines += [" & ".join(cells) + r" \\" for cells in body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def _names(recipe: AggregatedRecipe) -> list[str]:
    return [latex(recipe.model), latex(recipe.dataset)]


def _cell(recipe: AggregatedRecipe, set_name: str, key: str, scale: float, style: str) -> str:
    """mean (std); the mean alone for a single seed; a dash where there is no result."""
    mean, std = recipe.number(set_name, f"{key}_mean"), recipe.number(set_name, f"{key}_std")
    numbers = [f"{scale * value:.1f}" for value in (mean, std) if value is not None]
    return "-" if mean is None else numbers[0] if std is None else STYLES[style][0].format(*numbers)


def _seeds(recipes: Sequence[AggregatedRecipe]) -> str:
    """The number of seeds in the cells, and the cells that have fewer."""
    counts = sorted({recipe.body["num_seeds"] for recipe in recipes})
    short = [
        f"{' '.join(_names(recipe))} on {latex(TITLES.get(name, name))}: {entry['num_seeds']}"
        for recipe in recipes
        for name, entry in recipe.body["datasets"].items()
        if entry["num_seeds"] < recipe.body["num_seeds"]
    ]
    text = f"{' or '.join(map(str, counts))} seed{'' if counts == [1] else 's'}"
    return text + (f" (fewer for {'; '.join(short)})" if short else "")


def _read(folder: Path) -> dict[str, Any]:
    path = next(path for path in (folder / f"{AGGREGATED}.json", folder / f"{AGGREGATED}.yaml") if path.is_file())
    data = read_dict(path, dict[str, AggregatedBody], "make it again with kava aggregate; accuracies are fractions")
    for body in data.values():
        for entry in body["datasets"].values():
            entry.setdefault("num_seeds", body["num_seeds"])
    return data
