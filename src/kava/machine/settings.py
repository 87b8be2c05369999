"""The environment file: a model of every key; the shipped file holds the defaults, a project's file goes on top.

An unknown key is an error that names the nearest one; a value that would change nothing is an error that says why.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, create_model

from kava.config import show
from kava.config.text import parse_text, read_text
from kava.errors import ConfigError

SHIPPED = Path(__file__).parent / "environment_config.yaml"
IN_PROJECT = Path("configs") / "environment_config.yaml"
FALLBACK, ON_NO_GPU = "hardware.gpu_detection.fallback_to_cpu", "error_handling.on_no_gpu"  # say what no GPU means
PATH_NAMES = ("models", "data", "cache", "output", "checkpoints")

# A Literal says itself what it allows, any other type in its description; a text beside it is the reason for a limit.
MEASURED = "sizes are always measured on the cache itself: with grouped heads, those in a model's config are others"
FLAG = Annotated[bool, Field(description="true or false")]
AUTO_FLAG = Annotated[Literal["auto"] | bool, Field(description="auto or true or false")]
PRECISION = Literal["bf16", "fp16", "fp32"]
VARIABLE = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$", description="a variable's name")]
FOLDER = Annotated[str, Field(min_length=1, description="a text that is not empty")]
PACKAGES = Annotated[list[Annotated[str, Field(min_length=1)]], Field(description="a list of package names")]
WORKERS = Annotated[
    Literal["auto"] | Annotated[int, Field(ge=0, le=256)], Field(description="auto or an integer from 0 to 256")
]
SHARE = Annotated[float, Field(gt=0, le=1, description="a number above 0, 1 at most")]
PATTERNS = Annotated[
    list[Annotated[str, Field(pattern=r"^([^{}]|\{username\})+$")]],
    Field(description="a list of folders; {username} is the one name that is filled in"),
]
PRECISIONS = Annotated[
    dict[str, PRECISION | Annotated[list[PRECISION], Field(min_length=1)]],
    Field(description="bf16, fp16, fp32 or a list of them, best first"),
]
VERSIONS = Annotated[
    dict[str, Annotated[str, Field(pattern=r"^\d")]], Field(description='a version in quotes, such as "2.6"')
]


def _true(value: bool) -> bool:
    assert value
    return value


def integer(low: int, high: int) -> Any:
    return Annotated[int, Field(ge=low, le=high, description=f"an integer from {low} to {high}")]


TRUE = Annotated[bool, AfterValidator(_true), Field(description="true")]
TYPES: dict[str, Any] = {
    "environment_type": Literal["auto", "local", "hpc", "cloud"],
    "hardware.gpu_detection.auto_detect": FLAG,
    "hardware.gpu_detection.fallback_to_cpu": FLAG,
    "hardware.multi_gpu_strategy": Literal["auto", "ddp", "single"],
    "hardware.gpu_selection": Annotated[Literal["auto"], "a run takes the GPUs that CUDA_VISIBLE_DEVICES names"],
    "hardware.memory_fraction": SHARE,
    "hardware.precision.auto_detect": FLAG,
    "hardware.precision.fallback": PRECISION,
    "hardware.precision.supported_dtypes": PRECISIONS,
    "model_dimensions.auto_detect": Annotated[TRUE, MEASURED],
    "model_dimensions.kv_extraction.method": Literal["cross_layer_aggregation", "weighted", "last_layer"],
    "model_dimensions.kv_extraction.detect_at_runtime": Annotated[TRUE, MEASURED],
    "model_dimensions.projector.initialization": Annotated[Literal["dynamic"], MEASURED],
    "model_dimensions.projector.validate_shapes": Annotated[TRUE, "shapes are always checked; it costs nothing"],
    "model_dimensions.projector.test_forward_pass": Annotated[TRUE, "it is always made; it costs nothing"],
    "model_dimensions.on_dimension_mismatch": Annotated[Literal["auto_adapt"], MEASURED],
    **{f"paths.env_vars.{name}": VARIABLE for name in PATH_NAMES},
    **{f"paths.defaults.{name}": FOLDER for name in PATH_NAMES},
    "paths.hpc_patterns": PATTERNS,
    "dependencies.required": PACKAGES,
    "dependencies.optional": PACKAGES,
    "dependencies.version_check": FLAG,
    "dependencies.min_versions": VERSIONS,
    "training.auto_tune": FLAG,
    "training.batch_size.auto_detect": FLAG,
    "training.batch_size.strategy": Literal["max_fit", "conservative", "fixed"],
    "training.batch_size.base": integer(1, 4096),
    "training.batch_size.max": integer(1, 4096),
    "training.gradient_accumulation.auto_compute": FLAG,
    "training.gradient_accumulation.target_batch_size": integer(1, 1_000_000),
    "training.mixed_precision.prefer": Literal["auto", "bf16", "fp16", "fp32"],
    "training.torch_compile": AUTO_FLAG,
    "training.gradient_checkpointing": AUTO_FLAG,
    "training.dataloader.num_workers": WORKERS,
    "training.dataloader.pin_memory": AUTO_FLAG,
    "training.dataloader.prefetch_factor": integer(1, 1024),
    "logging.backends.tensorboard": AUTO_FLAG,
    "logging.backends.wandb": AUTO_FLAG,
    "logging.console": Annotated[TRUE, "--quiet of a verb keeps the console still"],
    "logging.file": Annotated[TRUE, "a run's log files are always written"],
    "logging.level": Annotated[Literal["INFO"], "there is one level; --quiet leaves warnings only"],
    "error_handling.on_incompatible_env": Literal["adapt", "error"],
    "error_handling.on_dimension_error": Annotated[Literal["auto_fix"], MEASURED],
    "error_handling.on_no_gpu": Literal["auto", "error", "cpu"],
    "error_handling.on_oom": Literal["reduce_batch", "error"],
}
REJECTED = {
    "hardware.allow_growth": "torch takes memory only when it needs it; other libraries have to be told to",
    "hardware.gpu_detection.allow_growth": "torch takes memory only when it needs it; other libraries have to be told to",
    "logging.backends.mlflow": "there is no MLflow writer; tensorboard, wandb and trackio (logging.report_to) are there",
}
REQUIRED: dict[str, Any] = {key: (kind, ...) for key, kind in TYPES.items()}
EnvironmentFile = create_model("EnvironmentFile", __config__=ConfigDict(extra="forbid", strict=True), **REQUIRED)
FIELDS = EnvironmentFile.model_fields
# FREE: the keys below are the user's.
FREE = {key: field for key, field in FIELDS.items() if get_origin(field.annotation) is dict}
KEYS = {key: field for key, field in FIELDS.items() if key not in FREE}
SECTIONS = {name[: dot.start()] for name in [*FIELDS, *REJECTED] for dot in re.finditer(r"\.", name)}


@dataclass(frozen=True)
class Settings:
    """Every key's value; `source` is the file on top of the shipped one, or None."""

    values: Mapping[str, Any]
    source: Path | None

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def cpu_allowed(self) -> bool:
        """Whether training may take the CPU where there is no GPU."""
        return self[FALLBACK] if self[ON_NO_GPU] == "auto" else self[ON_NO_GPU] == "cpu"


