"""kava submit and kava jobs against a real Slurm with two emulated nodes of one CPU each (tests/clusters.py starts it)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from clusters import LONG, QUICK, Cluster, started, why_not

pytestmark = pytest.mark.long
ROOT = "outputs/embedded_multi_seed"


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    reason = why_not("slurm")
    if reason:
        pytest.skip(f"no Slurm can be started here: {reason}")
    with started("slurm") as cluster:
        yield cluster


@pytest.fixture
def slurm(running: Cluster) -> Iterator[Cluster]:
    """The cluster with nothing in its queue, and a project folder of the test's own."""
    with running.project():
        yield running
        running.run("scancel", "--user", "root")
        running.until(lambda: not running.run("squeue", "--noheader").stdout, "empty queue")


def test_seeds_from_submission_to_the_table(slurm: Cluster) -> None:
    record = slurm.submit("seeds", "--config", "embedded", "--seeds", "42", "123", "456", "--time", "1h", *QUICK)
    train, aggregate = record["jobs"]
    assert (train["tasks"], aggregate["tasks"], aggregate["after"]) == (3, None, [train["id"]])
    assert json.loads((slurm.folder / ROOT / ".jobs/seeds/jobs.json").read_text()) == record
    seen = slurm.until(lambda: (found := slurm.states(ROOT))["train", 0] == "running" and found, "running task")
    assert (seen["train", 2], seen["aggregate", None]) == ("pending", "pending")  # two CPUs, three tasks
    again = slurm.kava("submit", "seeds", "--config", "embedded", "--scheduler", "slurm", "--gpus", "0", code=2)
    assert f"job {train['id']}, {aggregate['id']} of the same work is not through" in again.stderr

    assert set(slurm.ended(ROOT).values()) == {"ok"}, slurm.printed()
    for task in range(3):
        status = slurm.status(record, 0, task)
        assert (status["state"], status["exit_code"], status["job"], status["task"]) == ("ok", 0, train["id"], task)
        assert "updates" in (slurm.folder / f"logs/kava_{train['id']}_{task}.err").read_text()
    found = json.loads((slurm.folder / ROOT / "aggregated_results.json").read_text())
    assert found["embedded"]["seeds"] == [42, 123, 456]
    assert found["embedded"]["datasets"]["chains"]["num_seeds"] == 3
    assert slurm.kava("jobs").stdout.rstrip().endswith("4 ok")


def test_a_failing_seed_keeps_the_aggregate_from_running(slurm: Cluster) -> None:
    (slurm.folder / ROOT).mkdir(parents=True)
    (slurm.folder / ROOT / "seed_123").write_text("in the way")
    slurm.submit("seeds", "--config", "embedded", "--seeds", "42", "123", "--time", "1h", *QUICK)
    found = slurm.ended(ROOT)
    assert found == {("train", 0): "ok", ("train", 1): "failed", ("aggregate", None): "cancelled"}, slurm.printed()
    assert slurm.jobs(ROOT)["train", 1]["exit_code"] == 2
    assert not list((slurm.folder / ROOT).glob("aggregated*"))
    assert slurm.run("squeue", "--noheader").stdout == ""  # nothing waits for ever

    (slurm.folder / ROOT / "seed_123").unlink()  # the same again: what is there is not made again
    weights = (slurm.folder / ROOT / "seed_42/best_checkpoint/trained.safetensors").stat().st_mtime_ns
    record = slurm.submit("seeds", "--config", "embedded", "--seeds", "42", "123", "--time", "1h", *QUICK)
    assert record["name"] == "seeds-2"
    slurm.ended(ROOT)
    assert {slurm.status(record, 0, 0)["state"], slurm.status(record, 1)["state"]} == {"ok"}, slurm.printed()
    assert (slurm.folder / ROOT / "seed_42/best_checkpoint/trained.safetensors").stat().st_mtime_ns == weights
    assert (slurm.folder / ROOT / "aggregated_results.json").exists()


