"""The terms of the loss; pure functions of tensors."""

from kava.losses.ce import Head, cross_entropy
from kava.losses.codi import codi_loss
from kava.losses.kv import kv_loss
from kava.losses.term import Term, add

__all__ = ["Head", "Term", "add", "codi_loss", "cross_entropy", "kv_loss"]
