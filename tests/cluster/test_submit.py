"""kava submit and kava jobs against stand-ins for schedulers' commands: records, refusals, mistakes, injection."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest
import yaml

from kava.cli.main import main
from kava.cluster.jobs import records, rows, summary

# sbatch, scontrol and scancel that keep a list of calls and give numbers; refused is a script's name
SBATCH = """\
#!/bin/bash
echo "sbatch $*" >>calls
for last; do :; done
if [[ -f refuse && "$last" == *"$(cat refuse)"* ]]; then
    echo "sbatch: error: invalid partition specified: gpuu" >&2
    echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2
    exit 1
fi
echo $((100 + $(grep -c ^sbatch calls)))
"""
QUEUE = """\
#!/bin/bash
[ "$1" = requeue ] || [ ! -f queue ] || cat queue
"""
CANCEL = '#!/bin/bash\necho "scancel $*" >>calls\n'


@pytest.fixture
def kava(capsys: pytest.CaptureFixture[str]):
    def run(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder on a login node of a Slurm that is not one."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in {
        "sbatch": SBATCH,
        "scontrol": QUEUE,
        "scancel": CANCEL,
        "sacct": "#!/bin/bash\nexit 1\n",
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    project = tmp_path / "my project"
    project.mkdir()
    monkeypatch.chdir(project)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    for name in ("KAVA_SITE", "KAVA_OUTPUT_PATH", "SGE_ROOT", "PBS_CONF_FILE", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    return project


def calls() -> list[str]:
    return Path("calls").read_text().splitlines()


def tree() -> list[str]:
    return sorted(path.as_posix() for path in Path().rglob("*"))


# ---- what is submitted and remembered


def test_seeds_are_an_array_and_what_waits_for_it(cluster: Path, kava):
    code, out, err = kava("submit", "seeds", "--config", "debug", "--seeds", "1", "2", "training.max_steps=2")
    assert (code, err) == (0, "")
    folder = Path("outputs/debug_multi_seed/.jobs/seeds")
    assert calls() == [
        f"sbatch --parsable {folder}/train.sh",
        f"sbatch --parsable --dependency=afterok:101 --kill-on-invalid-dep=yes {folder}/aggregate.sh",
    ]
    record = json.loads((folder / "jobs.json").read_text())
    assert [(job["label"], job["id"], job["tasks"], job["after"]) for job in record["jobs"]] == [
        ("train", "101", 2, []),
        ("aggregate", "102", None, ["101"]),
    ]
    assert record["scheduler"] == "slurm"
    assert set(record) >= {"command", "submitted", "revision", "working_folder"}
    assert record["jobs"][0]["resources"]["gpus"] == 1
    assert "gpus" not in record["jobs"][1]["resources"] or record["jobs"][1]["resources"]["gpus"] == 0
    assert Path("logs").is_dir()  # schedulers do not make it
    assert "101" in out
    text = (folder / "train.sh").read_text()
    assert '--seed "$SEED" --resume auto training.max_steps=2' in text
    assert os.access(folder / "train.sh", os.X_OK)
    printed = kava("submit", "seeds", "--config", "debug", "--seeds", "1", "2", "training.max_steps=2", "--dry_run")[1]
    assert text.replace("/seeds/", "/seeds-2/") in printed  # the next one's name; otherwise the same script


def test_without_a_config_all_six_in_parallel(cluster: Path, kava):
    assert kava("submit", "seeds", "--partition", "gpu")[0] == 0
    assert len(calls()) == 12
    assert len([one for one in calls() if "--dependency" in one]) == 6
    waits = [one.partition("afterok:")[2].partition(" ")[0] for one in calls()[1::2]]
    assert waits == [str(101 + 2 * n) for n in range(6)]  # each its own
    assert len(records(["outputs"])) == 6


def test_dry_run_writes_and_submits_nothing(cluster: Path, kava):
    for words in (
        ["seeds"],
        ["suite", "e1-e5", "--seeds", "1", "training.max_steps=3"],
        ["train", "--config", "debug"],
    ):
        code, out, _ = kava("submit", *words, "--dry_run")
        assert code == 0
        assert out.startswith("# sbatch --parsable ")
    assert tree() == []


def test_the_settings_of_a_suite_become_a_recipe_of_its_members(cluster: Path, kava):
    words = ["suite", "e1-e5", "--seeds", "1", "--members", "E1_baseline", "E4_rkv", "loss.alpha2_kv=3"]
    assert kava("submit", *words)[0] == 0
    shared = yaml.safe_load(Path("outputs/latent/e1-e5.yaml").read_text())
    assert (shared["extends"], shared["loss"]["alpha2_kv"]) == ("embedded", 3)
    text = Path("outputs/latent/.jobs/suite/train.sh").read_text()
    assert "kava train --config outputs/latent/e1-e5.yaml --output_dir outputs/latent/E1_baseline/seed_1" in text
    assert "kava analyze --output_base outputs/latent" in Path("outputs/latent/.jobs/suite/analyze.sh").read_text()


def test_members_that_begin_where_others_end_wait_for_them(cluster: Path, kava):
    assert kava("submit", "suite", "stages", "--config", "multi_teacher_embedded", "--seeds", "1")[0] == 0
    waits = [one.partition("afterok:")[2].partition(" ")[0] for one in calls()]
    assert waits == ["", "101", "102", "101:102:103"]


def test_extract_is_an_array_of_shards_and_a_check(cluster: Path, kava):
    words = ["--config", "adaptive", "--output_dir", "store", "--shards", "5", "--with_importance"]
    assert kava("submit", "extract", *words)[0] == 0
    text = Path("store/.jobs/extract/write.sh").read_text()
    assert "#SBATCH --array=0-4" in text
    assert 'kava extract --config adaptive --output_dir store --with_importance --shard "$INDEX"/5' in text
    assert "kava extract --output_dir store --verify" in Path("store/.jobs/extract/verify.sh").read_text()


def test_everything_in_one_job(cluster: Path, kava):
    assert kava("submit", "seeds", "--config", "debug", "--seeds", "1", "2", "--one_job")[0] == 0
    (call,) = calls()
    text = Path(call.split()[-1]).read_text()
    assert text.count("kava train") == 2
    assert text.count("--then") == 4
    assert "--keep_going" in text
    assert "--array" not in text


def test_a_preset_brings_the_guides_sizes_unless_they_are_given(cluster: Path, kava):
    words = [
        "distill",
        "--config",
        "explicit_hpc",
        "--preset",
        "ultra_large",
        "--lr",
        "3e-5",
        "--output_dir",
        "o",
        "--dry_run",
    ]
    code, out, err = kava("submit", *words)
    assert code == 0
    assert "--gres=gpu:8" in out
    assert "training.epochs=5" in out
    assert "training.learning_rate=" not in out
    assert "note: preset ultra_large sets training.epochs=5" in err
    out = kava("submit", "train", "--config", "llama1b_aug", "--preset", "ultra_large", "--dry_run")[1]
    assert "training.epochs" not in out  # the paper's recipes are as they are


def test_flags_over_site_over_preset(cluster: Path, kava):
    Path("configs").mkdir()
    Path("configs/kava_site.yaml").write_text("gpus: 2\nmem: 32G\ntime: 10h\npartition: short\nqos: low\n")
    train = ["submit", "train", "--config", "debug", "--dry_run"]
    out = kava(*train)[1]
    assert [line in out for line in ("--gres=gpu:2", "--mem=32G", "--time=10:00:00", "--partition=short")] == [True] * 4
    assert "--cpus-per-task=8" in out
    out = kava(*train, "--gpus", "1", "--mem", "0", "--partition", "long", "--nodes", "2")[1]
    assert ("--gres=gpu:1" in out, "--mem" in out, "--partition=long" in out, "--qos=low" in out) == (
        True,
        False,
        True,
        True,
    )
    out = kava(*train, "--preset", "multi_gpu")[1]  # asked for by name
    assert ("--gres=gpu:4" in out, "--mem=256G" in out, "--partition=short" in out) == (True, True, True)


def test_where_things_lie_goes_along_and_tokens_do_not(cluster: Path, kava, monkeypatch):
    monkeypatch.setenv("HF_HOME", "/shared/hugging face")
    monkeypatch.setenv("KAVA_DATA_PATH", "/data; touch injected")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    Path("site.yaml").write_text("environment: {KAVA_DATA_PATH: /site}\n")
    words = ["submit", "train", "--config", "debug", "--scheduler", "pbs", "--dry_run"]
    out = kava(*words)[1]
    assert "\nexport HF_HOME='/shared/hugging face'\n" in out
    assert "\nexport KAVA_DATA_PATH='/data; touch injected'\n" in out
    assert "hf_secret" not in out
    assert "export KAVA_DATA_PATH=/site\n" in kava(*words, "--site", "site.yaml")[1]


def test_containers_and_launchers_of_the_site(cluster: Path, kava):
    Path("site.yaml").write_text("container: apptainer exec --nv 'my image.sif'\nlauncher: mpiexec -n 2 -ppn 1\n")
    words = ["submit", "train", "--config", "debug", "--site", "site.yaml", "--dry_run", "--scheduler", "pbs"]
    assert "\n    apptainer exec --nv 'my image.sif' kava train --config debug" in kava(*words)[1]
    out = kava(*words, "--nodes", "2", "--gpus", "4")[1]
    assert "\n    mpiexec -n 2 -ppn 1 apptainer exec --nv 'my image.sif' torchrun --nnodes=2 " in out


def test_pbs_holds_the_first_job_until_the_chain_is_there(cluster: Path, kava, tmp_path: Path):
    qsub = '#!/bin/bash\necho "qsub $*" >>calls\necho $(grep -c ^qsub calls).server\n'
    for name, text in {"qsub": qsub, "qrls": qsub.replace("qsub $*", "qrls $*")}.items():
        (tmp_path / "programs" / name).write_text(text)
        (tmp_path / "programs" / name).chmod(0o755)
    assert kava("submit", "seeds", "--config", "debug", "--scheduler", "pbs")[0] == 0
    folder = "outputs/debug_multi_seed/.jobs/seeds"
    assert calls() == [
        f"qsub -h {folder}/train.sh",
        f"qsub -W depend=afterok:1.server {folder}/aggregate.sh",
        "qrls 1.server",
    ]


# ---- refusals


def test_a_schedulers_refusal_is_shown_and_nothing_is_kept(cluster: Path, kava):
    Path("refuse").write_text("train.sh")
    code, out, err = kava("submit", "seeds", "--config", "debug", "--partition", "gpuu")
    assert (code, out) == (2, "")
    assert "sbatch refused with code 1" in err
    assert "invalid partition specified: gpuu" in err
    assert not list(Path("outputs").rglob("jobs.json"))
    assert not list(Path("outputs").rglob("*.sh"))


def test_a_refusal_half_way_takes_back_what_was_submitted(cluster: Path, kava):
    Path("refuse").write_text("aggregate.sh")
    assert kava("submit", "seeds", "--config", "debug")[0] == 2
    assert calls()[-1] == "scancel 101"
    assert not list(Path("outputs").rglob("jobs.json"))
    Path("refuse").write_text("qwen05b_aug_multi_seed")
    code, _, err = kava("submit", "seeds", "--config", "debug", "qwen05b_aug")
    assert code == 2
    assert "submitted before it, and kept: 103" in err
    assert len(records(["outputs"])) == 1


def test_the_same_work_twice_at_a_time(cluster: Path, kava):
    assert kava("submit", "seeds", "--config", "debug")[0] == 0
    Path("queue").write_text("JobId=101 ArrayJobId=101 ArrayTaskId=0-2 JobState=PENDING Reason=Resources\n")
    code, _, err = kava("submit", "seeds", "--config", "debug")
    assert code == 2
    assert "job 101 of the same work is not through" in err
    Path("queue").write_text("")  # the scheduler has forgotten it
    assert kava("submit", "seeds", "--config", "debug")[0] == 0
    assert [record["name"] for record in records(["outputs"])] == ["seeds", "seeds-2"]
    text = Path("outputs/debug_multi_seed/.jobs/seeds-2/aggregate.sh").read_text()
    assert "--needs 'outputs/debug_multi_seed/.jobs/seeds-2/status-train-[0-2].json'" in text


def test_a_submit_command_that_is_not_here(cluster: Path, kava, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert "sbatch is not here" in kava("submit", "train", "--config", "debug", "--scheduler", "slurm")[2]
    assert "no scheduler is here" in kava("submit", "train", "--config", "debug")[2]
    assert not list(Path().rglob("jobs.json"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tain"], "no jobs are made of 'tain'\n  hint: did you mean 'train'?"),
        (["--config", "debug"], "VERB comes first, not '--config'"),
        (["train"], "missing option '--config'"),
        (["train", "--config", "debg"], "did you mean 'debug'"),
        (["train", "--config", "debug", "--partion", "x"], "unknown flag '--partion'\n  hint: did you mean '--partition'?"),
        (["train", "--config", "debug", "--sede", "3"], "unknown flag '--sede'\n  hint: did you mean '--seed'?"),
        (["train", "--config", "debug", "training.bach_size=3"], "did you mean 'training.batch_size'"),
        (["train", "--config", "debug", "training.batch_size=-3"], "training.batch_size = -3 is not valid"),
        (["train", "--config", "debug", "--mem", "64"], "not an amount of memory"),
        (["train", "--config", "debug", "--nodes", "0"], "nodes = 0"),
        (["train", "--config", "debug", "--preset", "big"], "unknown preset 'big'"),
        (["train", "--config", "debug", "--output_dir", "o%INDEX%"], "%INDEX% is a task's own value"),
        (["train", "--config", "debug", "--export", "SEED"], "--export SEED: no default"),
        (["train", "--config", "debug", "--log", "a b"], "log folder 'a b'"),
        (["train", "--config", "debug", "--name", "a/b"], "submission 'a/b' is not a name"),
        (["seeds", "--config", "debug", "llama1b_aug", "--output_dir", "x"], "--output_dir is for one recipe"),
        (["seeds", "--config", "debug", "system.seed=3"], "system.seed is set by --seeds"),
        (["seeds", "--config", "debug", "--jobs", "2"], "every seed is a task of its own"),
        (["seeds", "--config", "debug", "--skip_train", "--skip_eval"], "leave nothing to submit"),
        (["suite", "e1-e6"], "did you mean 'e1-e5'?"),
        (["suite", "e1-e5", "--members", "E9"], "unknown member 'E9'"),
        (["extract", "--config", "adaptive", "--output_dir", "o", "--shard", "0/2"], "say how many: --shards n"),
        (["distill", "--phase", "9"], "--phase"),
        (["distill", "--config", "debug"], "no separate teacher"),
        (["evaluate"], "missing option"),
    ],
)  # fmt: skip
def test_mistakes_cost_seconds(cluster: Path, kava, words: list[str], said: str):
    code, out, err = kava("submit", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert tree() == []


# ---- the site file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partition: gpu\npartion: x\n", "site.yaml: line 2: partion: unknown key\n  hint: did you mean 'partition'?"),
        ("sge: {pee: smp}\n", "site.yaml: line 1: sge.pee: unknown key\n  hint: did you mean 'pe'?"),
        ("directives:\n  slrum: [x]\n", "line 2: directives.slrum: unknown key\n  hint: did you mean 'slurm'?"),
        ("scheduler: slrm\n", "scheduler: 'slrm' is not one of them"),
        ("gpus: many\n", "gpus: gpus = 'many' is not a number"),
        ("mem: 64\n", "mem = '64' is not an amount of memory"),
        ("time: soon\n", "not a length of time"),
        ("partition: 'gpu; touch injected'\n", "cannot stand in a scheduler's directive"),
        ('account: "a\\n#SBATCH --exclusive"\n', "cannot stand in a scheduler's directive"),
        ('directives: {slurm: ["--x\\ntouch injected"]}\n', "more than one line"),
        ("environment: {'A;touch injected': 1}\n", "is not a variable's name"),
        ("environment: [A]\n", "environment: ['A'] is not a mapping"),
        ("setup: {a: 1}\n", "setup: {'a': 1} is not a list of lines"),
        ("portable: maybe\n", "portable: 'maybe' is not true or false"),
        ("sge: {memory_per_slot: 3}\n", "sge.memory_per_slot: 3 is not true or false"),
        ("container: [a]\n", "container: ['a'] is not text"),
        ("- a\n", "a mapping"),
        ("partition: [\n", "site.yaml: line 2"),
    ],
)
def test_mistakes_in_the_site_file(cluster: Path, kava, text: str, said: str):
    Path("site.yaml").write_text(text)
    code, _, err = kava("submit", "train", "--config", "debug", "--site", "site.yaml")
    assert code == 2
    assert said in err
    assert tree() == ["site.yaml"]


def test_where_the_site_file_is_looked_for(cluster: Path, kava, monkeypatch, tmp_path: Path):
    assert "--site nope.yaml: no such file" in kava("submit", "train", "--config", "debug", "--site", "nope.yaml")[2]
    monkeypatch.setenv("KAVA_SITE", str(tmp_path / "nope.yaml"))
    assert "KAVA_SITE" in kava("submit", "train", "--config", "debug")[2]
    (tmp_path / "nope.yaml").write_text("partition: here\n")
    assert "--partition=here" in kava("submit", "train", "--config", "debug", "--dry_run")[1]


# ---- injection


BAD = """x'; touch injected; "$(touch injected)" `touch injected` $HOME & touch injected \\ %JOB% # """


