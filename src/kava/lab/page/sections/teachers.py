"""Runs with several teachers: held-out distances, numbers of each teacher, weights, losses by layer, tokens and layers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from kava.lab.analysis.mixture_logs import PARTS, LogsByMember, counted_runs, load_mixture_logs, teacher_specs
from kava.lab.analysis.stats import spread
from kava.lab.analysis.study import Group, Look, Study, StudyMember, value, with_looks
from kava.lab.analysis.validations import MEANING, NUMBERS, TO_TEACHER, WEIGHT_OF, held_out_numbers, teachers_in
from kava.lab.page.blocks import Block, PageSection, Paragraph, Plot, Row, Table, titled
from kava.lab.page.charts import Grid, Lines, curves, short
from kava.lab.page.formats import DASH, SEED_LINES, join, listed, mean_sd, number, percent, seed_name, styled
from kava.lab.page.heat import Panels, Rows, mean_over_seeds, scale_of
from kava.lab.page.sections.alignment import alignment
from kava.lab.page.sections.routing import HEAD, Looks, by_figure, by_question, routing
from kava.lab.page.sections.training import series, thinned

TARGET = StudyMember("what they give together", "", "", "kv", (), Look(5, "*", "-"))
CONSTANT = StudyMember("a constant instead of the student", "", "", "kv", (), Look(6, "", (0, (1.2, 1.2))))
NumbersBySeed = Mapping[int | None, Mapping[str, float]]  # held-out numbers of each seed
Numbers = Mapping[str, NumbersBySeed]  # by member's label


def teachers(study: Study) -> PageSection | None:
    """None where no run has several teachers."""
    logs = load_mixture_logs(study)
    taught = [member for member in study.members if any(teacher_specs(run) for run in member.runs)]
    if not logs and not taught:
        return None
    numbers = _numbers(study)
    routings, samples = (
        _filled({label: {seed: getattr(log, part) for seed, log in seeds.items()} for label, seeds in logs.items()})
        for part in ("routing", "samples")
    )
    weighted = [part for seeds in logs.values() for log in seeds.values() for part in (log.routing, log.samples)]
    names = [name for part in weighted if part for name in part.teachers]
    names += [name for seeds in numbers.values() for of_seed in seeds.values() for name in teachers_in(of_seed)]
    # A teacher has the same colour in all figures.
    looks = {m.label: m for m in with_looks([StudyMember(name, "", "", "kv", ()) for name in dict.fromkeys(names)])}
    parts: dict[str, Iterable[Block]] = {
        "Held-out distances": [*_table(study, numbers), *_distances(study, numbers, looks)],
        "Each teacher": _each_teacher(taught, logs, numbers),
        "Weights of the teachers": [*_alarms(logs), *routing(routings, looks), *by_question(samples, looks)],
        "Losses by layer": _layer_losses(logs),
        "Tokens and layers": alignment(logs),
    }
    blocks = titled(parts)
    return PageSection("teachers", "The teachers", tuple(blocks)) if blocks else None


def _filled(by_member: Mapping[str, Mapping[int | None, Any]]) -> dict[str, dict[int | None, Any]]:
    """Member's label -> seed -> what is not empty; members without any are left out."""
    filled = {label: {seed: part for seed, part in seeds.items() if part} for label, seeds in by_member.items()}
    return {label: seeds for label, seeds in filled.items() if seeds}


def _numbers(study: Study) -> Numbers:
    """The last held-out numbers of all members that have any, with or without teachers."""
    return _filled({
        m.label: {run.seed: held_out_numbers(study.logs[m.label][run.seed]) for run in counted_runs(m)}
        for m in study.members
    })  # fmt: skip


