"""What evaluate and predict call the keys that say how files are read: training has them under data."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ptlit.mistake import UserMistake

OF_JUDGING = {
    "data.text_column": "text_column",
    "data.label_column": "label_column",
    "data.encoding": "encoding",
    "data.on_bad_row": "on_bad_row",
    "data.eval_batch_size": "batch_size",
}


def as_judging_says(said: str) -> str:
    for key, own in OF_JUDGING.items():
        said = re.sub(rf"(?<![\w.]){re.escape(key)}\b", own, said)
    return said


@contextmanager
def mistakes_of_judging() -> Iterator[None]:
    """Those of reading are made in the words of training, whose keys these commands would refuse."""
    try:
        yield
    except UserMistake as mistake:
        raise UserMistake(as_judging_says(str(mistake))) from mistake
