"""Runs with several teachers: held-out distances, what each teacher gave, weights, losses by layer, tokens and layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from kava.lab.analysis.mixture_logs import (
    PARTS,
    LayerLoss,
    LogsByMember,
    counted_runs,
    load_mixture_logs,
    teacher_specs,
)
from kava.lab.analysis.stats import spread
from kava.lab.analysis.study import Group, Look, Study, StudyMember, value
from kava.lab.analysis.validations import MEANING, NUMBERS, TO_TEACHER, WEIGHT_OF, held_out_numbers, teachers_in
from kava.lab.page.charts import Grid, Lines, curves, share_scale, short
from kava.lab.page.figures import Plot
from kava.lab.page.heat import Panels, Rows, Value, heat, name_ticks, scale_of, step_ticks, thinned_columns
from kava.lab.page.markup import NONE, Html, Row, listed, mean_sd, number, paragraph, percent, seed_name, table, tag
from kava.lab.page.sections.alignment import alignment
from kava.lab.page.sections.routing import HEAD, by_figure, looks_of, routing
from kava.lab.page.sections.section import Section
from kava.lab.page.sections.training import series, thinned

TARGET = StudyMember("what they give together", "", "", "kv", (), Look(5, "*", "-"))
CONSTANT = StudyMember("a constant instead of the student", "", "", "kv", (), Look(6, "", (0, (1.2, 1.2))))
Numbers = Mapping[str, Mapping[int | None, Mapping[str, float]]]  # member's label -> seed -> held-out numbers


def teachers(study: Study) -> Section | None:
    """None where no run has several teachers."""
    found = load_mixture_logs(study)
    taught = [member for member in study.members if any(teacher_specs(run) for run in member.runs)]
    if not found and not taught:
        return None
    numbers = _numbers(study)
    looks = looks_of(found, [name for seeds in numbers.values() for one in seeds.values() for name in teachers_in(one)])
    parts: dict[str, Sequence[Plot | Html]] = {
        "Held-out distances": [*_table(study, numbers), *_distances(study, numbers, looks)],
        "Each teacher": _each_teacher(taught, found, numbers),
        "Weights of the teachers": [*_alarms(found), *routing(found, looks)],
        "Losses by layer": _layer_losses(found),
        "Tokens and layers": alignment(found),
    }
    shown = [part for title, inside in parts.items() if inside for part in (tag("h3", title), *inside)]
    return Section("teachers", "The teachers", tuple(shown)) if shown else None


def _numbers(study: Study) -> Numbers:
    """Every member whose validations say anything: those without teachers stand beside the others."""
    found = {}
    for member in study.members:
        logs = {run.seed: held_out_numbers(study.logs[member.label][run.seed]) for run in counted_runs(member)}
        found[member.label] = {seed: numbers for seed, numbers in logs.items() if numbers}
    return {label: seeds for label, seeds in found.items() if seeds}


# --- tables -------------------------------------------------------------------------------------------------------


def _table(study: Study, numbers: Numbers) -> list[Html]:
    names = [name for name in NUMBERS if any(name in one for seeds in numbers.values() for one in seeds.values())]
    if "kv" not in names:
        return []
    first = study.sets[0] if study.sets else None
    rows: list[Row] = []
    for member in study.members:
        seeds = numbers.get(member.label, {})
        if seeds:
            score = study.score(member, first) if first else None
            accuracy = [mean_sd(score.mean, score.sd) if score else NONE] if first else []
            rows.append((member.label, len(seeds), *accuracy, *(_cell(seeds, name) for name in names)))
    header = ("member", "seeds", *([f"accuracy on {first}, %"] if first else []), *(NUMBERS[name] for name in names))
    about = paragraph(
        "At the last validation, on problems held out from training; means over seeds (sample standard deviation).",
        MEANING,
        class_="note",
    )
    return [table(header, rows, "Held-out numbers of members with teachers"), about]


def _cell(seeds: Mapping[int | None, Mapping[str, float]], name: str) -> str:
    """Mean (sample sd) over the seeds that have it."""
    values = [one[name] for one in seeds.values() if name in one]
    if not values:
        return NONE
    sd = spread(values)
    return number(fmean(values)) + ("" if sd is None else f" ({number(sd, 2)})")


def _each_teacher(taught: Sequence[StudyMember], found: LogsByMember, numbers: Numbers) -> list[Html]:
    rows: list[Row] = []
    for member in taught:
        entries = next(entries for run in member.runs if (entries := teacher_specs(run)))
        aligned = {one.name: one for mixture in found.get(member.label, {}).values() for one in mixture.alignment or ()}
        seeds = numbers.get(member.label, {})
        for name, entry in entries.items():
            layers, coverage = (aligned[name].num_layers, aligned[name].coverage) if name in aligned else (NONE, None)
            rows.append((
                member.label, name, entry.get("model") or "the student's base", entry.get("prompt") or NONE, layers,
                percent(coverage), _cell(seeds, WEIGHT_OF + name), _cell(seeds, TO_TEACHER + name),
            ))  # fmt: skip
    header = ("member", "teacher", "model", "prompt", "layers", "tokens met, %", "weight", "KV to it alone")
    about = "Tokens met: share of the student's tokens that overlap one of the teacher's. The last two on held-out problems."
    return [table(header, rows, "Each teacher"), paragraph(about, class_="note")] if rows else []


def _alarms(found: LogsByMember) -> list[Html]:
    """A line for every run whose weights went to one teacher, though it could choose."""
    lines = []
    for label, seeds in found.items():
        for seed, one in seeds.items():
            if (
                one.routing is None
                or len(one.routing.teachers) < 2
                or value(one.run.recipe, "mixture.fusion") == "fixed"
            ):
                continue
            weight, name = max(zip(one.routing.weights[-1], one.routing.teachers, strict=True))
            alarm = value(one.run.recipe, "mixture.collapse_alarm")
            if alarm is not None and weight > alarm:
                words = f"{label}, seed {seed_name(seed)}: {percent(weight)} % of the weight is {name}'s"
                lines.append(
                    paragraph(tag("span", "collapsed", class_="warn"), f"{words} (alarm at {percent(alarm)} %).")
                )
    return lines


# --- figures ------------------------------------------------------------------------------------------------------


def _distances(study: Study, numbers: Numbers, looks: Mapping[str, StudyMember]) -> list[Plot]:
    """The distance to the fused target and to each teacher at every validation."""
    labels = [label for label, seeds in numbers.items() if any("kv" in one for one in seeds.values())]
    parts = enumerate(by_figure(labels), 1)
    return [_distance_plot(i, study, {label: numbers[label] for label in part}, looks) for i, part in parts]


def _distance_plot(index: int, study: Study, numbers: Numbers, looks: Mapping[str, StudyMember]) -> Plot:
    lines: dict[str, Lines] = {}
    groups = []
    for label, seeds in numbers.items():
        names = list(dict.fromkeys(name for one in seeds.values() for name in teachers_in(one)))
        keys = {TARGET: "eval_kv", CONSTANT: "eval_kv_mean_predictor"}
        keys |= {looks[name]: f"eval_{TO_TEACHER}{name}" for name in names} if len(names) > 1 else {}
        found = {
            one: {seed_name(s): thinned(series(study.logs[label][s], key)) for s in seeds} for one, key in keys.items()
        }
        shown = [one for one in keys if any(found[one].values())]
        groups.append(Group(short(label, HEAD), tuple(shown)))
        lines[label] = {one.label: found[one] for one in shown}
    grid = Grid(("mean squared distance of keys and values, held out",), groups, height=1.6, xlabel="updates")
    every = [y for one in lines.values() for seeds in one.values() for line in seeds.values() for _, y in line]
    log = scale_of(every).log

    def draw(figure: Any) -> None:
        (row,) = grid.axes(figure)
        for (one, group), label in zip(row, lines, strict=True):
            curves(one, group, lines[label], log)
        share_scale([one for one, _ in row])

    rows: list[Row] = []
    for label, of_member in lines.items():
        for name, by_seed in of_member.items():
            rows += [
                (label, seed, name, len(line), number(line[0][1]), number(min(y for _, y in line)), number(line[-1][1]))
                for seed, line in by_seed.items()
                if line
            ]
    many = max(map(len, numbers.values())) > 1
    return Plot(
        name=f"distances_{index}",
        title="Distance to the teachers over training" + (f", {next(iter(lines))}" if len(lines) == 1 else ""),
        caption="To what the teachers give together, which is what is trained, and to each of them alone."
        + (" Thin lines are seeds, thick ones their mean." if many else ""),
        alt="Lines over updates; first, least and last values in the table below.",
        size=grid.size,
        draw=draw,
        header=("member", "seed", "distance to", "validations", "first", "least", "last"),
        rows=rows,
    )


def _layer_losses(found: LogsByMember) -> list[Plot]:
    """One figure: a row of panels per member (keys, values; or codes), student layers over updates."""
    means: dict[str, dict[str, tuple[Sequence[int], Rows]]] = {}
    names: dict[str, Sequence[Any]] = {}
    for label, seeds in found.items():
        there = [one for one in seeds.values() if one.layer_loss is not None]
        losses = [one.layer_loss for one in there if one.layer_loss is not None]
        if losses and set.intersection(*(set(one.steps) for one in losses)):
            means[label] = {part: _mean_by_layer(losses, part) for part in losses[0].parts}
            names[label] = _layer_names(there[0].run.recipe, len(next(iter(losses[0].parts.values()))[0]))
    if not means:
        return []
    columns = max(map(len, means.values()))
    layers = max(len(rows) for parts in means.values() for _, rows in parts.values())
    panels = Panels(len(means) * columns, columns, height=min(2.2 if len(means) < 3 else 1.1, max(0.7, 0.1 * layers)))

    def draw(figure: Any) -> None:
        axes = panels.axes(figure)
        for i, (label, parts) in enumerate(means.items()):
            row = axes[i * columns : (i + 1) * columns]
            for one in row[len(parts) :]:
                one.set_visible(False)
            for one, (part, (steps, rows)) in zip(row, parts.items(), strict=False):
                shown, cells = thinned_columns(steps, rows)
                scale = scale_of(cell for line in cells for cell in line)
                heat(one, cells, scale)
                step_ticks(one, shown, most=6)
                name_ticks(one.yaxis, names[label], most=int(panels.height / 0.12))
                one.set_title(f"{short(label)}: {PARTS[part]}, {scale.words}", x=0, pad=4)
                one.set_xlabel("updates", labelpad=2)
                one.set_ylabel("student layer", labelpad=2)

    lines: list[Row] = []
    for label, parts in means.items():
        for part, (_, rows) in parts.items():
            for name, row in zip(names[label], rows, strict=True):
                known = [one for one in row if one is not None]
                lines.append((label, PARTS[part], name, *(number(known[k]) if known else NONE for k in (0, -1))))
    return [
        Plot(
            name="layer_losses",
            title="Loss of every student layer over training",
            caption="The fuller the colour, the larger the loss; the ends of each panel's shades stand above it, between them "
            "the logarithm counts where they lie far apart. The first layer is on top; grey was not compared. Means over seeds.",
            alt=f"{listed(list(means))}: panels of student layers over updates; first and last values in the table below.",
            size=panels.size,
            draw=draw,
            header=("member", "part", "layer", "first", "last"),
            rows=lines,
        )
    ]


def _layer_names(recipe: Mapping[str, Any], count: int) -> Sequence[Any]:
    """The student's layers that were compared, in the order of the rows."""
    if value(recipe, "explicit.form") == "aggregated":
        return ["all"] * count
    first = int(str(value(recipe, "explicit.layers") or 0).partition("-")[0])
    return range(first, first + count)


def _mean_by_layer(losses: Sequence[LayerLoss], part: str) -> tuple[Sequence[int], Rows]:
    """Updates that all seeds logged, and for each layer its mean over seeds at them."""
    inside = [dict(zip(one.steps, one.parts[part], strict=True)) for one in losses if part in one.parts]
    steps = sorted(set.intersection(*map(set, inside)))

    def mean(step: int, layer: int) -> Value:
        known = [one[step][layer] for one in inside if one[step][layer] is not None]
        return fmean(v for v in known if v is not None) if known else None

    return steps, [[mean(step, layer) for step in steps] for layer in range(len(inside[0][steps[0]]))]