def _table(study: Study, numbers: Numbers) -> list[Block]:
    names = [name for name in NUMBERS if any(name in n for seeds in numbers.values() for n in seeds.values())]
    if "kv" not in names:
        return []
    first = study.sets[:1]
    rows: list[Row] = []
    for member in study.members:
        seeds = numbers.get(member.label, {})
        if seeds:
            accuracy = [mean_sd(score.mean, score.sd) for score in (study.score(member, label) for label in first)]
            rows.append((member.label, len(seeds), *accuracy, *(_mean_and_sd(seeds, name) for name in names)))
    columns = (*(f"accuracy on {label}, %" for label in first), *(NUMBERS[name] for name in names))
    about = "At the last validation, on problems held out from training; means over seeds (sample standard deviation)."
    table = Table(("member", "seeds", *columns), rows, "Held-out numbers of members with teachers")
    return [table, Paragraph(join([about, MEANING]), "note")]


def _mean_and_sd(seeds: NumbersBySeed, name: str) -> str:
    """Mean (sample sd) over the seeds that have the number."""
    values = [numbers[name] for numbers in seeds.values() if name in numbers]
    if not values:
        return DASH
    sd = spread(values)
    return number(fmean(values)) + ("" if sd is None else f" ({number(sd, 2)})")


def _each_teacher(taught: Sequence[StudyMember], logs: LogsByMember, numbers: Numbers) -> list[Block]:
    rows: list[Row] = []
    for member in taught:
        specs = next(specs for run in member.runs if (specs := teacher_specs(run)))
        mixture_logs = logs.get(member.label, {}).values()
        aligned = {teacher.name: teacher for log in mixture_logs for teacher in log.alignment or ()}
        seeds = numbers.get(member.label, {})
        for name, spec in specs.items():
            layers, coverage = (aligned[name].num_layers, aligned[name].coverage) if name in aligned else (DASH, None)
            rows.append((
                member.label, name, spec.get("model") or "the student's base", spec.get("prompt") or DASH, layers,
                percent(coverage), _mean_and_sd(seeds, WEIGHT_OF + name), _mean_and_sd(seeds, TO_TEACHER + name),
            ))  # fmt: skip
    header = ("member", "teacher", "model", "prompt", "layers", "tokens met, %", "weight", "KV to it alone")
    about = "Tokens met: share of the student's tokens that overlap one of the teacher's. The last two on held-out problems."
    return [Table(header, rows, "Each teacher"), Paragraph(about, "note")] if rows else []


def _alarms(logs: LogsByMember) -> Iterator[Block]:
    """A line for every run whose weights went to one teacher, though they were not fixed."""
    for label, seeds in logs.items():
        for seed, log in seeds.items():
            alarm = value(log.run.recipe, "mixture.collapse_alarm")
            fixed = value(log.run.recipe, "mixture.fusion") == "fixed"
            if log.routing is None or len(log.routing.teachers) < 2 or fixed or alarm is None:
                continue
            weight, name = max(zip(log.routing.weights[-1], log.routing.teachers, strict=True))
            if weight > alarm:
                words = f"{label}, seed {seed_name(seed)}: {percent(weight)} % of the weight is {name}'s"
                yield Paragraph(join([styled("collapsed", "warn"), f"{words} (alarm at {percent(alarm)} %)."]))


def _distances(study: Study, numbers: Numbers, looks: Looks) -> Iterator[Plot]:
    """The distance to the fused target and to each teacher at every validation."""
    labels = [label for label, seeds in numbers.items() if any("kv" in of_seed for of_seed in seeds.values())]
    for i, part in enumerate(by_figure(labels), 1):
        yield _distance_plot(i, study, {label: numbers[label] for label in part}, looks)


