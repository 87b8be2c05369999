"""The analysis as EXPERIMENT_REPORT.txt: ASCII, 118 columns wide, every verdict with the numbers that support it."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from kava.lab.analysis.claim_data import unequal_words
from kava.lab.analysis.claims import CONTROL, WITH_EXPECTED
from kava.lab.analysis.validations import MEANING, NUMBERS, TO_TEACHER, WEIGHT_OF, teachers_in
from kava.text_table import number, percent, table

WIDTH = 118
NO_BREAK = "\0"  # stands for a space within a cell, at which no line is broken
EXPECTED = (
    "the guide's minimum, ideal: effects that it expects, hypotheses read off the 95 % intervals of what decides, without "
    "a correction. reached: all lie above; excluded: one lies below; open: everything else."
)
LOSSES = (
    "Losses are the last logged training values, means over seeds. They belong to objectives that differ, and no "
    "claim compares their size. seeds: with results on the set, of all seeds of this analysis; the others are named above "
    "and enter nothing. sd: the sample's (n - 1), over seeds."
)
JUMPS = (
    "Jumps: mean |d - mean(d)|, d the differences of consecutive logarithms over the later half of the logged "
    "updates, of the student's cross-entropy (CE), which all share, and of the whole loss, whose terms differ. "
    "Spikes: share of logged updates whose gradient norm is above 3 x the run's median."
)
MEASURES = {
    "instability": "jumps of log CE",
    "instability_loss": "jumps of log loss",
    "spread": "spread of accuracy over seeds",
}
Document = dict[str, Any]


def render(document: Document) -> str:
    """The report; characters beyond ASCII in names are written escaped."""
    claims, rows = document["claims"], document["experiments"]
    guide = [claim for claim in claims if claim["source"] == "guide" and claim["name"] != CONTROL]
    control = [claim for claim in claims if claim["name"] == CONTROL]
    ours = [claim for claim in claims if claim["source"] != "guide"]
    sections = {
        "VERDICTS": _verdicts(claims),
        "EXPERIMENTS": _experiments(document),
        "ACCURACY OF EVERY SEED, % [Wilson 95 % interval over items]": _seeds(rows),
        "HELD-OUT LOSSES, means over seeds": _held_out(rows),
        "TEACHERS: held-out numbers of the last validation, means over seeds": _teachers(rows),
        "STABILITY OF TRAINING, means over seeds": _stability(rows),
        "CLAIMS OF THE GUIDE": "\n\n".join(map(_claim, guide)),
        "NEGATIVE CONTROL": "\n\n".join(map(_claim, control)),
        "CLAIMS OF OURS, beside the guide's": "\n\n".join(map(_claim, ours)),
        "HOW TO READ THE WORDS": _rules(document),
        "MADE WITH": _made_with(document),
    }
    parts = [_header(document), *(f"{title}\n{'-' * len(title)}\n{body}" for title, body in sections.items() if body)]
    return ("\n\n".join(parts) + "\n").encode("ascii", "backslashreplace").decode("ascii")


def _header(document: Document) -> str:
    budget, seeds = document["budget"], " ".join(map(str, document["seeds"]))
    data, updates, batch = (budget[key] for key in ("training data (sha256)", "updates", "effective batch size"))
    evaluated = f"{document['dataset']}, {document['items']} items, data {(document['data_sha256'] or '-')[:12]}"
    lines = [
        "EXPERIMENT REPORT",
        "=================",
        f"folder    {document['output_base']}",
        f"trained   config {budget['config'] or '-'}, {'-' if updates is None else updates} updates of "
        f"{'-' if batch is None else batch} examples, training data {str(data)[:12] if data else '-'}",
        f"asked     {evaluated if document['dataset'] else 'nothing: no results_*.yaml of a set; run kava evaluate'}",
        f"seeds     {seeds or '-'}",
    ]
    if document["rehearsal"]:
        lines.insert(
            2, "A REHEARSAL, on a part of the set: every number and verdict below only shows that everything runs."
        )
    if document["unequal"]:
        lines.insert(2, _wrapped(unequal_words(document["unequal"]), "", "  "))
    if left_out := ", ".join(document["left_out"]):
        lines.append(f"left out  {left_out} (no experiment of the suite, or not in --experiments)")
    return "\n".join(lines)


def _experiments(document: Document) -> str:
    header = ["experiment", "status", "seeds", "avg loss", "CE", "KV", "CODI", "accuracy %", "sd", "passes"]
    rows, reasons = [], []
    for row in document["experiments"]:
        counted = f"{len(row['per_seed'])} of {max(len(document['seeds']), len(row['per_seed']))}"
        terms = _numbers(row["terms"], ("loss", "ce", "kv", "codi"))
        numbers = [percent(row["accuracy_mean"]), percent(row["accuracy_std"]), number(row["forward_passes"], 2)]
        rows.append([row["name"], row["status"], counted, *terms, *numbers])
        for reason in dict.fromkeys(row["absent"].values()):
            seeds = [str(seed) for seed, why in row["absent"].items() if why == reason]
            reasons.append(_wrapped(f"{row['name']}, {_seed_list(seeds)}: {reason}", "", "  "))
    return "\n".join([table(rows, header, left=2), *reasons, "", _wrapped(LOSSES)])


def _seeds(rows: Sequence[Document]) -> str:
    if not any(row["per_seed"] for row in rows):
        return ""
    indent = max(len(row["name"]) for row in rows) + 2
    parts = []
    for row in rows:
        cells = [
            f"{'?' if seed['seed'] is None else seed['seed']}: {percent(seed['accuracy'])} "
            f"[{percent(seed['low'])}, {percent(seed['high'])}]"
            for seed in row["per_seed"]
        ]
        cells += [] if row["mode"] == "latent" else [f"(mode {row['mode']})"]
        whole = "   ".join(cell.replace(" ", NO_BREAK) for cell in cells) or "-"
        lines = textwrap.wrap(whole, WIDTH - indent, break_long_words=False)
        parts.append(row["name"].ljust(indent) + f"\n{' ' * indent}".join(lines).replace(NO_BREAK, " "))
    return "\n".join(parts)


def _held_out(rows: Sequence[Document]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row["losses"]))
    cells = [[row["name"], *_numbers(row["losses"], names)] for row in rows]
    return table(cells, ["experiment", *names], left=1) if names else ""


def _teachers(rows: Sequence[Document]) -> str:
    """All members with a validation, if any of them has a mixture of teachers."""
    rows = [row for row in rows if row["held_out"]]
    if not any(teachers_in(row["held_out"]) for row in rows):
        return ""
    names = [name for name in NUMBERS if any(name in row["held_out"] for row in rows)]
    header = ["experiment", "accuracy %", *(NUMBERS[name] for name in names)]
    cells = [[row["name"], percent(row["accuracy_mean"]), *_numbers(row["held_out"], names)] for row in rows]
    members = table(cells, header, left=1)
    each = [
        [row["name"], teacher, *_numbers(row["held_out"], [WEIGHT_OF + teacher, TO_TEACHER + teacher])]
        for row in rows
        for teacher in teachers_in(row["held_out"])
    ]
    teachers = table(each, ["experiment", "teacher", "weight", "KV to it alone"], left=2)
    return "\n\n".join([members, teachers, _wrapped(MEANING)])


def _stability(rows: Sequence[Document]) -> str:
    names = {"jumps_ce": "jumps of log CE", "jumps_loss": "jumps of log loss", "spikes": "spikes %"}
    if all(row["stability"][name] is None for row in rows for name in names):
        return ""
    jumps = [[row["name"], *_numbers(row["stability"], ("jumps_ce", "jumps_loss"))] for row in rows]
    cells = [[*cells, percent(row["stability"]["spikes"])] for cells, row in zip(jumps, rows, strict=True)]
    return f"{table(cells, ['experiment', *names.values()], left=1)}\n\n{_wrapped(JUMPS)}"


def _numbers(values: Mapping[str, float | None], names: Sequence[str]) -> list[str]:
    return [number(values.get(name), 4) for name in names]


def _verdicts(claims: Sequence[Document]) -> str:
    """A line per claim: its word, then the claim."""
    longest = max((len(claim["word"]) for claim in claims), default=0)
    lines = (_wrapped(f"{claim['word']:<{longest}}  {claim['sentence']}", "", " " * (longest + 2)) for claim in claims)
    return "\n".join(lines)


def _claim(claim: Document) -> str:
    verdict = ": ".join(part for part in (claim["word"].upper(), claim["reason"]) if part)
    return "\n".join([claim["sentence"], _wrapped(verdict, "  "), *map(_comparison, claim["comparisons"])])


def _comparison(row: Document) -> str:
    role, rest = "decides " if row["decides"] else "beside  ", " " * 11
    pair = f"  {role} {row['first']} {row['wants']} {row['second']}"
    if row["measure"] == "spread":
        sds = [percent(value) for value in row["spreads"]]
        text = f"{pair}, {MEASURES['spread']}: sd {sds[0]} and {sds[1]} points; Brown-Forsythe p {_p(row['p'])}"
        return _wrapped(text, "  ", rest)
    if not row["seeds"]:
        return _wrapped(f"{pair}: no seed that both have", "  ", rest)
    parts = [_wrapped(f"{pair}{_effect(row)}; {_tests(row)}", "  ", rest)]
    if row["unpaired"]:
        parts.append(_wrapped(f"left out: {_seed_list(row['unpaired'])}, which only one of them has", rest))
    if "mcnemar" in row:
        pairs = ", ".join(f"{s['seed']} {s['only_first']}/{s['only_second']} ({_p(s['p'])})" for s in row["mcnemar"])
        parts.append(_wrapped(f"only first / only second right (McNemar p): {pairs}", rest))
    return "\n".join(parts)


def _effect(row: Document) -> str:
    """The difference and its interval, in points or as a ratio."""
    points = row["measure"] == "accuracy"
    values = (row[name] for name in ("difference", "low", "high"))
    mean, low, high = ("" if v is None else _points(v) if points else f"{math.exp(v):.2f}" for v in values)
    text = f": {mean} points" if points else f", {MEASURES[row['measure']]}: ratio {mean}"
    return text + (f", 95 % [{low}, {high}]" if low else "")


def _tests(row: Document) -> str:
    parts = [f"p {_p(row['p'])}"]
    parts += [f"Holm {_p(row['p_holm'])}"] if row["decides"] else []
    parts += [f"sign flips {_p(row['p_flip'])}", f"d_z {number(row['d_z'], 2)}"]
    count = f"{len(row['seeds'])} seed{'s' if len(row['seeds']) > 1 else ''}"
    if "bootstrap" in row:
        low, high = row["bootstrap"]
        parts += [f"h {row['cohens_h']:.2f}", f"bootstrap over items alone [{_points(low)}, {_points(high)}]"]
        count += f" x {row['items']} items"
    return "; ".join([*parts, count])


def _rules(document: Document) -> str:
    margin, ratio = 100 * document["margin"], 100 * document["ratio_margin"]
    paragraphs = (
        f"supported: every comparison that decides has the claimed sign and a two-sided p below {document['alpha']:g} after "
        "Holm's correction over all deciding comparisons of this analysis that could be tested "
        f"({document['corrected_over']}); at least 3 shared seeds.",
        "not supported: one of them is significant with the other sign, or its 95 % interval excludes an effect as large "
        f"as the margin: {margin:g} points of accuracy (the guide's tolerance is 2), or {ratio:g} % for jumps.",
        "inconclusive: everything else. It does not say that there is no effect.",
        *((EXPECTED,) if any(claim["name"] in WITH_EXPECTED for claim in document["claims"]) else ()),
        "The unit of a claim about training is the seed: differences are first - second for each seed number that both "
        "have, never by position. Accuracy: error clustered by seed and by item (V_seed + V_item - V_cell, never below "
        "the larger of the first two), t with seeds - 1 degrees of freedom. Jumps: paired t test of their logarithms. "
        "Beside p: the exact p of flipping the signs of the seeds' differences (with n seeds never below 2 / 2^n), d_z "
        "(mean / sd of these differences), Cohen's h, and what holds for these very runs: the bootstrap over items "
        f"({document['resamples']:,} resamples) and McNemar's exact test per seed. What stands beside is not corrected and "
        "decides nothing.",
    )
    return "\n".join(_wrapped(paragraph, "", "  ") for paragraph in paragraphs)


def _made_with(document: Document) -> str:
    made = document["versions"]
    analysis = {name: [value] for name, value in made["analysis"].items() if name in ("kava", "python", "numpy")}
    packages = {"training": made["training"], "evaluation": made["evaluation"], "analysis": analysis}
    lines = {
        label: [f"{name} {' and '.join(values)}" for name, values in of_stage.items() if values]
        for label, of_stage in packages.items()
    }
    lines["revision"] = [revision if "+" in revision else revision[:12] for revision in made["training_git"]]
    text = "\n".join(_wrapped(f"{label:<11}{', '.join(words) or '-'}", "", " " * 11) for label, words in lines.items())
    return f"{text}\n{'device':<11}{', '.join(made['training_device']) or '-'}"


def _wrapped(text: str, first: str = "", rest: str | None = None) -> str:
    """A paragraph of lines no wider than the page; `first` and `rest` are their indents."""
    return textwrap.fill(
        text.strip(), WIDTH, initial_indent=first, subsequent_indent=first if rest is None else rest,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _seed_list(seeds: Sequence[Any]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    if value < 1e-4:
        return f"{value:.0e}" if value > 0 else "< 1e-300"
    return f"{value:.{4 if value < 0.01 else 3 if value < 0.1 else 2}f}"  # 0.047 is not 0.05