def test_nothing_in_a_name_or_a_path_is_run(cluster: Path, kava, tmp_path: Path):
    recipe = Path(f"{BAD.replace('/', '')}.yaml")
    recipe.write_text("extends: debug\n")
    (tmp_path / "programs" / "kava").write_text('#!/bin/bash\nprintf "%s\\0" "$@" >argv\nenv -0 >environment\n')
    (tmp_path / "programs" / "kava").chmod(0o755)
    Path("site.yaml").write_text(yaml.safe_dump({"environment": {"NOTE": BAD}, "setup": ["true"]}))
    words = ["submit", "train", "--config", f"./{recipe}", "--output_dir", f"outputs/{BAD}", "--site", "site.yaml"]
    for scheduler in ("slurm", "pbs", "sge", "lsf"):
        code, out, err = kava(*words, "--scheduler", scheduler, "--dry_run")
        assert code == 0, err
        done = subprocess.run(["bash", "-c", out], capture_output=True, text=True, cwd=cluster)
        assert done.returncode == 0, done.stderr
        given = Path("argv").read_text().split("\0")
        assert given[given.index("--config") + 1] == f"./{recipe}"
        assert f"outputs/{BAD}" in given
        assert f"NOTE={BAD}" in Path("environment").read_text().split("\0")
    assert not [path for path in tree() if path.endswith("injected") and "/" not in path]
    name = next(line for line in out.splitlines() if line.startswith("#BSUB -J"))
    assert set(name.removeprefix('#BSUB -J "kava-train-').removesuffix('"')) <= set("x-touchinjectedHOMEJB")


