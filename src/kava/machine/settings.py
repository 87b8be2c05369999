"""The environment file: every key, what it allows and does; the shipped one with the project's on top.

The shipped file holds the only defaults. A key that is not ours, and a value that would change nothing, is an error
that says why.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kava.config import show
from kava.config.text import parse_text
from kava.errors import ConfigError

SHIPPED = Path(__file__).parent / "environment_config.yaml"
IN_PROJECT = Path("configs") / "environment_config.yaml"
PATH_NAMES = ("models", "data", "cache", "output", "checkpoints")
PRECISIONS = ("bf16", "fp16", "fp32")


class Key(NamedTuple):
    """What a key allows, in words and as a test; `why` is said when a value is refused."""

    allowed: str
    test: Callable[[Any], bool]
    why: str = ""


def one_of(*values: Any, why: str = "") -> Key:
    def test(value: Any) -> bool:
        return any(type(value) is type(one) and value == one for one in values)

    return Key(" or ".join(show(value) for value in values), test, why)


def integer(low: int, high: int, *words: str) -> Key:
    def test(value: Any) -> bool:
        return value in words if isinstance(value, str) else type(value) is int and low <= value <= high

    return Key(" or ".join([*words, f"an integer from {low} to {high}"]), test)


def _words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and one for one in value)


def _patterns(value: Any) -> bool:
    return _words(value) and all(set(re.findall(r"{(.*?)}", one)) <= {"username"} for one in value)


def _precisions(value: Any) -> bool:
    return value in PRECISIONS or (_words(value) and bool(value) and set(value) <= set(PRECISIONS))


FLAG = one_of(True, False)
AUTO_FLAG = one_of("auto", True, False)
TEXT = Key("a text that is not empty", lambda value: isinstance(value, str) and value != "")
VARIABLE = Key("a variable's name", lambda value: isinstance(value, str) and value.isidentifier())
NAMES = Key("a list of package names", _words)
PATTERNS = Key("a list of folders; {username} is the one name that is filled in", _patterns)
PRECISION_LIST = Key("bf16, fp16, fp32 or a list of them, best first", _precisions)
VERSION = Key(
    'a version in quotes, such as "2.6"', lambda value: isinstance(value, str) and re.match(r"\d", value) is not None
)
SHARE = Key(
    "a number above 0, 1 at most",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1,
)
MEASURED = "sizes are always measured on the cache itself: with grouped heads, those in a model's config are others"
KEYS: dict[str, Key] = {
    "environment_type": one_of("auto", "local", "hpc", "cloud"),
    "hardware.gpu_detection.auto_detect": FLAG,
    "hardware.gpu_detection.fallback_to_cpu": FLAG,
    "hardware.multi_gpu_strategy": one_of("auto", "ddp", "single"),
    "hardware.gpu_selection": one_of("auto", why="a run takes the GPUs that CUDA_VISIBLE_DEVICES names"),
    "hardware.memory_fraction": SHARE,
    "hardware.precision.auto_detect": FLAG,
    "hardware.precision.fallback": one_of(*PRECISIONS),
    "model_dimensions.auto_detect": one_of(True, why=MEASURED),
    "model_dimensions.kv_extraction.method": one_of("cross_layer_aggregation", "weighted", "last_layer"),
    "model_dimensions.kv_extraction.detect_at_runtime": one_of(True, why=MEASURED),
    "model_dimensions.projector.initialization": one_of("dynamic", why=MEASURED),
    "model_dimensions.projector.validate_shapes": one_of(True, why="shapes are always checked; it costs nothing"),
    "model_dimensions.projector.test_forward_pass": one_of(True, why="it is always made; it costs nothing"),
    "model_dimensions.on_dimension_mismatch": one_of("auto_adapt", why=MEASURED),
    **{f"paths.env_vars.{name}": VARIABLE for name in PATH_NAMES},
    **{f"paths.defaults.{name}": TEXT for name in PATH_NAMES},
    "paths.hpc_patterns": PATTERNS,
    "dependencies.required": NAMES,
    "dependencies.optional": NAMES,
    "dependencies.version_check": FLAG,
    "training.auto_tune": FLAG,
    "training.batch_size.auto_detect": FLAG,
    "training.batch_size.strategy": one_of("max_fit", "conservative", "fixed"),
    "training.batch_size.base": integer(1, 4096),
    "training.batch_size.max": integer(1, 4096),
    "training.gradient_accumulation.auto_compute": FLAG,
    "training.gradient_accumulation.target_batch_size": integer(1, 1_000_000),
    "training.mixed_precision.prefer": one_of("auto", *PRECISIONS),
    "training.torch_compile": AUTO_FLAG,
    "training.gradient_checkpointing": AUTO_FLAG,
    "training.dataloader.num_workers": integer(0, 256, "auto"),
    "training.dataloader.pin_memory": AUTO_FLAG,
    "training.dataloader.prefetch_factor": integer(1, 1024),
    "logging.backends.tensorboard": AUTO_FLAG,
    "logging.backends.wandb": AUTO_FLAG,
    "logging.console": one_of(True, why="--quiet of a verb keeps the console still"),
    "logging.file": one_of(True, why="a run's log files are always written"),
    "logging.level": one_of("INFO", why="there is one level; --quiet leaves warnings only"),
    "error_handling.on_incompatible_env": one_of("adapt", "error"),
    "error_handling.on_dimension_error": one_of("auto_fix", why=MEASURED),
    "error_handling.on_no_gpu": one_of("auto", "error", "cpu"),
    "error_handling.on_oom": one_of("reduce_batch", "error"),
}
FREE = {  # mappings whose keys are the user's
    "hardware.precision.supported_dtypes": PRECISION_LIST,
    "dependencies.min_versions": VERSION,
}
REJECTED = {
    "hardware.allow_growth": "torch takes memory only when it needs it; other libraries have to be told to",
    "hardware.gpu_detection.allow_growth": "torch takes memory only when it needs it; other libraries have to be told to",
    "logging.backends.mlflow": "there is no MLflow writer; tensorboard, wandb and trackio (logging.report_to) are there",
}
SECTIONS = {name[: match.start()] for name in [*KEYS, *FREE, *REJECTED] for match in re.finditer(r"\.", name)}


@dataclass(frozen=True)
class Settings:
    """Every key's value; `source` is the file on top of the shipped one, None where there is none."""

    values: Mapping[str, Any]
    source: Path | None

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def cpu_allowed(self) -> bool:
        """Whether training may take the CPU because no GPU is there."""
        on_no_gpu = self["error_handling.on_no_gpu"]
        return self["hardware.gpu_detection.fallback_to_cpu"] if on_no_gpu == "auto" else on_no_gpu == "cpu"

    def minimum(self, package: str) -> str | None:
        """The lowest version of a package that will do, or None."""
        return self["dependencies.min_versions"].get(package) if self["dependencies.version_check"] else None


