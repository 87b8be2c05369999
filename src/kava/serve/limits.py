"""What a server takes at most."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServeLimits:
    """max_batch: answers made at once (1: no batching); max_queue: answers that wait for a row; max_choices: answers to
    one request; max_lenses: looks into latents under way or waiting; max_new_tokens: of an answer; sizes in tokens and
    bytes, times in seconds."""

    max_batch: int = 64
    max_queue: int = 256
    max_choices: int = 16
    max_lenses: int = 4
    max_input_tokens: int = 2048
    max_new_tokens: int = 1024
    max_body_bytes: int = 128 * 1024
    body_timeout: float = 10.0
    request_timeout: float = 120.0
