"""Converts teachers' keys and values to the student's shape; torch only."""

from kava.align.aggregate import Aggregator, flatten_heads
from kava.align.heads import HeadDimAdapter
from kava.align.layers import layer_map, mix
from kava.align.pipeline import Aligner
from kava.align.projector import KVDimensionProjector, StudentProjector

__all__ = [
    "Aggregator",
    "Aligner",
    "HeadDimAdapter",
    "KVDimensionProjector",
    "StudentProjector",
    "flatten_heads",
    "layer_map",
    "mix",
]
