"""kava submit and kava jobs against a real Grid Engine with one node of two slots (tests/clusters.py starts it)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from clusters import LONG, QUICK, Cluster, started, why_not

pytestmark = pytest.mark.long
ROOT = "outputs/embedded_multi_seed"


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    reason = why_not("sge")
    if reason:
        pytest.skip(f"no Grid Engine can be started here: {reason}")
    with started("sge") as cluster:
        yield cluster


@pytest.fixture
def sge(running: Cluster) -> Iterator[Cluster]:
    """The cluster with nothing in its queue, and a project folder of the test's own."""
    with running.project():
        yield running
        running.run("qdel", "-u", "*", code=None)
        running.until(lambda: not running.run("qstat").stdout, "empty queue")


def test_seeds_from_submission_to_the_table(sge: Cluster) -> None:
    record = sge.submit("seeds", "--config", "embedded", "--seeds", "42", "123", "456", "--time", "1h", *QUICK)
    train, aggregate = record["jobs"]
    assert (train["tasks"], aggregate["tasks"], aggregate["after"]) == (3, None, [train["id"]])
    assert json.loads((sge.folder / ROOT / ".jobs/seeds/jobs.json").read_text()) == record
    seen = sge.until(lambda: (found := sge.states(ROOT))["train", 0] == "running" and found, "running task")
    assert (seen["train", 2], seen["aggregate", None]) == ("pending", "pending")  # two slots, three tasks

    assert set(sge.ended(ROOT).values()) == {"ok"}, sge.printed()
    for task in range(3):
        status = sge.status(record, 0, task)
        assert (status["state"], status["exit_code"], status["job"], status["task"]) == ("ok", 0, train["id"], task)
        assert "updates" in (sge.folder / f"logs/kava_{train['id']}.{task + 1}.err").read_text()
    found = json.loads((sge.folder / ROOT / "aggregated_results.json").read_text())
    assert found["embedded"]["seeds"] == [42, 123, 456]
    assert found["embedded"]["datasets"]["chains"]["num_seeds"] == 3
    assert sge.kava("jobs").stdout.rstrip().endswith("4 ok")
    assert sge.run("qstat").stdout == ""


def test_a_failing_seed_keeps_the_aggregate_from_running(sge: Cluster) -> None:
    """Grid Engine starts it all the same: it has no afterok. The job looks at the status files and refuses."""
    root = sge.folder / ROOT
    sge.run("mkdir", "-p", ROOT)
    sge.run("touch", f"{ROOT}/seed_123")  # in the way
    words = ("seeds", "--config", "embedded", "--seeds", "42", "123", "--time", "1h", *QUICK)
    record = sge.submit(*words)
    note = sge.kava(
        "submit", *words, "--scheduler", "sge", "--cpus", "1", "--gpus", "0", "--mem", "0", "--dry_run"
    ).stderr
    assert "sge cannot wait for success: dependent jobs look at the status files" in note
    found = sge.ended(ROOT)
    assert found == {("train", 0): "ok", ("train", 1): "failed", ("aggregate", None): "refused"}, sge.printed()
    rows = sge.jobs(ROOT)
    assert (rows["train", 1]["exit_code"], rows["aggregate", None]["exit_code"]) == (2, 100)
    assert rows["aggregate", None]["note"].endswith(f"status-train-1.json says failed (job {record['jobs'][0]['id']})")
    assert not list(root.glob("aggregated*"))
    sge.until(lambda: "Eqw" in sge.run("qstat").stdout, "job in error")  # shown to whoever looks, holds its dependents
    ended = json.loads(sge.kava("jobs", ROOT, "--cancel", "--quiet").stdout)["cancelled"]
    assert ended == [record["jobs"][1]["id"]]
    sge.until(lambda: not sge.run("qstat").stdout, "empty queue")


def test_cancel_saves_and_ends_everything(sge: Cluster) -> None:
    record = sge.submit("seeds", "--config", "embedded", "--time", "1h", *LONG, "training.max_steps=5000")
    sge.until(lambda: sge.losses(f"{ROOT}/seed_42"), "first update")
    ended = json.loads(sge.kava("jobs", ROOT, "--cancel", "--quiet").stdout)["cancelled"]
    assert set(ended) == {job["id"] for job in record["jobs"]}
    sge.until(lambda: not sge.run("qstat").stdout, "empty queue")
    found = sge.jobs(ROOT)
    assert {row["state"] for row in found.values()} == {"cancelled"}, found
    assert sge.status(record, 0, 0)["signal"] == "SIGUSR2"  # what -notify sends before the end
    made = max(sge.losses(f"{ROOT}/seed_42"))
    assert (sge.folder / f"{ROOT}/seed_42/checkpoint-step{made}/trainer_state.json").exists()
    assert sge.kava("jobs", ROOT, "--cancel").stdout == "cancelled: nothing was open\n"


def test_at_the_time_limit_it_goes_back_and_on_to_the_same_bits(sge: Cluster) -> None:
    words = ("--config", "embedded", "--seed", "7", *LONG, "training.max_steps=80", "--output_dir")
    sge.kava("train", *words, "outputs/whole")
    record = sge.submit("train", *words, "outputs/struck", "--time", "00:02:00", "--signal", "60")
    lines = (sge.folder / record["jobs"][0]["script"]).read_text().splitlines()
    assert {"#$ -l h_rt=00:02:00", "#$ -l s_rt=00:01:00"} <= set(lines)
    sge.stopped_until_told_to_end("outputs/struck", 10)  # s_rt: Grid Engine sends USR1
    sge.until(lambda: sge.status(record)["state"] == "requeued", "requeue")
    assert sge.status(record)["signal"] == "SIGUSR1"
    assert 10 <= len(sge.losses("outputs/struck")) < 80
    made = len(sge.losses("outputs/struck"))
    assert (sge.folder / f"outputs/struck/checkpoint-step{made}/trainer_state.json").exists()
    sge.until(lambda: sge.status(record)["attempt"] > 1, "second attempt")
    assert sge.ended("outputs/struck") == {("train", None): "ok"}, sge.printed()
    assert sge.saved("outputs/struck") == sge.saved("outputs/whole")
    assert sge.losses("outputs/struck") == sge.losses("outputs/whole")
    assert sorted(sge.losses("outputs/struck")) == list(range(1, 81))


def test_what_grid_engine_refuses_is_said_and_leaves_nothing(sge: Cluster) -> None:
    words = ("submit", "seeds", "--config", "embedded", "--scheduler", "sge", "--cpus", "1", "--mem", "0")
    done = sge.kava(*words, "--gpus", "0", "--partition", "gqu.q", code=2)
    assert "gqu.q" in done.stderr
    done = sge.kava(*words, "--gpus", "1", code=2)
    assert 'unknown resource "gpu"' in done.stderr
    assert not list(sge.folder.glob("outputs/**/.jobs/*"))
    assert sge.run("qstat").stdout == ""
