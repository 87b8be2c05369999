"""Each scheduler's words: ids and states in what their commands print, directives, which one is here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kava.cluster.detect import installed_scheduler, present
from kava.cluster.presets import PRESETS, preset
from kava.cluster.schedulers import scheduler_named
from kava.cluster.site_file import GridEngineSite, Site
from kava.cluster.spec import Command, JobSpec, Resources, clock, job_name, parse_mem, parse_time, singles
from kava.cluster.submit import Submission, adapted
from kava.errors import ConfigError, RunError

TRAIN = (Command(("kava", "train", "--seed", "%SEED%", "--shard", "%INDEX%/3")),)


def spec(**changes) -> JobSpec:
    given = {"label": "train", "name": "kava-x", "folder": "o/.jobs/seeds", "tasks": (TRAIN,), "resources": Resources()}
    return JobSpec(**(given | changes))


# ---- ids


@pytest.mark.parametrize(
    ("scheduler", "printed", "job"),
    [
        ("slurm", "27\n", "27"),
        ("slurm", "sbatch: lua: welcome\n27;cluster\n", "27"),
        ("pbs", "123[].server\n", "123[].server"),
        ("torque", "123.server.site\n", "123.server.site"),
        ("sge", "12.1-3:1\n", "12"),
        ("sge", "12\n", "12"),
        ("lsf", "Job <77> is submitted to queue <gpu>.\n", "77"),
        ("cobalt", "\n** Project 'x' **\n\n4711\n", "4711"),
        ("local", "31337\n", "31337"),
    ],
)
def test_ids(scheduler: str, printed: str, job: str):
    assert scheduler_named(scheduler).parse_id(printed) == job


@pytest.mark.parametrize("scheduler", ["slurm", "pbs", "sge", "lsf", "cobalt"])
def test_no_id_is_an_error(scheduler: str):
    with pytest.raises(RunError, match="printed no job id"):
        scheduler_named(scheduler).parse_id("\n")


# ---- states


def test_slurm_states():
    slurm = scheduler_named("slurm")
    said = "27_0|COMPLETED\n27_1|FAILED\n27_[2-3,5%2]|PENDING\n28|CANCELLED by 1000\n29|TIMEOUT\n30|NEW_WORD\n"
    found = slurm.parse_states(["sacct"], said)
    assert found == {
        ("27", 0): "done", ("27", 1): "failed", ("27", 2): "pending", ("27", 3): "pending", ("27", 5): "pending",
        ("28", None): "cancelled", ("29", None): "failed", ("30", None): "unknown",
    }  # fmt: skip
    said = (
        "JobId=31 ArrayJobId=27 ArrayTaskId=2 JobName=x JobState=RUNNING Reason=None\n"
        "JobId=27 ArrayJobId=27 ArrayTaskId=3-4%1 JobName=x JobState=PENDING Reason=Resources\n"
        "JobId=40 JobName=y JobState=COMPLETED Reason=None\n"
    )
    found = slurm.parse_states(["scontrol"], said)
    assert found == {("27", 2): "running", ("27", 3): "pending", ("27", 4): "pending", ("40", None): "done"}


def test_pbs_states():
    said = {
        "123[].srv": {"job_state": "B"},
        "123[0].srv": {"job_state": "F", "Exit_status": 0},
        "123[1].srv": {"job_state": "F", "Exit_status": 1},
        "123[2].srv": {"job_state": "R"},
        "124.srv": {"job_state": "H"},
        "125.srv": {"job_state": "F", "Exit_status": 271},
    }
    found = scheduler_named("pbs").parse_states(["qstat"], json.dumps({"Jobs": said}))
    assert found == {
        ("123[].srv", None): "running", ("123[].srv", 0): "done", ("123[].srv", 1): "failed",
        ("123[].srv", 2): "running", ("124.srv", None): "pending", ("125.srv", None): "cancelled",
    }  # fmt: skip


def test_torque_states():
    said = "".join(
        f"<Job><Job_Id>{name}</Job_Id><job_state>{state}</job_state>{code}</Job>"
        for name, state, code in (
            ("9[0].s", "C", "<exit_status>0</exit_status>"),
            ("9[1].s", "C", "<exit_status>2</exit_status>"),
            ("10.s", "Q", ""),
        )
    )
    found = scheduler_named("torque").parse_states(["qstat"], f"<Data>{said}</Data>")
    assert found == {("9[].s", 0): "done", ("9[].s", 1): "failed", ("10.s", None): "pending"}
    assert scheduler_named("torque").parse_states(["qstat"], "") == {}
    with pytest.raises(RunError, match="no XML"):
        scheduler_named("torque").parse_states(["qstat"], "qstat: cannot connect")


def test_sge_states():
    sge = scheduler_named("sge")
    said = """\
