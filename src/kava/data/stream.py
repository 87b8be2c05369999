"""A stream of examples as a torch dataset: encoded on the fly, each row once with any number of workers."""

import logging
from collections.abc import Iterable, Iterator
from itertools import islice

from torch.utils.data import IterableDataset, get_worker_info

from kava.data.encode import Encoded, Encoder, encode_batches
from kava.data.example import Example

log = logging.getLogger(__name__)


class EncodedStream(IterableDataset[Encoded]):
    """Encoded examples in the order of the stream, without those longer than `max_length`; `skipped` counts the last pass.

    Worker w of n encodes every n-th example, starting with the w-th.
    """

    def __init__(
        self, examples: Iterable[Example], encoder: Encoder, max_length: int | None = None, batch_size: int = 256
    ):
        self.examples, self.encoder = examples, encoder
        self.max_length, self.batch_size = max_length, batch_size
        self.skipped = 0

    def __iter__(self) -> Iterator[Encoded]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        self.skipped = 0
        for row in encode_batches(islice(self.examples, first, None, step), self.encoder, self.batch_size):
            if self.max_length is None or len(row) <= self.max_length:
                yield row
            else:
                self.skipped += 1
        if self.skipped:
            log.warning("%d examples are longer than %s tokens and were skipped", self.skipped, self.max_length)
