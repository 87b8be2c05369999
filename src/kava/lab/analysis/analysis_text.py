"""The analysis as EXPERIMENT_REPORT.txt: ASCII, one screen wide, every word with the numbers it rests on."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from kava.lab.analysis.claims import CONTROL, WITH_EXPECTED
from kava.lab.analysis.validations import MEANING, NUMBERS, TO_TEACHER, WEIGHT_OF, teachers_in

WIDTH = 118
NO_BREAK = "\0"  # a space at which no line ends
EXPECTED = (
    "the guide's minimum, ideal: effects that it expects, hypotheses read off the 95 % intervals of what decides, without "
    "a correction. reached: all lie above; excluded: one lies below; open: everything else."
)
MEASURES = {
    "instability": "jumps of log CE",
    "instability_loss": "jumps of log loss",
    "spread": "spread of accuracy over seeds",
}
Document = dict[str, Any]


def render(found: Document) -> str:
    """The report; characters beyond ASCII in names are written escaped."""
    guide = [claim for claim in found["claims"] if claim["source"] == "guide" and claim["name"] != CONTROL]
    control = [claim for claim in found["claims"] if claim["name"] == CONTROL]
    ours = [claim for claim in found["claims"] if claim["source"] != "guide"]
    parts = [
        _header(found),
        _section("EXPERIMENTS", _experiments(found)),
        _section("ACCURACY OF EVERY SEED, % [Wilson 95 % interval over items]", _seeds(found)),
        _section("HELD-OUT LOSSES, means over seeds", _held_out(found)),
        _section("TEACHERS: held-out numbers of the last validation, means over seeds", _teachers(found)),
        _section("STABILITY OF TRAINING, means over seeds", _stability(found)),
        _section("CLAIMS OF THE GUIDE", _claims(guide)),
        _section("NEGATIVE CONTROL", _claims(control)),
        _section("CLAIMS OF OURS, beside the guide's", _claims(ours)),
        _section("HOW TO READ THE WORDS", _rules(found)),
        _section("MADE WITH", _made_with(found)),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    return text.encode("ascii", "backslashreplace").decode("ascii")


def _header(found: Document) -> str:
    budget = found["budget"]
    data, batch = budget["training data (sha256)"], budget["effective batch size"]
    trained = [
        f"config {budget['config'] or '-'}",
        f"{_or_dash(budget['updates'])} updates of {_or_dash(batch)} examples",
    ]
    trained.append(f"training data {str(data)[:12] if data else '-'}")
    asked = f"{found['dataset']}, {found['items']} items, data {(found['data_sha256'] or '-')[:12]}"
    lines = [
        "EXPERIMENT REPORT",
        "=================",
        f"folder    {found['output_base']}",
        f"trained   {', '.join(trained)}",
        f"asked     {asked if found['dataset'] else 'nothing: no results_*.yaml of a set; run kava evaluate'}",
        f"seeds     {' '.join(map(str, found['seeds'])) or '-'}",
    ]
    if found["left_out"]:
        lines.append(f"left out  {', '.join(found['left_out'])} (no experiment of the suite, or not in --experiments)")
    return "\n".join(lines)


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, "-" * len(title), *lines]) if lines else ""


def _experiments(found: Document) -> list[str]:
    head = ["experiment", "status", "seeds", "avg loss", "CE", "KV", "CODI", "accuracy %", "sd", "passes"]
    rows = []
    for row in found["experiments"]:
        terms = [_number(row["terms"][name], 4) for name in ("loss", "ce", "kv", "codi")]
        numbers = [_percent(row["accuracy_mean"]), _percent(row["accuracy_std"]), _number(row["forward_passes"], 2)]
        counted = f"{len(row['per_seed'])} of {max(len(found['seeds']), len(row['per_seed']))}"
        rows.append([row["name"], row["status"], counted, *terms, *numbers])
    lines = _table([head, *rows])
    for row in found["experiments"]:
        for reason in dict.fromkeys(row["absent"].values()):
            seeds = [str(seed) for seed, why in row["absent"].items() if why == reason]
            lines += _wrapped(
                f"{row['name']}, seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}: {reason}", "", "  "
            )
    about = (
        "Losses are the last logged training values, means over seeds. They belong to objectives that differ, and no "
        "claim compares their size. seeds: with results on the set, of all seeds of this analysis; the others are named above "
        "and enter nothing. sd: the sample's (n - 1), over seeds."
    )
    return [*lines, "", *_wrapped(about)]


def _seeds(found: Document) -> list[str]:
    lines = []
    width = max((len(row["name"]) for row in found["experiments"]), default=0)
    for row in found["experiments"]:
        cells = [
            f"{'?' if one['seed'] is None else one['seed']}: {_percent(one['accuracy'])} "
            f"[{_percent(one['low'])}, {_percent(one['high'])}]"
            for one in row["per_seed"]
        ]
        cells += [] if row["mode"] == "latent" else [f"(mode {row['mode']})"]
        whole = "   ".join(cell.replace(" ", NO_BREAK) for cell in cells) or "-"
        for i, line in enumerate(textwrap.wrap(whole, WIDTH - width - 2, break_long_words=False)):
            lines.append(("" if i else row["name"]).ljust(width + 2) + line.replace(NO_BREAK, " "))
    return lines if any(row["per_seed"] for row in found["experiments"]) else []


def _held_out(found: Document) -> list[str]:
    names = list(dict.fromkeys(name for row in found["experiments"] for name in row["losses"]))
    if not names:
        return []
    rows = [[row["name"], *[_number(row["losses"].get(name), 4) for name in names]] for row in found["experiments"]]
    return _table([["experiment", *names], *rows], left=1)


def _teachers(found: Document) -> list[str]:
    """Everyone with a validation, if any of them has a mixture of teachers."""
    rows = [row for row in found["experiments"] if row["held_out"]]
    if not any(teachers_in(row["held_out"]) for row in rows):
        return []
    names = [name for name in NUMBERS if any(name in row["held_out"] for row in rows)]
    head = ["experiment", "accuracy %", *(NUMBERS[name] for name in names)]
    lines = _table([head, *([r["name"], _percent(r["accuracy_mean"]), *_numbers(r, names)] for r in rows)], left=1)
    each = [
        [row["name"], teacher, *_numbers(row, [WEIGHT_OF + teacher, TO_TEACHER + teacher])]
        for row in rows
        for teacher in teachers_in(row["held_out"])
    ]
    beside = ["", *_table([["experiment", "teacher", "weight", "KV to it alone"], *each])] if each else []
    return [*lines, *beside, "", *_wrapped(MEANING)]


def _numbers(row: Document, names: Sequence[str]) -> list[str]:
    return [_number(row["held_out"].get(name), 4) for name in names]


def _stability(found: Document) -> list[str]:
    rows = []
    for row in found["experiments"]:
        jumps = [_number(row["stability"][name], 4) for name in ("jumps_ce", "jumps_loss")]
        rows.append([row["name"], *jumps, _percent(row["stability"]["spikes"])])
    if all(cell == "-" for row in rows for cell in row[1:]):
        return []
    about = (
        "Jumps: mean |d - mean(d)|, d the differences of consecutive logarithms over the later half of the logged "
        "updates, of the student's cross-entropy (CE), which all share, and of the whole loss, whose terms differ. "
        "Spikes: share of logged updates whose gradient norm is above 3 x the run's median."
    )
    lines = _table([["experiment", "jumps of log CE", "jumps of log loss", "spikes %"], *rows], left=1)
    return [*lines, "", *_wrapped(about)]


def _claims(claims: Sequence[Document]) -> list[str]:
    lines: list[str] = []
    for claim in claims:
        reason = f": {claim['reason']}" if claim["reason"] else ""
        lines += [*([""] if lines else []), claim["sentence"], *_wrapped(f"{claim['word'].upper()}{reason}", "  ")]
        lines += [line for one in claim["comparisons"] for line in _comparison(one)]
    return lines


def _comparison(one: Document) -> list[str]:
    role = "decides " if one["decides"] else "beside  "
    pair = f"  {role} {one['first']} {one['wants']} {one['second']}"
    if one["measure"] == "spread":
        sds = [_percent(value) for value in one["spreads"]]
        text = f"{pair}, {MEASURES['spread']}: sd {sds[0]} and {sds[1]} points; Brown-Forsythe p {_p(one['p'])}"
        return _wrapped(text, "  ", " " * 11)
    if not one["seeds"]:
        return _wrapped(f"{pair}: no seed that both have", "  ", " " * 11)
    lines = _wrapped(f"{pair}{_effect(one)}; {_tests(one)}", "  ", " " * 11)
    if one["unpaired"]:
        left = f"left out: seed{'s' if len(one['unpaired']) > 1 else ''} {', '.join(map(str, one['unpaired']))}, "
        lines += _wrapped(f"{left}which only one of them has", " " * 11)
    if "mcnemar" in one:
        pairs = [
            f"{pair['seed']} {pair['only_first']}/{pair['only_second']} ({_p(pair['p'])})" for pair in one["mcnemar"]
        ]
        lines += _wrapped(f"only first / only second right (McNemar p): {', '.join(pairs)}", " " * 11)
    return lines


def _effect(one: Document) -> str:
    """The difference and its interval, in points or as a ratio."""
    if one["measure"] == "accuracy":
        text = f": {_points(one['difference'])} points"
        return text + ("" if one["low"] is None else f", 95 % [{_points(one['low'])}, {_points(one['high'])}]")
    text = f", {MEASURES[one['measure']]}: ratio {math.exp(one['difference']):.2f}"
    return text + ("" if one["low"] is None else f", 95 % [{math.exp(one['low']):.2f}, {math.exp(one['high']):.2f}]")


def _tests(one: Document) -> str:
    parts = [f"p {_p(one['p'])}"]
    parts += [f"Holm {_p(one['p_holm'])}"] if one["decides"] else []
    parts += [f"sign flips {_p(one['p_flip'])}", f"d_z {_number(one['d_z'], 2)}"]
    count = f"{len(one['seeds'])} seed{'s' if len(one['seeds']) > 1 else ''}"
    if "bootstrap" in one:
        low, high = one["bootstrap"]
        parts += [f"h {one['cohens_h']:.2f}", f"bootstrap over items alone [{_points(low)}, {_points(high)}]"]
        count += f" x {one['items']} items"
    return "; ".join([*parts, count])


def _rules(found: Document) -> list[str]:
    margin, ratio = 100 * found["margin"], 100 * found["ratio_margin"]
    paragraphs = (
        f"supported: every comparison that decides has the claimed sign and a two-sided p below {found['alpha']:g} after "
        "Holm's correction over all deciding comparisons of this analysis that could be tested "
        f"({found['corrected_over']}); at least 3 shared seeds.",
        "not supported: one of them is significant with the other sign, or its 95 % interval excludes an effect as large "
        f"as the margin: {margin:g} points of accuracy (the guide's tolerance is 2), or {ratio:g} % for jumps.",
        "inconclusive: everything else. It does not say that there is no effect.",
        *((EXPECTED,) if any(claim["name"] in WITH_EXPECTED for claim in found["claims"]) else ()),
        "The unit of a claim about training is the seed: differences are first - second for each seed number that both "
        "have, never by position. Accuracy: error clustered by seed and by item (V_seed + V_item - V_cell, never below "
        "the larger of the first two), t with seeds - 1 degrees of freedom. Jumps: paired t test of their logarithms. "
        "Beside p: the exact p of flipping the signs of the seeds' differences (with n seeds never below 2 / 2^n), d_z "
        "(mean / sd of these differences), Cohen's h, and what holds for these very runs: the bootstrap over items "
        f"({found['resamples']:,} resamples) and McNemar's exact test per seed. What stands beside is not corrected and "
        "decides nothing.",
    )
    return [line for paragraph in paragraphs for line in _wrapped(paragraph, "", "  ")]


def _made_with(found: Document) -> list[str]:
    made = found["versions"]
    analysis = {name: [value] for name, value in made["analysis"].items() if name in ("kava", "python", "numpy")}
    lines = []
    for label, versions in (("training", made["training"]), ("evaluation", made["evaluation"]), ("analysis", analysis)):
        shown = [f"{name} {' and '.join(values)}" for name, values in versions.items() if values]
        lines += _wrapped(f"{label:<11}{', '.join(shown) or '-'}", "", " " * 11)
    revisions = [revision if "+" in revision else revision[:12] for revision in made["training_git"]]
    lines += _wrapped(f"{'revision':<11}{', '.join(revisions) or '-'}", "", " " * 11)
    return [*lines, f"{'device':<11}{', '.join(made['training_device']) or '-'}"]


def _table(rows: Sequence[Sequence[str]], left: int = 2) -> list[str]:
    """Columns, the first `left` of them flush left, with a rule under the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [lines[0].rstrip(), "-" * max(map(len, lines)), *[line.rstrip() for line in lines[1:]]]


def _wrapped(text: str, first: str = "", other: str | None = None) -> list[str]:
    other = first if other is None else other
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(text.strip(), WIDTH, initial_indent=first, subsequent_indent=other, **options)  # type: ignore[arg-type]


def _or_dash(value: Any) -> str:
    return "-" if value is None else str(value)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    if value < 1e-4:
        return f"{value:.0e}" if value > 0 else "< 1e-300"
    return f"{value:.{4 if value < 0.01 else 3 if value < 0.1 else 2}f}"  # 0.047 is not 0.05
