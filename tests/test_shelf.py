"""Rows on disk: read by place in any process, gone with the process, and memory does not grow with them."""

import gc
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from tiny import byte_tokenizer

from ptlit.data import ClassificationData, encoding
from ptlit.data.shelf import Shelf
from ptlit.mistake import UserMistake


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


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
    leaving = "import os, signal; from ptlit.data.shelf import Shelf; s = Shelf(); s.extend([b'x']); "
    place = os.environ | {"TMPDIR": str(temporary)}
    for ends in ("os.kill(os.getpid(), signal.SIGKILL)", "raise SystemExit"):
        done = subprocess.run([sys.executable, "-c", leaving + ends], env=place)
        assert done.returncode == (-signal.SIGKILL if "KILL" in ends else 0)
        assert len(list(temporary.iterdir())) == (2 if "KILL" in ends else 1)
    assert mine[0] == b"mine" and pickle.loads(pickle.dumps(mine))[0] == b"mine"


def test_a_full_disk_is_one_sentence(temporary: Path) -> None:
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    shelf = Shelf()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(UserMistake, match=r"temporary cannot hold the rows .*, or set TMPDIR"):
            shelf.extend([b"x" * 20_000])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def read(folder: Path, count: int) -> ClassificationData:
    file = folder / f"{count}.csv"
    lines = (f"{i} {'many words ' * (20 + i % 9)},{'ab'[i % 2]}\n" for i in range(count))
    file.write_text("text,label\n" + "".join(lines))
    data = ClassificationData(tokenizer=byte_tokenizer(), path=str(file), max_length=32, limit=count // 2)
    data.setup()
    return data


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_other_processes_read_the_same_and_leave_the_files_alone(temporary: Path, start: str) -> None:
    data = read(temporary.parent, 60)
    expected = [batch["input_ids"].tolist() for batch in data.val_dataloader()]
    data.num_workers = 1
    loader = data.val_dataloader()
    loader.multiprocessing_context = start
    for _ in range(2):
        assert [batch["input_ids"].tolist() for batch in loader] == expected
    assert [row["text"] for row in data.rows["val"]] and list(temporary.iterdir())
    del data, loader
    gc.collect()
    assert not list(temporary.iterdir())


def test_memory_hardly_grows_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of 260 characters takes a quarter of them, at the moment that takes most."""
    monkeypatch.setattr(encoding, "CHUNK", 200)

    def peak(count: int) -> int:
        gc.collect()
        tracemalloc.start()
        data = read(tmp_path, count)
        data.summary()
        for batches in (data.train_dataloader().batches, data.val_dataloader().batches):
            assert sum(map(len, batches)) == len(batches.lengths)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    read(tmp_path, 100)  # what is loaded once
    few, many = peak(1000), peak(10_000)
    assert (many - few) / 9000 < 100, (few, many)
