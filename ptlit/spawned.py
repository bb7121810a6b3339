"""A mistake met by a process that was spawned for training: it comes back as a text, traceback and all."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.multiprocessing import ProcessRaisedException

from ptlit.mistake import UserMistake

RAISED = f"\n{UserMistake.__module__}.{UserMistake.__qualname__}: "


@contextmanager
def mistakes_of_processes() -> Iterator[None]:
    try:
        yield
    except ProcessRaisedException as error:
        _, found, sentence = str(error).rpartition(RAISED)
        if not found:
            raise
        raise UserMistake(sentence.strip()) from None