def load_settings(config_path: str | Path | None, root: Path) -> Settings:
    """The shipped file under `config_path`, or under the one in the project's root where there is one."""
    values = _read(SHIPPED, SHIPPED.name)
    source = Path(config_path) if config_path is not None else root / IN_PROJECT
    if config_path is None and not source.is_file():
        return Settings(values, None)
    own = _read(source, str(source))
    _refuse_conflict(own, str(source))
    floors = dict(values["dependencies.min_versions"])
    merged = {**values, **own}
    for name, floor in own.get("dependencies.min_versions", {}).items():
        floors[name] = max(floor, floors.get(name, floor), key=version_numbers)
    merged["dependencies.min_versions"] = floors
    return Settings(merged, source)


def version_numbers(text: str) -> tuple[int, ...]:
    """The release of a version as numbers that can be compared: "2.5.1+cu121" is (2, 5, 1), "2.0" is (2,)."""
    found = re.match(r"\d+(\.\d+)*", text)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _read(path: Path, label: str) -> dict[str, Any]:
    """The values of one file by their dotted keys."""
    try:
        data = parse_text(path.read_text(encoding="utf-8-sig"), label)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{label}: not a text file in UTF-8 ({error.reason})") from error
    except OSError as error:
        raise ConfigError(
            f"{label}: cannot be read: {error.strerror}", "leave it out to use the shipped one"
        ) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{label}: this is {type(data).__name__}, not a mapping of sections")
    found: dict[str, Any] = {}
    _visit(data, "", label, found)
    return found


def _visit(node: Mapping[Any, Any], prefix: str, label: str, found: dict[str, Any]) -> None:
    for part, value in node.items():
        name = f"{prefix}{part}"
        if name in REJECTED:
            raise ConfigError(f"{label}: {name} is not supported: {REJECTED[name]}", f"leave {name} out")
        if name in SECTIONS:
            if isinstance(value, Mapping):
                _visit(value, name + ".", label, found)
            elif value is not None:
                raise ConfigError(f"{label}: {name} = {show(value)} is not valid: it is a section of keys")
        elif name in FREE:
            found[name] = _mapping(value, name, label)
        elif name in KEYS:
            _check(KEYS[name], value, name, label)
            found[name] = value
        else:
            raise _unknown(name, label)


def _mapping(value: Any, name: str, label: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{label}: {name} = {show(value)} is not valid: it is a mapping")
    for part, one in value.items():
        _check(FREE[name], one, f"{name}.{part}", label)
    return {str(part): one for part, one in value.items()}


def _check(key: Key, value: Any, name: str, label: str) -> None:
    if not key.test(value):
        raise ConfigError(
            f"{label}: {name} = {show(value)} is not {'supported' if key.why else 'valid'}: needs {key.allowed}",
            key.why or None,
        )


def _unknown(name: str, label: str) -> ConfigError:
    leaf = name.rpartition(".")[2]
    known = [*KEYS, *FREE]
    same = [key for key in known if key.rpartition(".")[2] == leaf]
    close = same or difflib.get_close_matches(name, [*known, *sorted(SECTIONS)], n=1, cutoff=0.6)
    return ConfigError(
        f"{label}: unknown key {name!r}",
        f"did you mean {close[0]!r}?"
        if close
        else "sections: " + ", ".join(sorted(s for s in SECTIONS if "." not in s)),
    )


def _refuse_conflict(own: Mapping[str, Any], label: str) -> None:
    """Two keys say what happens without a GPU; a file that sets both must not contradict itself."""
    fallback = own.get("hardware.gpu_detection.fallback_to_cpu")
    on_no_gpu = own.get("error_handling.on_no_gpu", "auto")
    if fallback is not None and on_no_gpu != "auto" and fallback != (on_no_gpu == "cpu"):
        raise ConfigError(
            f"{label}: hardware.gpu_detection.fallback_to_cpu = {show(fallback)}, but "
            f"error_handling.on_no_gpu = {on_no_gpu}",
            "set one of them",
        )
