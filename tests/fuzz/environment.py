"""Cases about environment variables: those of several processes, of folders and of libraries."""

from argv import TINY
from behaviour import Case
from hypothesis import strategies as st

REFUSED_TRAINING = ("train", "--config", "debug", "model.name=base", *TINY, "--output_dir", "folder/x/run")
PROCESSES = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
NOT_NUMBERS = ("x", "", " ", "-2", "1.5", "2,2", "0x2", "\u00bd")
FOLDERS = ("KAVA_PROJECT_ROOT", "KAVA_MODEL_PATH", "KAVA_DATA_PATH", "KAVA_CACHE_PATH", "KAVA_OUTPUT_PATH", "HF_HOME", "HOME",
           "HF_HUB_CACHE", "HF_DATASETS_CACHE", "KAVA_SITE", "TMPDIR", "XDG_CACHE_HOME", "NETRC")  # fmt: skip
PLACES = (
    "",
    "file",
    "file/x",
    "no/such/place",
    "folder",
    "a" * 5000,
    "\udcff",
    "~",
    "~nobody_of_this_name",
    "\u4e2d\u6587",
)
SETTINGS = ("COLUMNS", "LINES", "TERM", "NO_COLOR", "FORCE_COLOR", "LANG", "TZ", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
            "WANDB_MODE", "SLURM_JOB_ID", "PBS_JOBID", "KAVA_PARENT", "ACCELERATE_USE_FSDP", "USER")  # fmt: skip
ODD = ("", "x", "-1", "0", "9" * 30, "nan", "\x1b[2J", "\u4e2d", "\udcff")
READERS = (
    Case(("config", "--get", "debug")),
    Case(("data", "check", "chains", *TINY)),
    Case(("jobs",)),
    Case(("submit", "train", "--config", "debug", "--dry_run")),
    Case(("show", "results/E1_baseline/seed_1"), fixtures=("results",)),
    Case(("align", "show", "--student_model", "base", "--teacher_model", "base", "--text", "1"), fixtures=("base",)),
)


@st.composite
def processes(draw: st.DrawFn) -> Case:
    """A training under an incomplete or impossible set of torchrun's variables."""
    variables = dict(PROCESSES)
    name = draw(st.sampled_from(list(variables)))
    kind = draw(st.sampled_from(("missing", "wrong", "alone")))
    if kind == "missing" and name != "WORLD_SIZE":
        del variables[name]
    elif name == "MASTER_ADDR":
        variables = {"WORLD_SIZE": draw(st.sampled_from(("x", "2", "0", "99999999999999999999")))}
    else:
        value = draw(st.sampled_from(NOT_NUMBERS))
        variables = {name: value} if kind == "alone" else {**variables, name: value}
    return Case(REFUSED_TRAINING, {"folder/x": b"x"}, ("base",), f"{variables} is no set of processes", variables)


@st.composite
def places(draw: st.DrawFn) -> Case:
    """A variable that names a folder or a file names an odd one."""
    return _with(draw, draw(st.sampled_from(FOLDERS)), draw(st.sampled_from(PLACES)))


@st.composite
def odd_values(draw: st.DrawFn) -> Case:
    """Another variable has an odd value."""
    return _with(draw, draw(st.sampled_from(SETTINGS)), draw(st.sampled_from(ODD)))


def _with(draw: st.DrawFn, name: str, value: str) -> Case:
    reader = draw(st.sampled_from(READERS))
    files = {"file": b"x", "folder/x": b"x"}
    return Case(reader.words, files, reader.fixtures, "", {name: value})


CASES = st.one_of(processes(), places(), odd_values())