def test_a_submission_in_a_folder_with_any_name(cluster: Path, kava, monkeypatch):
    odd = cluster / "it's $(touch injected)"
    odd.mkdir()
    shutil.copy("/bin/true", odd / "true")
    monkeypatch.chdir(odd)
    assert kava("submit", "train", "--config", "debug", "--output_dir", "a b/it's")[0] == 0
    (record,) = records(["a b/it's"])
    assert Path(record["jobs"][0]["script"]).is_file()
    assert shlex.split(Path(record["jobs"][0]["script"]).read_text().splitlines()[-1])[-1] == "a b/it's"
    assert not (cluster / "injected").exists()
    assert not (odd / "injected").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "--checkpoint", "nope"], "checkpoint nope does not exist"),
        (["train", "--config", "debug", "--shards", "5"], "--shards has no effect on kava submit train"),
        (
            ["train", "--config", "debug", "--signal", "7200", "--time", "1h"],
            "the time limit is 3600 seconds (01:00:00)",
        ),
        (["train", "--config", "debug", "--account", "--wrap=id"], "account = '--wrap=id' cannot stand"),
        (["train", "--config", "debug", "--after", "1;id"], "--after '1;id' is not a job's id"),
        (["train", "--config", "debug", "--after", "afterany:3"], "is not a job's id"),
        (["train", "--config", "debug", "--log", "l$(id)"], "choose a --log of letters"),
    ],
)
def test_what_would_fail_or_do_nothing_is_refused_before_anything_is_written(cluster: Path, kava, words, said: str):
    before = sorted(Path().rglob("*"))
    code, _, err = kava("submit", *words)
    assert (code, said in err) == (2, True), err
    assert sorted(Path().rglob("*")) == before