def _distance_plot(index: int, study: Study, numbers: Numbers, looks: Looks) -> Plot:
    lines: dict[str, Lines] = {}
    groups = []
    for label, seeds in numbers.items():
        names = list(dict.fromkeys(name for of_seed in seeds.values() for name in teachers_in(of_seed)))
        keys = {TARGET: "eval_kv", CONSTANT: "eval_kv_mean_predictor"}
        keys |= {looks[name]: f"eval_{TO_TEACHER}{name}" for name in names} if len(names) > 1 else {}
        logs = study.logs[label]
        every = {target: {seed_name(s): thinned(series(logs[s], key)) for s in seeds} for target, key in keys.items()}
        drawn = {target: by_seed for target, by_seed in every.items() if any(by_seed.values())}
        groups.append(Group(short(label, HEAD), tuple(drawn)))
        lines[label] = {target.label: by_seed for target, by_seed in drawn.items()}
    title = "mean squared distance of keys and values, held out"
    grid = Grid({"kv": title}, groups, height=1.6, xlabel="updates")
    every_line = [line for of_member in lines.values() for by_seed in of_member.values() for line in by_seed.values()]
    log = scale_of(y for line in every_line for _, y in line).log

    def draw(figure: Any) -> None:
        for (axes, _, group), of_member in zip(grid.panels(figure), lines.values(), strict=True):
            curves(axes, group, of_member, log)

    many = max(map(len, numbers.values())) > 1
    return Plot(
        name=f"distances_{index}",
        title="Distance to the teachers over training" + (f", {next(iter(lines))}" if len(lines) == 1 else ""),
        caption="To what the teachers give together, which is what is trained, and to each of them alone."
        + (f" {SEED_LINES}" if many else ""),
        alt="Lines over updates; first, least and last values in the table below.",
        size=grid.size,
        draw=draw,
        header=("member", "seed", "distance to", "validations", "first", "least", "last"),
        rows=[
            (label, seed, name, len(line), number(line[0][1]), number(min(y for _, y in line)), number(line[-1][1]))
            for label, of_member in lines.items()
            for name, by_seed in of_member.items()
            for seed, line in by_seed.items()
            if line
        ],
    )


def _layer_losses(logs: LogsByMember) -> Iterator[Plot]:
    """One figure: a row of panels per member (keys, values; or codes), student layers over updates."""
    means: dict[str, dict[str, tuple[Sequence[int], Rows]]] = {}
    names: dict[str, Sequence[Any]] = {}
    for label, seeds in logs.items():
        losses = [log.layer_loss for log in seeds.values() if log.layer_loss is not None]
        if losses and set.intersection(*(set(loss.steps) for loss in losses)):
            by_seed = {part: [loss for loss in losses if part in loss.parts] for part in losses[0].parts}
            means[label] = {
                part: mean_over_seeds([dict(zip(loss.steps, loss.parts[part], strict=True)) for loss in of_part])
                for part, of_part in by_seed.items()
            }
            recipe = next(log.run.recipe for log in seeds.values() if log.layer_loss is not None)
            names[label] = _layer_names(recipe, len(next(iter(losses[0].parts.values()))[0]))
    if not means:
        return
    columns = max(map(len, means.values()))
    layers = max(len(rows) for parts in means.values() for _, rows in parts.values())
    panels = Panels.of_layers(len(means), columns, layers)

    def draw(figure: Any) -> None:
        axes = panels.axes(figure)
        for i, (label, parts) in enumerate(means.items()):
            row = axes[i * columns : (i + 1) * columns]
            for panel in row[len(parts) :]:
                panel.set_visible(False)
            for panel, (part, (steps, rows)) in zip(row, parts.items(), strict=False):
                panels.draw_over_updates(panel, f"{short(label)}: {PARTS[part]}", steps, rows, names[label], most=6)

    table: list[Row] = []
    for label, parts in means.items():
        for part, (_, rows) in parts.items():
            for name, row in zip(names[label], rows, strict=True):
                known = [number(loss) for loss in row if loss is not None] or [DASH]
                table.append((label, PARTS[part], name, known[0], known[-1]))
    yield Plot(
        name="layer_losses",
        title="Loss of every student layer over training",
        caption="The fuller the colour, the larger the loss; the ends of each panel's shades stand above it, between them "
        "the logarithm counts where they lie far apart. The first layer is on top; grey was not compared. Means over seeds.",
        alt=f"{listed(list(means))}: panels of student layers over updates; first and last values in the table below.",
        size=panels.size,
        draw=draw,
        header=("member", "part", "layer", "first", "last"),
        rows=table,
    )


def _layer_names(recipe: Mapping[str, Any], count: int) -> Sequence[Any]:
    """The student's layers that were compared, in the order of the rows."""
    if value(recipe, "explicit.form") == "aggregated":
        return ["all"] * count
    first = int(str(value(recipe, "explicit.layers") or 0).partition("-")[0])
    return range(first, first + count)
