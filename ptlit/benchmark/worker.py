"""A process of its own for whatever is measured, driven call by call over a pipe.

Its memory is then its own, and several of them can take turns on one machine.
"""

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from ptlit.mistake import UserMistake


class Worker:
    """There `make(*arguments)` makes an object; `worker("method", argument)` calls a method of it."""

    def __init__(self, name: str, threads: int, make: Callable[..., Any], *arguments: Any):
        context = get_context("spawn")
        self.name = name
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, threads, make, arguments), name=name, daemon=True
        )
        # One arena of memory: a second thread, such as the one of the Trainer, would waste another's gaps.
        os.environ["MALLOC_ARENA_MAX"] = "1"
        self.process.start()
        theirs.close()
        self._receive()

    def __call__(self, method: str, *arguments: Any) -> Any:
        self.pipe.send((method, arguments))
        return self._receive()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self.pipe.close()
        if kind is None or issubclass(kind, UserMistake):  # it is idle, and tidies up after itself
            self.process.join(timeout=30)
        self.process.terminate()
        self.process.join()

    def _receive(self) -> Any:
        try:
            error, answer = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise UserMistake(
                f"The process of {self.name} ended with {self.process.exitcode} before it answered, as when "
                "memory runs out: choose fewer engines, a smaller batch or a smaller model."
            ) from None
        if error == "mistake":
            raise UserMistake(answer)
        if error:
            raise RuntimeError(f"{self.name}: {answer}")
        return answer


def _serve(pipe: Connection, threads: int, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch
    import transformers

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the table is the parent's; others may talk here
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    made = _answer(pipe, lambda: make(*arguments), lambda made: None)
    while made is not None:
        try:
            method, given = pipe.recv()
        except EOFError:
            return
        _answer(pipe, lambda: getattr(made, method)(*given), lambda answer: answer)  # noqa: B023 - called here


def _answer(pipe: Connection, work: Callable[[], Any], said: Callable[[Any], Any]) -> Any:
    try:
        result = work()
        pipe.send((None, said(result)))
        return result
    except UserMistake as mistake:
        pipe.send(("mistake", str(mistake)))
    except Exception:
        pipe.send(("error", traceback.format_exc()))
    return None
