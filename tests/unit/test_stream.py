"""A stream: order, passes, workers, processes, and where a resumed run goes on."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
from accelerate.data_loader import IterableDatasetShard
from torch.utils.data import DataLoader

import zoo_tokenizers as zoo
from kava.config.schema import DatasetConfig
from kava.data.encode import Encoded, Encoder
from kava.data.example import Example
from kava.data.load import ExampleStream, load_examples
from kava.data.shuffle_buffer import shuffled
from kava.data.stream import EncodedStream, Share
from kava.errors import DataError

ROWS, BATCH = 30, 5  # a pass of two or three workers has whole batches only


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> ExampleStream:
    path = tmp_path_factory.mktemp("rows") / "own.jsonl"
    rows = [
        {"question": f"{'very ' * (i % 7)}{i}+1?", "steps": [f"{i}+1={i + 1}"], "answer": i + 1} for i in range(ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset = DatasetConfig(name=str(path), streaming=True, val_size=0, shuffle_buffer=8, drop_last_step=False)
    examples = load_examples(dataset, "train")
    assert isinstance(examples, ExampleStream)
    return examples


class CountingEncoder(Encoder):
    """Counts the examples that it encodes."""

    encoded = 0

    def encode_batch(self, examples: Sequence[Example]) -> list[Encoded]:
        self.encoded += len(examples)
        return super().encode_batch(examples)


def batches(data: EncodedStream, count: int, workers: int = 0, share: Share | None = None) -> list[list[str]]:
    """The ids of the first batches that a process gets; "" is a blank row."""
    data.share = share = share or Share(BATCH)
    shard = IterableDatasetShard(
        data, batch_size=BATCH, num_processes=share.processes, process_index=share.process, split_batches=False
    )
    loader = DataLoader(shard, BATCH, num_workers=workers, collate_fn=lambda rows: [row.id for row in rows])
    return list(islice(loader, count))


@pytest.mark.parametrize("size", [0, 1, 5, 100])
def test_a_buffer_shuffles_by_its_seed_and_its_size(size: int) -> None:
    items = list(range(50))
    order = list(shuffled(items, size, "a"))
    assert sorted(order) == items
    assert order == list(shuffled(iter(items), size, "a"))
    assert (order == items) == (size < 2)
    assert all(item - place <= size for place, item in enumerate(order))
    if size > 1:
        assert order != list(shuffled(items, size, "b"))


@pytest.mark.parametrize("workers", [0, 2])
def test_every_row_once_in_each_pass_in_another_order(stream: ExampleStream, workers: int) -> None:
    data = EncodedStream(stream, Encoder(zoo.byte_level()), encode_at_once=7)
    ids = [name for batch in batches(data, 2 * ROWS // BATCH, workers) for name in batch]
    first, second = ids[:ROWS], ids[ROWS:]
    every = sorted(f"own/train/{i}" for i in range(ROWS))
    assert sorted(first) == sorted(second) == every
    assert first != second
    assert first != [f"own/train/{i}" for i in range(ROWS)]


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("done", [1, 4, 9])
def test_a_resumed_run_gets_the_batches_that_it_has_not_used(stream: ExampleStream, workers: int, done: int) -> None:
    data = EncodedStream(stream, Encoder(zoo.byte_level()), encode_at_once=3)
    whole = batches(data, 16, workers)
    rest = batches(data, 16, workers, Share(BATCH, done=done))
    assert rest[done:] == whole[done:]
    assert {name for batch in rest[:done] for name in batch} == {""}


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_share_the_rows(stream: ExampleStream, workers: int) -> None:
    data = EncodedStream(stream, Encoder(zoo.byte_level()))
    parts = [batches(data, 6, workers, Share(BATCH, process, 2)) for process in range(2)]
    together = [batch for pair in zip(*parts, strict=True) for batch in pair]
    if workers == 0:
        assert together == batches(data, 12)
    assert sorted(name for batch in together for name in batch) == sorted(2 * [f"own/train/{i}" for i in range(ROWS)])
    later = batches(data, 6, workers, Share(BATCH, 1, 2, done=2))
    assert later[2:] == parts[1][2:]


def test_rows_of_before_and_of_other_processes_are_not_encoded(stream: ExampleStream) -> None:
    encoder = CountingEncoder(zoo.byte_level())
    data = EncodedStream(stream, encoder, encode_at_once=2 * BATCH)
    assert len(batches(data, 3, share=Share(BATCH, process=1, processes=2, done=2))) == 3
    assert encoder.encoded == BATCH


@pytest.mark.parametrize("workers", [0, 2])
def test_long_rows_never_come_whoever_reads(stream: ExampleStream, workers: int) -> None:
    encoder = Encoder(zoo.byte_level())
    lengths = {example.id: len(encoder(example)) for example in stream}
    limit = sorted(lengths.values())[ROWS // 2]
    data = EncodedStream(stream, encoder, limit, encode_at_once=3)
    whole = batches(data, 12, workers)
    assert {name for batch in whole for name in batch} == {name for name, length in lengths.items() if length <= limit}
    assert batches(data, 12, workers, Share(BATCH, done=5))[5:] == whole[5:]


def test_a_stream_of_long_rows_only_is_an_error(stream: ExampleStream) -> None:
    with pytest.raises(DataError, match="all are longer than 8 tokens"):
        batches(EncodedStream(stream, Encoder(zoo.byte_level()), 8), 1)


def test_held_out_rows_are_the_same_however_many_questions_there_are(tmp_path: Path) -> None:
    rows = [{"question": f"{i % 900}?", "answer": i % 900} for i in range(1000)]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    whole, read = (DatasetConfig(name=str(path), streaming=streaming, val_size=20) for streaming in (False, True))
    assert load_examples(whole, "validation") == load_examples(read, "validation")
    train = {example.question for example in load_examples(read, "train")}
    assert len(train) == 880
    assert train == {example.question for example in load_examples(whole, "train")}
