"""A stream of examples as torch's loader wants it: encoded as it goes, each row once however many workers there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from torch.utils.data import IterableDataset, get_worker_info

from kava.data.encode import Encoded, EncodedStream, Encoder
from kava.data.example import Example


class _Share(Iterable[Example]):
    """Every n-th example in worker w of n, starting with the w-th; all of them where there are no workers."""

    def __init__(self, examples: Iterable[Example]):
        self.examples = examples

    def __iter__(self) -> Iterator[Example]:
        worker = get_worker_info()
        if worker is None:
            return iter(self.examples)
        return islice(self.examples, worker.id, None, worker.num_workers)


class EncodedIterable(IterableDataset[Encoded]):
    """Encoded training examples in the order of the stream, which is not shuffled; longer than max_length: skipped."""

    def __init__(self, examples: Iterable[Example], encoder: Encoder, max_length: int | None = None):
        self.stream = EncodedStream(_Share(examples), encoder, max_length)

    def __iter__(self) -> Iterator[Encoded]:
        return iter(self.stream)


def stream_dataset(
    examples: Iterable[Example], encoder: Encoder, max_length: int | None = None
) -> IterableDataset[Encoded]:
    """`examples` (of `load_examples` with streaming) for a torch DataLoader or transformers' Trainer."""
    return EncodedIterable(examples, encoder, max_length)
