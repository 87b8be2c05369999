"""Fusion of several teachers' keys and values, all in the student's shape, into one target; torch only."""

from kava.fuse.collapse import Collapse, Window, annealed
from kava.fuse.fuse_kv import fuse, fuse_kvs_fixed, fuse_kvs_learnable, fuse_kvs_similarity, shares
from kava.fuse.fusions import FUSIONS, Fixed, Fusion, Learnable, Query, Similar, make_fusion
from kava.fuse.prototypes import compute_routing_weights, compute_similarity, compute_teacher_prototype, kmeans
from kava.fuse.routers import ROUTERS, LearnableRouter, Router

__all__ = [
    "FUSIONS",
    "ROUTERS",
    "Collapse",
    "Fixed",
    "Fusion",
    "Learnable",
    "LearnableRouter",
    "Query",
    "Router",
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
    "make_fusion",
    "shares",
]
