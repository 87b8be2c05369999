"""What the libraries below would print to the console and nobody can use."""

from __future__ import annotations

import warnings


def hush() -> None:
    """No weight-loading bars (they are not ASCII), no advice, no warning about a name that peft still reads."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
