"""A stream of examples as a torch dataset: encoded on the fly, pass after pass, each row once in a pass.

Where a run stands is a number of batches: a resumed run reads the rows before it again without encoding them.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from torch.utils.data import IterableDataset, get_worker_info

from kava.data.encode import Encoded, Encoder
from kava.data.example import Example
from kava.data.load import ExampleStream
from kava.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """Which rows of a loader's workers are read in this process.

    Every process reads all rows, and of `batch_size` * `processes` rows at a time it uses a batch. `done`: its batches of
    before, which are not used again.
    """

    batch_size: int = 1
    process: int = 0
    processes: int = 1
    done: int = 0

    def rows_done(self, worker: int, workers: int) -> int:
        """Rows of a worker in the batches of before; batch k comes from worker k % workers."""
        return len(range(worker, self.done, workers)) * self.batch_size * self.processes

    def has(self, row: int) -> bool:
        """Whether the row is in a batch of this process."""
        return row // self.batch_size % self.processes == self.process


class EncodedStream(IterableDataset[Encoded]):
    """Encoded examples without an end: after the last row the next pass begins, in another order.

    Worker w of n takes every n-th example of a pass, beginning with the w-th. Rows that `share` leaves to others come as
    `blank`, which costs nothing; examples longer than `max_length` do not come, `skipped` counts those of the first pass.
    """

    def __init__(
        self, examples: ExampleStream, encoder: Encoder, max_length: int | None = None, encode_at_once: int = 256
    ):
        self.examples, self.encoder = examples, encoder
        self.max_length, self.encode_at_once = max_length, encode_at_once
        self.share = Share()
        self.skipped = 0
        self.blank = Encoded("", [encoder.eos], [], [], encoder.cue, [encoder.eos], encoder.eos)

    def __iter__(self) -> Iterator[Encoded]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        start = self.share.rows_done(first, step)
        for row, encoded in enumerate(self._rows(first, step, start)):
            yield encoded if row >= start and self.share.has(row) else self.blank

    def _rows(self, first: int, step: int, start: int) -> Iterator[Encoded]:
        """The worker's rows of all passes; a row that nobody uses may be blank."""
        row = number = self.skipped = 0
        while True:
            before, examples = row, islice(self.examples.in_pass(number), first, None, step)
            while chunk := list(islice(examples, self.encode_at_once)):
                for encoded in self._encoded(chunk, row, start):
                    if self.max_length is None or len(encoded) <= self.max_length:
                        yield encoded
                        row += 1
                    else:
                        self.skipped += number == 0
            if number == 0 and self.skipped:
                log.warning("%d examples are longer than %s tokens and were skipped", self.skipped, self.max_length)
            if row == before:
                raise DataError(
                    f"no example is left of a stream: all are longer than {self.max_length} tokens",
                    "raise dataset.max_length",
                )
            number += 1

    def _encoded(self, chunk: list[Example], row: int, start: int) -> list[Encoded]:
        """The chunk's rows, the first of which is the worker's `row`-th; unused ones are encoded for their length only."""
        if self.max_length is not None:
            return self.encoder.encode_batch(chunk)
        used = [row + i >= start and self.share.has(row + i) for i in range(len(chunk))]
        rows = iter(self.encoder.encode_batch([example for example, use in zip(chunk, used, strict=True) if use]))
        return [next(rows) if use else self.blank for use in used]
