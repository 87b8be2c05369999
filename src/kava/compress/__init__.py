"""Which chain-of-thought entries the student is taught: one file per choice. A new one is a line in the table below, and
its name in config/fields.py."""

from dataclasses import is_dataclass

from kava.compress.base import Compressed, Compressor, Samples
from kava.compress.crop import Crop
from kava.compress.full import Full
from kava.compress.importance import importance
from kava.compress.random_ import Random
from kava.compress.redundancy import redundancy
from kava.compress.rkv import RKV
from kava.compress.rkv_original import RKVOriginal
from kava.compress.shuffle import ShuffleExamples, ShuffleTime
from kava.compress.steps import Steps
from kava.compress.uniform import Uniform
from kava.config import RkvConfig
from kava.errors import ConfigError
from kava.registry import lookup

COMPRESSORS: dict[str, type[Compressor]] = {
    "rkv": RKV,
    "rkv_original": RKVOriginal,
    "full": Full,
    "crop": Crop,
    "random": Random,
    "uniform": Uniform,
    "steps": Steps,
}
SHUFFLES = {"time": ShuffleTime, "examples": ShuffleExamples}


def make_compressor(method: str, shuffle: str = "none", **settings: object) -> Compressor:
    """The compressor a recipe names; of `settings` it takes those it has a field for."""
    kind = lookup(COMPRESSORS, method, "compressor")
    if not (issubclass(kind, Compressor) and is_dataclass(kind)):
        raise ConfigError(f"compressor {method!r} is not a dataclass derived from kava.compress.Compressor")
    fields = kind.__dataclass_fields__  # type: ignore[attr-defined]
    compressor = kind(**{name: value for name, value in settings.items() if name in fields})
    return compressor if shuffle == "none" else SHUFFLES[shuffle](inner=compressor)


def compressor_of(rkv: RkvConfig, method: str | None = None, shuffle: str = "none") -> Compressor:
    """The compressor of a recipe, or another one with the recipe's settings."""
    return make_compressor(method or rkv.method, shuffle, lambda_=rkv.lambda_, side=rkv.crop_keep, centred=rkv.centred)


__all__ = [
    "COMPRESSORS",
    "Compressed",
    "Compressor",
    "Samples",
    "compressor_of",
    "importance",
    "make_compressor",
    "redundancy",
]
