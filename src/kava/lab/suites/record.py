"""suite.json, which says what an experiment's folder holds, and the table of its runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from kava.config.typed_file import read_dict
from kava.errors import ConfigError
from kava.files import write_json
from kava.lab.analysis.runs import SUITE, find_runs
from kava.lab.analysis.study import label_of, plain, whole_first
from kava.lab.analysis.suite_file import SuiteFile
from kava.lab.analysis.validations import held_out_numbers
from kava.lab.plan import SuitePlan
from kava.provenance import surroundings
from kava.run_files import AGAIN
from kava.text_table import table

HELD_OUT = {"ce": "val CE", "kv": "val KV", "kv_unexplained": "KV / mean's"}  # the last: over a constant's distance


def write_record(plan: SuitePlan, broken: Mapping[str, str]) -> None:
    """suite.json: the members that were planned, and what broke; members and seeds of an earlier call stay in it."""
    path, runs = plan.root / SUITE, plan.runs
    before: dict[str, Any] = read_dict(path, SuiteFile, AGAIN) if path.is_file() else {}
    for key, value in (("suite", plan.suite.name), ("config", runs.config)):
        if before and before.get(key) != value:
            raise ConfigError(
                f"{path.parent} holds {key} {before.get(key)!r}, not {value!r}", "choose another --output_dir"
            )
    members = {
        member.name: {"title": member.title, "settings": [*runs.settings, *member.settings], "mode": member.mode}
        for member in plan.members
    }
    planned = {f"{name}/seed_{seed}" for name in members for seed in runs.seeds}
    earlier = {label: reason for label, reason in before.get("broken", {}).items() if label not in planned}
    facts = {
        "suite": plan.suite.name,
        "config": runs.config,
        "seeds": list(dict.fromkeys([*before.get("seeds", []), *runs.seeds])),
        "sets": runs.sets,
        "settings": list(runs.settings),
        "datasets": list(runs.datasets),
        "output_dir": str(plan.root.parent),
        "quick_test": runs.quick_test,
        "members": before.get("members", {}) | members,
        "broken": {**earlier, **broken},
    }
    write_json(path, facts | surroundings())


def result_rows(plan: SuitePlan, broken: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row per run and set, and the broken runs without numbers."""
    runs = find_runs([plan.root]) if any(path.is_dir() for path in plan.root.iterdir()) else []
    modes = {member.name: member.mode for member in plan.members}
    rows: list[dict[str, Any]] = []
    for run in (run for run in runs if run.member in modes):
        facts = {"member": run.member, "seed": run.seed, "status": run.status, "held_out": held_out_numbers(run.log())}
        rows += [
            facts
            | {
                "set": label_of(r),
                "accuracy": r.accuracy,
                "correct": r.correct,
                "total": r.total,
                "passes": r.passes_mean,
            }
            for r in whole_first([r for r in plain(run) if r.mode == modes[run.member]])
        ] or [facts | {"reason": broken.get(f"{run.member}/seed_{run.seed}", "not evaluated")}]
    return rows


def result_text(plan: SuitePlan, rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per run and set, for several teachers with the numbers of the last validation; then what to run next."""
    several = any("kv" in row["held_out"] for row in rows)
    lines = []
    for row in rows:
        if "accuracy" in row:
            counts = f"{row['correct']}/{row['total']}" if row["correct"] is not None else str(row["total"])
            numbers = [row["set"], f"{100 * row['accuracy']:.1f} %", counts, f"{row['passes'] or 0:.1f}"]
        else:
            numbers = ["-", "-", "-", row["reason"]]
        losses = [f"{row['held_out'][key]:.4f}" if key in row["held_out"] else "-" for key in HELD_OUT]
        lines.append([row["member"], str(row["seed"]), row["status"], *(losses if several else []), *numbers])
    columns = tuple(HELD_OUT.values()) if several else ()
    header = ("member", "seed", "status", *columns, "set", "accuracy", "correct", "passes")
    commands = [f"kava report {plan.root} --output report.html"]
    if plan.suite.analyze is not None:
        commands.insert(0, " ".join([f"kava analyze --output_base {plan.root}", *plan.suite.analyze]))
    rehearsal = "a rehearsal, no result\n" if plan.runs.quick_test else ""
    return f"{rehearsal}{table(lines, header)}\n\nnext: " + "\n      ".join(commands)
