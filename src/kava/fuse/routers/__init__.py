"""Trained routers, a file each: from a representation of the question to a weight for every teacher. The table below and
the names in config/fields.py register them; a recipe also takes "package.module:Name"."""

from typing import Any

from kava.fuse.routers.attention import AttentionRouter
from kava.fuse.routers.base import Router
from kava.fuse.routers.gate import GateRouter
from kava.fuse.routers.mlp import MlpRouter
from kava.registry import lookup

ROUTERS: dict[str, type[Router]] = {"mlp": MlpRouter, "gate": GateRouter, "attention": AttentionRouter}


def LearnableRouter(hidden_dim: int, num_teachers: int, router_type: str = "mlp", **settings: Any) -> Router:
    """The router of that type; the name is the multi-teacher guide's."""
    return lookup(ROUTERS, router_type, "router")(hidden_dim, num_teachers, **settings)
