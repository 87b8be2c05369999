"""Fusion of several teachers' keys and values, all in the student's shape, into one target; torch only."""

from __future__ import annotations

from kava.fuse.collapse import Collapse, Window, annealed
from kava.fuse.fuse_kv import fuse, fuse_kvs_fixed, fuse_kvs_learnable, fuse_kvs_similarity, shares
from kava.fuse.fusion import Fixed, Fusion, Learnable, Query, Similar
from kava.fuse.prototypes import compute_routing_weights, compute_similarity, compute_teacher_prototype, kmeans
from kava.fuse.router import LearnableRouter

__all__ = [
    "Collapse",
    "Fixed",
    "Fusion",
    "Learnable",
    "LearnableRouter",
    "Query",
    "Similar",
    "Window",
    "annealed",
    "compute_routing_weights",
    "compute_similarity",
    "compute_teacher_prototype",
    "fuse",
    "fuse_kvs_fixed",
    "fuse_kvs_learnable",
    "fuse_kvs_similarity",
    "kmeans",
    "shares",
]
