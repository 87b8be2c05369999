"""Ways to weight the teachers, a file each. The table below and the names in config/fields.py register them; a recipe
also takes "package.module:Name"."""

from typing import Any

from kava.fuse.fusions.base import Fusion, Query
from kava.fuse.fusions.fixed import Fixed
from kava.fuse.fusions.learnable import Learnable
from kava.fuse.fusions.similarity import Similar
from kava.registry import lookup

FUSIONS: dict[str, type[Fusion]] = {"fixed": Fixed, "similarity": Similar, "learnable": Learnable}

__all__ = ["FUSIONS", "Fixed", "Fusion", "Learnable", "Query", "Similar", "make_fusion"]


def make_fusion(settings: Any, num_teachers: int, student: Any) -> Fusion:
    """The fusion that a recipe's section `mixture` names."""
    return lookup(FUSIONS, settings.fusion, "fusion").of(settings, num_teachers, student)
