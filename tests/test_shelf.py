"""Rows on disk: read by place in any process, gone with the process, and memory does not grow with them."""

import gc
import os
import pickle
import resource
import signal
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import byte_tokenizer

from ptlit.data import ClassificationData, encoding, source_rows
from ptlit.data.shelf import Shelf
from ptlit.mistake import UserMistake


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Its name is short: workers have sockets in it, whose names may not be long."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_records_come_back_by_their_places(temporary: Path) -> None:
    records = [bytes([i]) * (i % 5) for i in range(100)]
    shelf = Shelf()
    shelf.extend(iter(records[:40]))
    assert shelf[39] == records[39]
    shelf.extend(records[40:])
    copy = pickle.loads(pickle.dumps(shelf))
    for each in (shelf, copy):
        assert [each[place] for place in range(len(each))] == records
        with pytest.raises(IndexError):
            each[100]
    del shelf, each
    gc.collect()
    assert copy[99] == records[99] and not list(temporary.iterdir())


def test_what_a_killed_process_left_is_put_away_and_nothing_else(temporary: Path) -> None:
    mine = Shelf()
    mine.extend([b"mine"])
    killed = os.fork()
    if not killed:
        left = Shelf()
        left.extend([b"left"])
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(killed, 0)
    assert len(list(temporary.iterdir())) == 2
    other = Shelf()
    assert len(list(temporary.iterdir())) == 2
    assert mine[0] == b"mine" and len(other) == 0


def test_a_full_disk_is_one_sentence(temporary: Path) -> None:
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    shelf = Shelf()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(UserMistake, match=r"cannot hold the rows .*, or set TMPDIR"):
            shelf.extend([b"x" * 9000, b"x" * 2000])
        del shelf
        gc.collect()
        assert not list(temporary.iterdir())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def read(folder: Path, count: int, **options: int) -> ClassificationData:
    file = folder / f"{count}.csv"
    with file.open("w") as lines:
        lines.write("text,label\n")
        lines.writelines(f"{i} {'many words ' * (14 + i % 9)},{'ab'[i % 2]}\n" for i in range(count))
    data = ClassificationData(tokenizer=byte_tokenizer(), path=str(file), max_length=400, **options)
    data.setup()
    return data


def test_workers_read_the_same_and_leave_the_files_alone(temporary: Path, tmp_path: Path) -> None:
    data = read(tmp_path, 60)
    expected = [batch["input_ids"].tolist() for batch in data.train_dataloader()]
    data.num_workers = 1
    for _ in range(2):
        assert [batch["input_ids"].tolist() for batch in data.train_dataloader()] == expected
    assert data.rows["val"][0]["text"] and list(temporary.glob("ptlit-rows-*"))
    del data
    gc.collect()
    assert not list(temporary.glob("ptlit-rows-*"))


def test_memory_hardly_grows_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment that takes most of it, a row takes less than its own text would."""
    monkeypatch.setattr(encoding, "CHUNK", 30)
    monkeypatch.setattr(source_rows, "GROUP", 30)

    def peak(count: int) -> int:
        gc.collect()
        tracemalloc.start()
        data = read(tmp_path, count, limit=count // 2)
        data.summary()
        for loader in (data.train_dataloader(), data.val_dataloader()):
            assert sum(map(len, loader.batches)) == len(loader.batches.lengths)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    read(tmp_path, 100)  # what is loaded once
    few, many = peak(300), peak(3000)
    assert (many - few) / 2700 < 150, (few, many)
