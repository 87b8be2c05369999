"""What the libraries below would print to the console and nobody can use."""

from __future__ import annotations

import warnings


def silence_libraries() -> None:
    """No weight-loading bars (they are not ASCII), no advice, no warning about a name that peft still reads.

    Nor the hub's line for each of many retries: where it cannot be reached, one error says so at the end.
    """
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
