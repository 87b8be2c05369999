"""What keys of a recipe are made of: spellings, choices, ranges, where a default comes from, when a value is ignored."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationInfo,
    field_validator,
)

from kava.registry import names_a_class

TAGS = ("known", "noted", "open", "ours")
MODULAR = ("chains", "chains_nl", "variables", "variables_nl")
LONG_CHAINS = ("long_chains", "long_chains_nl")
BUILTIN_DATASETS = (*MODULAR, *LONG_CHAINS, "reachability", "multiplication")
METHODS = ("rkv", "rkv_original", "full", "crop", "random", "uniform", "steps")
METHOD_ALIASES = {"r-kv": "rkv", "right_crop": "crop", "right": "crop"}
TABLE_ROW = "Table 6, row "
LARGEST = 2**32 - 1  # the largest seed of NumPy; sizes and counts beyond it overflow somewhere below Python
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")  # control characters, halves of characters


def _spelling(table: dict[Any, str]) -> BeforeValidator:
    """Other spellings of a choice (upper case too); anything unknown passes on to the type's own check."""

    def canonical(value: Any) -> Any:
        word = value.lower() if isinstance(value, str) else value
        return table.get(word, word) if isinstance(word, str | bool | None) else value

    return BeforeValidator(canonical)


def as_tuple(value: Any) -> Any:
    """`a` and `[a]` mean the same list."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Variants:
    """The known names of a variant that may also be "package.module:Name"."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"one of {', '.join(self.names)}, or package.module:Name"


def variant(names: tuple[str, ...], aliases: Mapping[str, str] = MappingProxyType({})) -> Any:
    """The type of a key that names a variant, in any spelling of `aliases`."""
    variants = Variants(names)

    def known(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        name = aliases.get(value.lower(), value)
        if name not in names and not names_a_class(name):
            raise ValueError(str(variants))
        return name

    return Annotated[str, BeforeValidator(known), variants]


def _stays_inside(name: str) -> str:
    separator = "\\" in name and os.name == "nt"
    if separator or re.search(r"[/\x00-\x1f\x7f]", name) or len(name) > 150:
        raise ValueError("runs get folders of this name: at most 150 characters, no slash and no control character")
    return name


FolderName = Annotated[str, AfterValidator(_stays_inside)]
Flag = Annotated[bool, Strict(False)]
Count = Annotated[int, Field(ge=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
DISTANCES = ("smooth_l1", "mse", "l1")
ROUTERS = ("mlp", "gate", "attention")
PROMPTS = {
    "default": "{question}",
    "cot": "Think step by step.\n{question}",
    "direct": "Give the answer at once.\n{question}",
}
DistanceLoss = Annotated[Literal["smooth_l1", "mse", "l1"], _spelling({"smoothl1": "smooth_l1"})]
KVLoss = variant((*DISTANCES, "cosine", "mercator", "hybrid", "structural"), {"smoothl1": "smooth_l1"})
Method = variant(METHODS, METHOD_ALIASES)
FusionName = variant(("fixed", "similarity", "learnable"))
RouterName = variant(ROUTERS)
Shuffle = Annotated[Literal["none", "time", "examples"], _spelling({True: "time", False: "none"})]
MatchStart = Annotated[
    Literal["none", "moments", "least_squares"],
    _spelling({True: "moments", "true": "moments", False: "none", "false": "none"}),
]
Precision = Annotated[Literal["no", "bf16", "fp16"], _spelling({False: "no"})]
Optimizer = Annotated[str, _spelling({"adamw": "adamw_torch"})]
Scheduler = Literal[
    "cosine", "linear", "constant", "constant_with_warmup", "polynomial", "cosine_with_restarts", "inverse_sqrt"
]


def _rises(value: tuple[float, float]) -> tuple[float, float]:
    start, end = value
    if not 0 <= start <= end <= 1:
        raise ValueError(f"[{start:g}, {end:g}] are not two shares of the updates, 0 <= from <= to <= 1")
    return value


Ramp = Annotated[tuple[float, float], BeforeValidator(as_tuple), AfterValidator(_rises)]


class Idle:
    """Why a setting would be ignored: `when(recipe)` holds, because of the values of the settings `causes`."""

    def __init__(self, when: Callable[[Any], bool], reason: str, *causes: str):
        self.when, self.reason, self.causes = when, reason, causes


Rules = Idle | tuple[Idle, ...]


def knob(default: Any, tag: str, description: str, source: str = "", *, idle: Rules = (), **limits: Any) -> Any:
    """One key of a recipe: its default, how well that is known, what it does, its range, and when it is ignored."""
    source = source or ("" if tag == "ours" else TABLE_ROW + "Llama-1B AUG")
    extra: Any = {"tag": tag, "source": source, "idle": (idle,) if isinstance(idle, Idle) else idle}
    return Field(default, description=description, json_schema_extra=extra, **limits)


def section(default: Any, *idle: Idle) -> Any:
    """A section of keys, all of which are ignored where one of `idle` holds."""
    extra: Any = {"idle": idle}
    return Field(default, json_schema_extra=extra)


def _gguf_name(value: str) -> str:
    """The name of a .gguf file, relative to its model's folder."""
    path = PurePosixPath(value.replace("\\", "/"))
    if path.suffix != ".gguf" or path.is_absolute() or ".." in path.parts:
        raise ValueError(
            f"{value!r} is no .gguf file inside the model's folder or repository, for example model-q8_0.gguf"
        )
    return value


GgufFile = Annotated[str, AfterValidator(_gguf_name)] | None


def check_plain(value: Any) -> None:
    """Raises where a value holds what no tensor, file or terminal takes: a huge integer, control characters."""
    if isinstance(value, str) and (odd := _NO_TEXT.search(value)):
        raise ValueError(f"it holds the character {odd[0]!a}, which is no text")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"integers go up to {LARGEST}")
    if isinstance(value, Mapping | list | tuple):
        for part in (*value, *value.values()) if isinstance(value, Mapping) else value:
            check_plain(part)


class RecipeSection(BaseModel):
    """Frozen; unknown keys, wrong types, NaN and infinity are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=False, populate_by_name=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):  # a section checks its own keys
            check_plain(value)
        return value
