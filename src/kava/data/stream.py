"""A stream of examples as a torch dataset: encoded on the fly, each row once with any number of workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from torch.utils.data import IterableDataset, get_worker_info

from kava.data.encode import Encoded, EncodedStream, Encoder
from kava.data.example import Example


class EncodedIterable(IterableDataset[Encoded]):
    """Encoded examples of a stream in its order, unshuffled, without those longer than `max_length`.

    Worker w of n encodes every n-th example, starting with the w-th.
    """

    def __init__(self, examples: Iterable[Example], encoder: Encoder, max_length: int | None = None):
        self.examples, self.encoder, self.max_length = examples, encoder, max_length

    def __iter__(self) -> Iterator[Encoded]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        share = islice(self.examples, first, None, step)
        return iter(EncodedStream(share, self.encoder, self.max_length))
