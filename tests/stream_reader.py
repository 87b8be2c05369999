"""A process that reads a stream as a training does: stream_reader.py ROWS DONE OUT writes each batch's ids and its memory."""

import sys
from pathlib import Path

import psutil
from accelerate.data_loader import IterableDatasetShard
from torch.utils.data import DataLoader

import zoo_tokenizers as zoo
from kava.config.schema import DatasetConfig
from kava.data.encode import Encoder
from kava.data.load import load_examples
from kava.data.stream import EncodedStream, Share

BATCH, PROCESSES, WORKERS = 100, 10, 2


def read(path: str, done: int, out: Path) -> None:
    """One pass of process 3 of 10; a line for each batch: the memory of reader and workers in MB, and the ids."""
    dataset = DatasetConfig(name=path, streaming=True, val_size=50, drop_last_step=False)
    stream = EncodedStream(load_examples(dataset, "train"), Encoder(zoo.byte_level()))
    stream.share = Share(BATCH, 3, PROCESSES, done)
    shard = IterableDatasetShard(stream, batch_size=BATCH, num_processes=PROCESSES, process_index=3)
    loader = DataLoader(shard, BATCH, num_workers=WORKERS, collate_fn=lambda rows: [row.id for row in rows])
    own = psutil.Process()
    with out.open("a", encoding="utf-8") as file:
        for number, ids in enumerate(loader):
            if number >= done:
                memory = sum(process.memory_info().rss for process in [own, *own.children()]) >> 20
                file.write(" ".join([str(memory), *ids]) + "\n")
                file.flush()


if __name__ == "__main__":
    read(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
