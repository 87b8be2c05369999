"""Input embeddings of the latent slots; pure functions of a `run` that the backbone supplies."""

from kava.latents.jacobi import iterate, start
from kava.latents.projection import Projection, make_projection, residual
from kava.latents.sequential import unroll

__all__ = ["Projection", "iterate", "make_projection", "residual", "start", "unroll"]
