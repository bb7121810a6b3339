"""Where rows come from: a bundled set, a file, a folder of files, or a data set on the hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants

from ptlit.data import dialogues, tweets
from ptlit.data.formats import READERS, Record, Records, Table, read_table
from ptlit.hub import hub_is_reachable
from ptlit.mistake import UserMistake

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

BUNDLED_TWEETS, BUNDLED_DIALOGUES = "bundled_tweets", "bundled_dialogues"
UNLABELED = "unlabeled"  # RAFT's name for the label of a row that has none; others write -1
STEMS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "dev": "val", "test": "test"}


def read_splits(
    path: str,
    *,
    subset: str | None = None,
    val_path: str | None = None,
    test_path: str | None = None,
    label_column: str | None = "label",
    encoding: str | None = None,
) -> dict[str, Table]:
    """The splits that the source itself has: always train, perhaps val and test."""
    if path in (BUNDLED_TWEETS, BUNDLED_DIALOGUES):
        tables = {split: _bundled(path, split, subset) for split in tweets.SPLITS}
    elif (place := Path(path).expanduser()).is_dir():
        tables = _folder(place, encoding)
    elif place.is_file() or _is_file_name(path, "path"):
        tables = {"train": read_table(place, encoding)}
    else:
        tables = _hub(path, subset, label_column)
    for split, file in (("val", val_path), ("test", test_path)):
        if file is not None:
            tables[split] = read_table(Path(file).expanduser(), encoding)
    return tables


def check_source(path: str, subset: str | None, val_path: str | None, test_path: str | None) -> None:
    """What can be said of a source before it is read: named files are there, and so is the subset."""
    if path == BUNDLED_TWEETS:
        tweets.check_subset(subset)
    elif path == BUNDLED_DIALOGUES and subset is not None:
        raise UserMistake(f"data.subset={subset}: {path} has no subsets.")
    for key, name in (("path", path), ("val_path", val_path), ("test_path", test_path)):
        if (
            name is not None
            and name not in (BUNDLED_TWEETS, BUNDLED_DIALOGUES)
            and _is_file_name(name, key)
            and not Path(name).expanduser().exists()
        ):
            raise UserMistake(f"data.{key}={name}: there is no such file.")


def has_subsets(path: str) -> bool:
    """Not a file, nor a folder of files."""
    is_bundled = path in (BUNDLED_TWEETS, BUNDLED_DIALOGUES)
    return is_bundled or not (Path(path).expanduser().exists() or _is_file_name(path, "path"))


def _is_file_name(name: str, key: str) -> bool:
    return key != "path" or Path(name).suffix.lower() in READERS or name.startswith((".", "/", "~"))


def _bundled(name: str, split: str, subset: str | None) -> Table:
    rows = tweets.tweets(split, subset) if name == BUNDLED_TWEETS else dialogues.dialogues(split)
    records = Records(lambda: ((i, dict(row)) for i, row in enumerate(rows, start=1)))
    return Table(f"{name} {split}", "row", records, tuple(rows[0]))


def _folder(folder: Path, encoding: str | None) -> dict[str, Table]:
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        split = STEMS.get(file.stem.lower())
        if split is None or file.suffix.lower() not in READERS:
            continue
        if split in files:
            raise UserMistake(f"{folder} holds {files[split].name} and {file.name}: keep one for {split}.")
        files[split] = file
    if "train" not in files:
        raise UserMistake(f"{folder} holds no training file: expected train{' or train'.join(READERS)}.")
    return {split: read_table(file, encoding) for split, file in files.items()}


def _hub(name: str, subset: str | None, label_column: str | None) -> dict[str, Table]:
    if not hub_is_reachable() and not constants.HF_HUB_OFFLINE:
        raise UserMistake(
            f"data.path={name} is no file or folder here, and the Hugging Face hub cannot be reached"
            " (HF_HUB_OFFLINE=1 reads what its cache holds)."
        )
    import datasets  # takes two seconds, and only this function needs it

    datasets.disable_progress_bars()
    try:
        found = _load(name, subset)
    except Exception as error:  # the hub, the network and the data set's own files fail in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserMistake(
            f"data.path={name} is no file or folder here, and as a data set on the Hugging Face hub it"
            f" cannot be loaded: {reason}."
        ) from error
    tables = {}
    for title, rows in found.items():
        split = STEMS.get(str(title))
        if split is not None and (table := _hub_table(f"{name} {title}", rows, label_column)):
            tables[split] = table
    if "train" not in tables:
        raise UserMistake(f"The data set {name} has no split named train, only {', '.join(map(str, found))}.")
    return tables


def _load(name: str, subset: str | None) -> "DatasetDict":
    """An old data set is a program, which is not run: the hub keeps what it made beside it, in files."""
    import datasets

    try:
        return datasets.load_dataset(name, subset)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        return datasets.load_dataset(name, data_dir=subset, revision="refs/convert/parquet")


def _hub_table(title: str, rows: "Dataset", label_column: str | None) -> Table | None:
    """Label indices become their names; None for a split whose labels are kept secret."""
    from datasets import ClassLabel

    feature = rows.features.get(label_column)
    if label_column is None or not isinstance(feature, ClassLabel):
        plain = Records(lambda: ((i, dict(row)) for i, row in enumerate(rows, start=1)))
        return Table(title, "row", plain, tuple(rows.column_names))

    def name_of(index: object) -> str | None:
        name = feature.names[index] if isinstance(index, int) and index >= 0 else UNLABELED
        return None if name.casefold() == UNLABELED else name

    def named() -> Iterator[tuple[int, Record]]:
        for i, row in enumerate(rows, start=1):
            yield i, {**row, label_column: name_of(row[label_column])}

    if all(name_of(row[label_column]) is None for row in rows.select_columns(label_column)):
        return None
    return Table(title, "row", Records(named), tuple(rows.column_names))