def load_settings(config_path: str | Path | None, root: Path) -> Settings:
    """The shipped file under `config_path`, or under the one in the project's root where there is one."""
    shipped = _read(SHIPPED, SHIPPED.name)
    source = Path(config_path) if config_path is not None else root / IN_PROJECT
    if config_path is None and not source.is_file():
        return Settings(shipped, None)
    own = _read(source, str(source))
    merged = {**shipped, **own}
    try:
        EnvironmentFile.model_validate(merged)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False)[0], merged, str(source)) from None
    fallback, on_no_gpu = own.get(FALLBACK), own.get(ON_NO_GPU, "auto")
    if fallback is not None and on_no_gpu != "auto" and fallback != (on_no_gpu == "cpu"):
        conflict = f"{FALLBACK} = {show(fallback)}, but {ON_NO_GPU} = {on_no_gpu}"
        raise ConfigError(f"{source}: {conflict}", "set one of them")
    floors = dict(shipped["dependencies.min_versions"])
    for name, floor in own.get("dependencies.min_versions", {}).items():
        floors[name] = max(floor, floors.get(name, floor), key=version_numbers)
    return Settings({**merged, "dependencies.min_versions": floors}, source)


def version_numbers(text: str) -> tuple[int, ...]:
    """The release of a version as numbers that can be compared: "2.5.1+cu121" is (2, 5, 1), "2.0" is (2,)."""
    release = re.match(r"\d+(\.\d+)*", text)
    numbers = [int(part) for part in release[0].split(".")] if release else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _read(path: Path, label: str) -> dict[str, Any]:
    """The values of one file by their dotted keys, unchecked."""
    data = parse_text(read_text(path, label, "leave it out to use the shipped one"), label)
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{label}: this is {type(data).__name__}, not a mapping of sections")
    return _flat(data or {}, "")


def _flat(node: Mapping[Any, Any], prefix: str) -> dict[str, Any]:
    """Nested sections by dotted keys; a section or mapping that is empty stands for no keys."""
    flat: dict[str, Any] = {}
    for name, value in ((f"{prefix}{part}", value) for part, value in node.items()):
        if name in SECTIONS and isinstance(value, Mapping | None):
            flat |= _flat(value or {}, name + ".")
        else:
            flat[name] = {} if name in FREE and value is None else value
    return flat


def _refusal(error: Any, values: Mapping[str, Any], label: str) -> ConfigError:
    """The error for pydantic's first complaint: file, key, value, and what the key allows."""
    name, *inner = error["loc"]
    if name in SECTIONS:
        return ConfigError(f"{label}: {name} = {show(values[name])} is not valid: it is a section of keys")
    if error["type"] == "extra_forbidden":
        return _unknown(name, label)
    if error["type"] == "dict_type":
        return ConfigError(f"{label}: {name} = {show(values[name])} is not valid: it is a mapping")
    field, value = FIELDS[name], values[name][inner[0]] if name in FREE else values[name]
    key = f"{name}.{inner[0]}" if name in FREE else name
    needs = field.description or " or ".join(show(choice) for choice in get_args(field.annotation))
    reason = next((text for text in field.metadata if isinstance(text, str)), None)
    kind = "supported" if reason else "valid"
    return ConfigError(f"{label}: {key} = {show(value)} is not {kind}: needs {needs}", reason)


def _unknown(name: str, label: str) -> ConfigError:
    if name in REJECTED:
        return ConfigError(f"{label}: {name} is not supported: {REJECTED[name]}", f"leave {name} out")
    leaf = name.rpartition(".")[2]
    same = [key for key in FIELDS if key.rpartition(".")[2] == leaf]
    close = same or difflib.get_close_matches(name, [*FIELDS, *sorted(SECTIONS)], n=1, cutoff=0.6)
    sections = ", ".join(sorted(section for section in SECTIONS if "." not in section))
    hint = f"did you mean {close[0]!r}?" if close else f"sections: {sections}"
    return ConfigError(f"{label}: unknown key {name!r}", hint)