def test_an_evaluation_may_wait_for_the_student(cluster: Path, kava):
    assert kava("submit", "evaluate", "--checkpoint", "outputs/x/best_checkpoint", "--after", "4711")[0] == 0
    assert kava("submit", "evaluate", "--checkpoint", "nope", "--dry_run")[0] == 0


def test_what_is_named_twice_is_submitted_once(cluster: Path, kava):
    code, out, err = kava("submit", "seeds", "--config", "debug", "debug", "--seeds", "1", "2", "1", "--dry_run")
    assert code == 0
    assert out.count("SEED_OF_TASK=(1 2)") == 1
    assert "--config names debug more than once" in err
    assert "--seeds names 1 more than once" in err


# ---- kava jobs


def test_states_of_jobs(cluster: Path, kava):
    assert kava("submit", "seeds", "--config", "debug")[0] == 0
    folder = Path("outputs/debug_multi_seed/.jobs/seeds")
    Path("queue").write_text(
        "JobId=105 ArrayJobId=101 ArrayTaskId=1 JobState=RUNNING Reason=None\n"
        "JobId=102 JobState=PENDING Reason=Dependency\n"
    )
    for task, facts in enumerate(({"state": "ok", "exit_code": 0}, {"state": "started"}, {"state": "started"})):
        (folder / f"status-train-{task}.json").write_text(json.dumps({"job": "101", "task": task, **facts}))
    (record,) = records(["outputs"])
    found = rows(record)
    assert [(row.label, row.task, row.state) for row in found] == [
        ("train", 0, "ok"), ("train", 1, "running"), ("train", 2, "lost"), ("aggregate", None, "pending"),
    ]  # fmt: skip
    assert summary(found) == "1 ok, 1 running, 1 pending, 1 lost"
    code, out, _ = kava("jobs")
    assert code == 0
    assert "1 ok, 1 running, 1 pending, 1 lost" in out
    assert json.loads(kava("jobs", str(folder), "--quiet")[1])[0]["state"] == "ok"
    assert "2 started" in kava("jobs", "--offline")[1]
    (folder / "status-train-1.json").write_text(json.dumps({"state": "failed", "job": "99", "exit_code": 1}))
    assert rows(record)[1].state == "running"  # of an earlier job
    assert kava("jobs", "--cancel")[1] == "cancelled: 102, 101\n"
    assert calls()[-2:] == ["scancel 102", "scancel 101"]  # who waits, first