job-ID  prior   name       user         state submit/start at     queue                          slots ja-task-ID
-----------------------------------------------------------------------------------------------------------------
     12 0.55500 kava-x     ann          r     11/21/2026 10:00:00 main.q@n1                          8 1
     12 0.55500 kava-x     ann          qw    11/21/2026 10:00:00                                    8 2-3:1
     13 0.00000 kava-agg   ann          hqw   11/21/2026 10:00:01                                    1
     14 0.55500 kava-agg   ann          Eqw   11/21/2026 10:00:01                                    1
"""
    assert sge.parse_states(["qstat"], said) == {
        ("12", 0): "running", ("12", 1): "pending", ("12", 2): "pending", ("13", None): "pending", ("14", None): "failed",
    }  # fmt: skip
    said = """\
==============================================================
jobnumber    12
taskid       1
failed       0
exit_status  0
==============================================================
jobnumber    12
taskid       2
failed       0
exit_status  3
==============================================================
jobnumber    13
taskid       undefined
failed       100 : assumedly after job
exit_status  137
"""
    assert sge.parse_states(["qacct"], said) == {("12", 0): "done", ("12", 1): "failed", ("13", None): "cancelled"}


def test_lsf_and_cobalt_states():
    rows = [("77", "1", "DONE"), ("77", "2", "EXIT"), ("77", "3", "PEND"), ("78", "0", "RUN")]
    said = {"COMMAND": "bjobs", "RECORDS": [{"JOBID": j, "JOBINDEX": i, "STAT": s} for j, i, s in rows]}
    found = scheduler_named("lsf").parse_states(["bjobs"], json.dumps(said))
    assert found == {("77", 0): "done", ("77", 1): "failed", ("77", 2): "pending", ("78", None): "running"}
    said = "JobID  State\n=============\n4711   running\n4712   dep_hold\n"
    found = scheduler_named("cobalt").parse_states(["qstat"], said)
    assert found == {("4711", None): "running", ("4712", None): "pending"}


def test_ids_and_tasks_of_a_running_job():
    variables = {"PBS_JOBID": "123[2].srv", "PBS_ARRAY_INDEX": "2", "JOB_ID": "12", "SGE_TASK_ID": "undefined",
                 "LSB_JOBID": "77", "LSB_JOBINDEX": "0", "SLURM_JOB_ID": "31", "SLURM_ARRAY_JOB_ID": "27",
                 "SLURM_ARRAY_TASK_ID": "4"}  # fmt: skip
    seen = {
        name: (scheduler_named(name).id_of(variables), scheduler_named(name).task_of(variables))
        for name in ("pbs", "sge", "lsf", "slurm", "cobalt")
    }
    assert seen == {
        "pbs": ("123[].srv", 2), "sge": ("12", None), "lsf": ("77", None), "slurm": ("27", 4), "cobalt": (None, None),
    }  # fmt: skip


# ---- submit commands


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        ("slurm", ["sbatch", "--parsable", "--dependency=afterok:27:9", "--kill-on-invalid-dep=yes", "a.sh"]),
        ("pbs", ["qsub", "-W", "depend=afterok:27:9", "a.sh"]),
        ("torque", ["qsub", "-W", "depend=afterokarray:27,afterok:9", "a.sh"]),
        ("sge", ["qsub", "-terse", "-hold_jid", "27,9", "a.sh"]),
        ("lsf", ["bsub", "-w", "done(27) && done(9)", "-ti"]),
        ("cobalt", ["qsub", "--dependencies", "27:9", "--mode", "script", "a.sh"]),
    ],
)
def test_dependencies(scheduler: str, words: list[str]):
    assert scheduler_named(scheduler).submit(Path("a.sh"), spec(), [("27", True), ("9", False)]) == words


def test_arrays_where_there_are_none():
    train = spec(array=3, lists=(("SEED", ("42", "123", "456")),))
    then = spec(label="aggregate", name="kava-a", after=("train",), needs=(train.needed(),))
    work = Submission("seeds", "o/.jobs/seeds", (train, then))
    made = adapted(work, scheduler_named("cobalt"))
    assert [one.label for one in made.jobs] == ["train-0", "train-1", "train-2", "aggregate"]
    assert [one.tasks[0][0].words[3:] for one in made.jobs[:3]] == [
        ("42", "--shard", "0/3"), ("123", "--shard", "1/3"), ("456", "--shard", "2/3"),
    ]  # fmt: skip
    assert made.jobs[3].after == ("train-0", "train-1", "train-2")
    assert made.jobs[3].needs == ("o/.jobs/seeds/status-train-[0-2].json",)
    assert [file for one in made.jobs[:3] for file in one.status_files()] == train.status_files()
    assert made.notes == ("cobalt has no job arrays: train is 3 single jobs",)
    assert adapted(work, scheduler_named("slurm")).jobs == work.jobs
    assert "cannot wait for success" in adapted(work, scheduler_named("sge")).notes[0]
    one = Submission("seeds", "o/.jobs/seeds", (replace(train, array=1, lists=(("SEED", ("42",)),)), then))
    assert [job.label for job in adapted(one, scheduler_named("pbs")).jobs] == ["train-0", "aggregate"]  # -J needs two
    assert adapted(one, scheduler_named("torque")).jobs[0].array == 1
    with pytest.raises(ValueError, match="no array"):
        singles(then)


# ---- what cannot be asked for


@pytest.mark.parametrize("scheduler", ["pbs", "sge", "lsf", "cobalt"])
def test_qos_where_there_is_none(scheduler: str):
    with pytest.raises(ConfigError, match="has no qos"):
        scheduler_named(scheduler).directives(spec(resources=Resources(qos="high")))


def test_grid_engine_and_its_own_names():
    asked = replace(PRESETS["multinode"], nodes=2, cpus=4, gpus=2, mem=8192)
    with pytest.raises(ConfigError, match="2 nodes with 4 CPUs need the name of a parallel environment") as error:
        scheduler_named("sge").header(spec(resources=asked))
    assert "sge.pe_nodes" in error.value.hint
    site = Site(sge=GridEngineSite(pe_nodes="mpi", gpu="ngpus", memory="h_vmem", memory_per_slot=True))
    lines = scheduler_named("sge", site).header(spec(resources=asked))
    assert {"-pe mpi 8", "-l ngpus=2", "-l h_vmem=2048M"} <= set(lines)
    bare = Site(sge=GridEngineSite(pe=None, gpu=None, memory=None))
    lines = scheduler_named("sge", bare).header(spec(resources=Resources(gpus=1, mem=1024)))
    assert not [line for line in lines if line.startswith(("-pe", "-l"))]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "1x"}, "job name"),
        ({"name": "a\n#SBATCH --exclusive"}, "job name"),
        ({"label": "a/b"}, "job label"),
        ({"log": "my logs/x"}, "log folder"),
        ({"array": 0}, "array of 0"),
        ({"array": 3, "tasks": (TRAIN, TRAIN)}, "array of 3 with 2"),
        ({"tasks": (TRAIN, TRAIN)}, "no array"),
        ({"environment": (("A;touch x", "1"),)}, "not a variable's name"),
        ({"exported": (("1A", "1"),)}, "not a variable's name"),
        ({"directives": ("--x\ntouch injected",)}, "more than one line"),
        ({"environment": (("A", "a\0b"),)}, "null character"),
        ({"folder": "a\0b"}, "null character"),
    ],
)
def test_jobs_that_cannot_be(changes: dict, said: str):
    with pytest.raises(ConfigError, match=said):
        spec(**changes)


@pytest.mark.parametrize("field", ["partition", "account", "qos"])
@pytest.mark.parametrize("value", ["a b", "a\nb", "$(x)", "a;b", "a'b", ""])
def test_words_of_directives_are_plain(field: str, value: str):
    with pytest.raises(ConfigError, match="cannot stand in a scheduler's directive"):
        Resources(**{field: value})


def test_amounts():
    assert [parse_mem(text) for text in ("64G", "64gb", "512M", "1T", "2048K", "16 GiB")] == [
        65536, 65536, 512, 1048576, 2, 16384,
    ]  # fmt: skip
    assert [parse_time(text) for text in ("48:00:00", "2-00:00:00", "48h", "90m", "7d", "1:02:03")] == [
        172800, 172800, 172800, 5400, 604800, 3723,
    ]  # fmt: skip
    assert [clock(seconds) for seconds in (3723, 336 * 3600)] == ["01:02:03", "336:00:00"]
    for text in ("64", "G", "-1G", "64 apples"):
        with pytest.raises(ConfigError, match="not an amount of memory"):
            parse_mem(text)
    for text in ("10", "48:00", "1:99:00", "soon", "-1h"):
        with pytest.raises(ConfigError, match="not a length of time"):
            parse_time(text)
    with pytest.raises(ConfigError, match="nodes = 0"):
        Resources(nodes=0)
    assert job_name("e1-e5", "my config; $(x)") == "kava-e1-e5-my-config-x"
    with pytest.raises(ConfigError, match="unknown preset 'singel'") as error:
        preset("singel")
    assert error.value.hint == "did you mean 'single'?"


# ---- which scheduler is here


@pytest.fixture
def programs(tmp_path: Path):
    """A PATH of nothing but these programs; qstat --version says `version`."""

    def make(*names: str, version: str = "") -> dict[str, str]:
        for name in names:
            (tmp_path / name).write_text(f"#!/bin/sh\necho '{version}' >&2\n")
            (tmp_path / name).chmod(0o755)
        return {"PATH": str(tmp_path)}

    return make


NO_CONF = Path("no") / "pbs.conf"


@pytest.mark.parametrize(
    ("names", "version", "variables", "found"),
    [
        (("sbatch",), "", {}, "slurm"),
        (("bsub",), "", {}, "lsf"),
        (("qsub", "qstat"), "", {"SGE_ROOT": "/opt/sge"}, "sge"),
        (("qsub", "qstat"), "", {"PBS_CONF_FILE": "/etc/x"}, "pbs"),
        (("qsub", "qstat"), "pbs_version = 2022.1.1", {}, "pbs"),
        (("qsub", "qstat"), "Version: 6.1.2\nCommit: 661e", {}, "torque"),
        (("qsub", "cqsub"), "", {}, "cobalt"),
        (("sbatch", "qsub", "qstat"), "usage: qstat [-f]", {}, "slurm"),  # its own translation of PBS
    ],
)
def test_the_scheduler_that_is_here(programs, names, version: str, variables, found: str):
    assert installed_scheduler(programs(*names, version=version) | variables, NO_CONF) == found


def test_none_several_or_an_unknown_one(programs, tmp_path: Path):
    with pytest.raises(ConfigError, match="no scheduler is here") as error:
        installed_scheduler({"PATH": str(tmp_path)}, NO_CONF)
    assert "--scheduler local" in error.value.hint
    environ = programs("qsub")
    with pytest.raises(ConfigError, match="nor qstat --version says whose it is"):
        installed_scheduler(environ, NO_CONF)
    environ = programs("sbatch", "bsub") | {"SGE_ROOT": "/opt/sge"}
    with pytest.raises(ConfigError, match=r"several schedulers are here: slurm \(sbatch\), lsf \(bsub\), sge") as error:
        installed_scheduler(environ, NO_CONF)
    assert error.value.hint == "--scheduler slurm or lsf or sge"
    (tmp_path / "pbs.conf").touch()
    assert present({"PATH": environ["PATH"]}, tmp_path / "pbs.conf")["pbs"] == "qsub and its pbs.conf"
