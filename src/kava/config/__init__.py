"""Recipes: typed, merged from files and the command line, every value with its source (level 0: no torch).

    recipe = load_recipe("llama1b_aug", ["training.batch_size=64", "--rkv.lambda", "0.3"])

A recipe file holds only what differs from its parent (`extends:`); a file without a parent starts from the defaults in
`schema.py`, the one place where a default is written.
"""

from __future__ import annotations

from kava.config.compare import differing
from kava.config.keys import KEYS, Key, show
from kava.config.load import (
    Row,
    explain,
    list_recipes,
    load_recipe,
    parse_overrides,
    recipe_path,
    save_recipe,
)
from kava.config.schema import (
    BUILTIN_DATASETS,
    HF_OWNED,
    LINEAR_LAYERS,
    METHODS,
    TAGS,
    About,
    DatasetConfig,
    EvaluationConfig,
    ExplicitConfig,
    GeneratorConfig,
    LatentConfig,
    LoggingConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    ProjectorConfig,
    Recipe,
    RkvConfig,
    SystemConfig,
    TeacherConfig,
    TrainingConfig,
)

__all__ = [
    "BUILTIN_DATASETS",
    "HF_OWNED",
    "KEYS",
    "LINEAR_LAYERS",
    "METHODS",
    "TAGS",
    "About",
    "DatasetConfig",
    "EvaluationConfig",
    "ExplicitConfig",
    "GeneratorConfig",
    "Key",
    "LatentConfig",
    "LoggingConfig",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "ProjectorConfig",
    "Recipe",
    "RkvConfig",
    "Row",
    "SystemConfig",
    "TeacherConfig",
    "TrainingConfig",
    "differing",
    "explain",
    "list_recipes",
    "load_recipe",
    "parse_overrides",
    "recipe_path",
    "save_recipe",
    "show",
]