def test_jobs_of_another_folder_and_of_a_tree_that_was_moved(cluster: Path, kava, monkeypatch: pytest.MonkeyPatch):
    assert kava("submit", "seeds", "--config", "debug")[0] == 0
    folder = Path("outputs/debug_multi_seed/.jobs/seeds")
    (folder / "status-train-0.json").write_text(json.dumps({"job": "101", "task": 0, "state": "ok", "exit_code": 0}))
    monkeypatch.chdir("/")
    assert "1 ok" in kava("jobs", str(cluster / "outputs"), "--offline")[1]
    shutil.move(str(cluster / "outputs"), str(cluster / "moved"))
    assert "1 ok" in kava("jobs", str(cluster / "moved"), "--offline")[1]


def test_time_updates_and_what_is_left_of_a_task(cluster: Path, kava):
    assert kava("submit", "seeds", "--config", "debug")[0] == 0
    folder, run = Path("outputs/debug_multi_seed/.jobs/seeds"), Path("outputs/debug_multi_seed/seed_42")
    began = time.time() - 100
    status = {
        "job": "101", "task": 0, "state": "started", "began": datetime.fromtimestamp(began, timezone.utc).isoformat(),
        "command": [["kava", "train", "--config", "debug", "--output_dir", str(run)], ["kava", "evaluate"]],
    }  # fmt: skip
    (folder / "status-train-0.json").write_text(json.dumps(status))
    Path("queue").write_text("JobId=104 ArrayJobId=101 ArrayTaskId=0 JobState=RUNNING Reason=None\n")

    def shown() -> tuple[float, int | None, int | None, float | None]:
        row = json.loads(kava("jobs", "--quiet")[1])[0]
        assert row["state"] == "running"
        return row["seconds"], row["updates"], row["total"], row["left"]

    assert shown()[1:] == (None, None, None)  # it has logged nothing yet
    run.mkdir()
    (run / "recipe.yaml").write_text("training: {max_steps: 40}\n")
    log = run / "log.jsonl"
    log.write_text('{"step": 5, "loss": 1}\n{"step": 10, "loss": 1}\n{"step": 1')
    os.utime(log, (began + 50, began + 50))
    seconds, *rest, left = shown()
    assert rest == [10, 40]
    assert seconds == pytest.approx(100, abs=30)
    assert left == pytest.approx(150, abs=1)  # 5 s each
    assert "10/40" in kava("jobs")[1]
    (run / "checkpoint-step5").mkdir()  # of an earlier attempt: 5 updates were made since
    os.utime(run / "checkpoint-step5", (began - 10, began - 10))
    assert shown()[3] == pytest.approx(300, abs=1)
    (run / "recipe.yaml").write_text("training: {epochs: 3, max_steps: null}\n")
    log.write_text('{"step": 10, "epoch": 0.5}\n')
    assert shown()[2] == 60
    (folder / "status-train-0.json").write_text(json.dumps(status | {"ended": status["began"], "state": "ok"}))
    assert kava("jobs", "--offline")[1].splitlines()[2].split()[4:8] == ["ok", "10/60", "00:00:00", "-"]


