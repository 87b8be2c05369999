"""Recipes: typed, merged from files and the command line, every value with its source (level 0: no torch).

    recipe = load_recipe("llama1b_aug", ["training.batch_size=64", "--rkv.lambda", "0.3"])

A recipe file holds only what differs from its parent (`extends:`); a file without a parent starts from the defaults in
`schema.py` and `teaching.py`, the only places where defaults are written.
"""

# ruff: noqa: F401 (imported from here by all other rooms)
from kava.config.compare import differing
from kava.config.fields import BUILTIN_DATASETS, METHODS, MODULAR, PROMPTS, TAGS
from kava.config.keys import KEYS, show
from kava.config.load import RecipeRow, explain, list_recipes, load_recipe, parse_overrides, recipe_path, save_recipe
from kava.config.schema import (
    HF_OWNED,
    DatasetConfig,
    GeneratorConfig,
    LatentConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    Recipe,
    RkvConfig,
    SystemConfig,
)
from kava.config.teaching import ExplicitConfig, MixtureConfig, ProjectorConfig, TeacherConfig, TeacherSpec
