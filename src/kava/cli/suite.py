"""kava suite: an experiment with all its controls, over several seeds."""

from pathlib import Path
from typing import Annotated

import typer

from kava.cli.common import OVERRIDES, check_flags, show_result
from kava.cli.seeds import runs_of
from kava.cli.student import TrustRemoteCode
from kava.console import tell
from kava.lab.plan import SUITES, plan_suite, suite_members, suite_named
from kava.lab.run_local import run_jobs
from kava.lab.suites.record import result_rows, result_text, write_record
from kava.text_table import table

CONTEXT = OVERRIDES


def suite(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="SUITE", help="e1-e5, methods, methods-passes, ablations, phases, stages")
    ] = "",
    config: Annotated[str, typer.Option(help="the recipe that every member starts from")] = "embedded",
    seeds: Annotated[list[int] | None, typer.Option(help="default: 42 123 456")] = None,
    members: Annotated[list[str] | None, typer.Option(help="only these; default: all (see --list)")] = None,
    output_dir: Annotated[Path, typer.Option(help="the runs go to <output_dir>/<line>/<member>/seed_N")] = Path(
        "outputs"
    ),
    datasets: Annotated[list[str] | None, typer.Option(help="default: the recipe's evaluation.datasets")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="runs at once; with several CUDA_VISIBLE_DEVICES, one each")] = 1,
    skip_train: Annotated[bool, typer.Option("--skip_train", help="evaluate existing runs")] = False,
    skip_eval: Annotated[bool, typer.Option("--skip_eval", help="only train")] = False,
    quick_test: Annotated[bool, typer.Option("--quick_test", help="a few updates and items: does it run?")] = False,
    list_: Annotated[bool, typer.Option("--list", help="print the members and their settings, run nothing")] = False,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="only the result, as JSON")] = False,
) -> int:
    """Run every member of an experiment on the same data, in the same order, for the same updates, with the same seeds.

    e1-e5: no KV term, full KV, right-crop, R-KV, R-KV shuffled in time; and the controls random, uniform, targets of
    another question, pause tokens, no thoughts, explicit chain of thought. methods: CODI, SIM-CoT, Coconut, PCCoT, KaVa,
    pause tokens, no, short and whole chain of thought; methods-passes: the same with as many forward passes in training
    in place of as many updates. ablations: one thing at a time. phases: several
    teachers with every fusion, against each teacher alone and none. stages: one fusion after the other, each from the
    checkpoint of the one before.

    Finished runs are kept; a failed member stops no other; it is shown as broken, and the exit code is 1. Settings
    that follow apply to every member. Then: kava analyze and kava report.
    """
    if not name:
        check_flags(ctx)
        return _list_suites(quiet)
    experiment, runs = suite_named(name), runs_of(ctx)
    if list_:
        listed = suite_members(experiment, runs, members or [])
        rows = [[member.name, member.title, " ".join(member.settings) or "(the recipe)"] for member in listed]
        show_result([member._asdict() for member in listed], table(rows, ("member", "what", "settings")), quiet)
        return 0
    plan = plan_suite(experiment, runs, members or [], output_dir)
    for note in plan.notes:
        tell(f"note: {note}")
    broken = {label: error.message for label, error in plan.refused.items()}
    write_record(plan, broken)
    broken |= run_jobs(plan.jobs, jobs, quiet)
    write_record(plan, broken)
    for label, reason in broken.items():
        tell(f"broken: {label}: {reason}")
    results = result_rows(plan, broken)
    show_result(results, result_text(plan, results), quiet)
    return 1 if broken else 0


def _list_suites(quiet: bool) -> int:
    data = [{"name": suite.name, "title": suite.title} for suite in SUITES.values()]
    text = table([[suite["name"], suite["title"]] for suite in data], ("suite", "what"))
    show_result(data, text + "\n\nkava suite NAME --list shows the members", quiet)
    return 0
