"""Recipes: typed, merged from files and the command line, every value with its source (level 0: no torch).

    recipe = load_recipe("llama1b_aug", ["training.batch_size=64", "--rkv.lambda", "0.3"])

A recipe file holds only what differs from its parent (`extends:`); a file without a parent starts from the defaults in
`schema.py`, the one place where a default is written.
"""

from __future__ import annotations

from kava.config.compare import differing
from kava.config.fields import BUILTIN_DATASETS, LINEAR_LAYERS, METHODS, PROMPTS, TAGS
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
    HF_OWNED,
    About,
    DatasetConfig,
    EvaluationConfig,
    GeneratorConfig,
    LatentConfig,
    LoggingConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    Recipe,
    RkvConfig,
    SystemConfig,
    TrainingConfig,
)
from kava.config.teaching import (
    ExplicitConfig,
    MixtureConfig,
    ProjectorConfig,
    TeacherConfig,
    TeacherSpec,
)

__all__ = [
    "BUILTIN_DATASETS",
    "HF_OWNED",
    "KEYS",
    "LINEAR_LAYERS",
    "METHODS",
    "PROMPTS",
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
    "MixtureConfig",
    "ModelConfig",
    "ProjectorConfig",
    "Recipe",
    "RkvConfig",
    "Row",
    "SystemConfig",
    "TeacherConfig",
    "TeacherSpec",
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
