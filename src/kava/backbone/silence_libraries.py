"""Silence third-party warnings and progress bars."""

import warnings

from kava.progress import loading_libraries


def silence_libraries() -> None:
    """Turns off weight-loading bars (not ASCII), advice, and warnings: of a deprecation that peft triggers, of many workers.

    The hub's log of every retry too: if it cannot be reached, one error says so at the end.
    """
    with loading_libraries():
        from huggingface_hub.utils import logging as hub_logging
        from transformers.utils import logging

    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    warnings.filterwarnings(
        "ignore", message="This DataLoader will create", category=UserWarning
    )  # we say it ourselves