def test_cancel_saves_and_ends_everything(slurm: Cluster) -> None:
    record = slurm.submit("seeds", "--config", "embedded", "--time", "1h", *LONG, "training.max_steps=5000")
    slurm.until(lambda: slurm.losses(f"{ROOT}/seed_42"), "first update")
    ended = json.loads(slurm.kava("jobs", ROOT, "--cancel", "--quiet").stdout)["cancelled"]
    assert set(ended) == {job["id"] for job in record["jobs"]}
    slurm.until(lambda: not slurm.run("squeue", "--noheader").stdout, "empty queue")
    found = slurm.jobs(ROOT)
    assert {row["state"] for row in found.values()} == {"cancelled"}, found
    assert slurm.status(record, 0, 0)["signal"] == "SIGTERM"
    made = max(slurm.losses(f"{ROOT}/seed_42"))
    assert (slurm.folder / f"{ROOT}/seed_42/checkpoint-step{made}/trainer_state.json").exists()
    assert slurm.kava("jobs", ROOT, "--cancel").stdout == "cancelled: nothing was open\n"


def test_at_the_time_limit_and_preempted_it_goes_on_to_the_same_bits(slurm: Cluster) -> None:
    words = ("--config", "embedded", "--seed", "7", *LONG, "training.max_steps=80", "--output_dir")
    slurm.kava("train", *words, "outputs/whole")
    record = slurm.submit("train", *words, "outputs/struck", "--time", "3m", "--signal", "60")
    (job,) = record["jobs"]
    assert "#SBATCH --signal=B:USR1@60" in (slurm.folder / job["script"]).read_text().splitlines()

    slurm.stopped_until_told_to_end("outputs/struck", 10)
    slurm.until(lambda: slurm.status(record)["state"] == "requeued", "requeue")
    made = len(slurm.losses("outputs/struck"))
    assert made < 80
    assert slurm.status(record)["signal"] == "SIGUSR1"
    assert slurm.states("outputs/struck")["train", None] == "pending"

    slurm.until(lambda: len(slurm.losses("outputs/struck")) >= made + 10, "ten more updates")
    assert slurm.status(record)["attempt"] == 2
    slurm.run("scontrol", "requeue", job["id"])  # as a preemption does
    slurm.until(lambda: slurm.status(record)["attempt"] == 3, "third attempt")
    assert slurm.ended("outputs/struck") == {("train", None): "ok"}, slurm.printed()
    assert slurm.saved("outputs/struck") == slurm.saved("outputs/whole")
    assert slurm.losses("outputs/struck") == slurm.losses("outputs/whole")
    assert sorted(slurm.losses("outputs/struck")) == list(range(1, 81))


def test_two_nodes_make_the_updates_of_one_process(slurm: Cluster) -> None:
    words = ("--config", "embedded", "--seed", "7", *LONG, "training.max_steps=6")
    slurm.kava("train", *words, "--output_dir", "outputs/one")
    both = ("training.batch_size=4", "--output_dir", "outputs/two", "--nodes", "2", "--time", "1h")
    record = slurm.submit("train", *(word for word in words if "batch_size" not in word), *both)
    script = (slurm.folder / record["jobs"][0]["script"]).read_text()
    assert "#SBATCH --nodes=2" in script
    assert "srun --nodes=2 --ntasks=2" in script
    slurm.until(lambda: slurm.states("outputs/two")["train", None] != "pending", "start")
    assert slurm.run("squeue", "--noheader", "--format=%N %D").stdout.strip() == "n[1-2] 2"
    assert slurm.ended("outputs/two") == {("train", None): "ok"}, slurm.printed()
    one, two = slurm.losses("outputs/one"), slurm.losses("outputs/two")
    assert sorted(two) == [1, 2, 3, 4, 5, 6]
    assert two == pytest.approx(one, abs=1e-5)


def test_what_slurm_refuses_is_said_and_leaves_nothing(slurm: Cluster) -> None:
    words = ("submit", "seeds", "--config", "embedded", "--scheduler", "slurm", "--gpus", "0", "--mem", "0")
    done = slurm.kava(*words, "--cpus", "1", "--partition", "gqu", code=2)
    assert "sbatch: error: invalid partition specified: gqu" in done.stderr
    assert "--partition" in done.stderr.splitlines()[-1]
    done = slurm.kava(*words, "--cpus", "2", code=2)
    assert "sbatch: error: CPU count per node can not be satisfied" in done.stderr
    assert not list(slurm.folder.glob("outputs/**/.jobs/*"))
    assert slurm.run("squeue", "--noheader").stdout == ""
