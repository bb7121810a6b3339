"""What lies beside an adapter may be anybody's config."""

from pathlib import Path

import pytest
from tiny import byte_tokenizer

from ptlit.data import ClassificationData
from ptlit.rows_seen import rows_seen


@pytest.fixture
def data(tmp_path: Path) -> ClassificationData:
    file = tmp_path / "mine.csv"
    lines = [f"text {i},{'ab'[i % 2]}" for i in range(40)]
    file.write_text("\n".join(["text,label", *lines]))
    found = ClassificationData(tokenizer=byte_tokenizer(), path=str(file))
    found.setup()
    return found


@pytest.mark.parametrize(
    "config",
    [
        b"model: gpt2\nseed: 1",
        b"data: some.csv",
        b"data:\n  path:\n",
        b"data:\n  path: [a, b]",
        b"data:\n  path: ${no.such}",
        b"- a\n- list",
        b"just words",
        b"",
        b"a: [broken",
        b"a: \xff\xfe",
        b"5: five",
    ],
)
def test_another_programs_config_says_nothing(
    data: ClassificationData, tmp_path: Path, config: bytes
) -> None:
    (tmp_path / "config.yaml").write_bytes(config)
    assert rows_seen(tmp_path / "adapter", data) == []
    assert rows_seen(tmp_path, data) == []


def test_a_runs_own_config_tells_how_it_divided_the_rows(data: ClassificationData, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"seed: 7\ndata:\n  path: {data.path}\n")
    (said,) = rows_seen(tmp_path / "adapter", data)
    assert "with seed=7 data.folds=null data.fold=null" in said
    (tmp_path / "config.yaml").write_text(f"seed: {data.seed}\ndata:\n  path: {data.path}\n")
    assert rows_seen(tmp_path / "adapter", data) == []