def test_nothing_to_show(cluster: Path, kava):
    assert "no folder outputs" in kava("jobs")[2]
    Path("outputs").mkdir()
    assert kava("jobs")[1] == "no jobs under outputs\n"
    assert kava("jobs", "--cancel")[1] == "cancelled: nothing was open\n"
    Path("outputs/x/.jobs/seeds").mkdir(parents=True)
    Path("outputs/x/.jobs/seeds/jobs.json").write_text("{}")
    assert "jobs.json: name is missing" in kava("jobs")[2]


def test_a_cancel_that_is_refused(cluster: Path, kava, tmp_path: Path):
    assert kava("submit", "train", "--config", "debug")[0] == 0
    (tmp_path / "programs" / "scancel").write_text("#!/bin/bash\necho 'scancel: error: not yours' >&2\nexit 1\n")
    code, _, err = kava("jobs", "--cancel")
    assert code == 2
    assert "slurm did not cancel 101: scancel: error: not yours" in err


def test_a_half_finished_seed_keeps_the_aggregate_from_running_and_is_continued(cluster: Path, kava):
    assert kava("submit", "seeds", "--config", "debug")[0] == 0
    folder = Path("outputs/debug_multi_seed/.jobs/seeds")
    text = (folder / "aggregate.sh").read_text()
    for task, state in enumerate(("ok", "ok", "started")):
        (folder / f"status-train-{task}.json").write_text(json.dumps({"state": state, "job": "101"}))
    words = shlex.split(text[text.index("exec kava task") :].removeprefix("exec kava ").replace("\\\n", " "))
    code, _, err = kava(*words[: words.index("--")], "--", "touch", "ran")
    assert code == 3
    assert "status-train-2.json says started (job 101)" in err
    assert not Path("ran").exists()
    assert "--resume auto" in (folder / "train.sh").read_text()
