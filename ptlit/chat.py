"""Talk with trained prompts in a terminal: python -m ptlit.chat run=<run folder>"""

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Literal
from unicodedata import category

import torch
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from transformers import TextStreamer

from ptlit.build import call, options_of
from ptlit.command import command
from ptlit.data import ChatTemplate
from ptlit.data.chat_formats import BadDialogue
from ptlit.data.dialogues import Message
from ptlit.mistake import UserMistake
from ptlit.quiet import quiet
from ptlit.replies import generation
from ptlit.run import Run, open_run
from ptlit.run_folder import named_folders
from ptlit.voice import Voice

HELP = """\
/base       compare each reply with that of the untrained LM, or stop comparing
/use NAME   go on with another prompt; /use alone lists them
/reset      forget what was said
/help       this list
/quit       end; so does Ctrl+D"""


def chat(
    run: str | list[str] | dict[str, str],
    system: str | None = None,
    base: bool = False,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 42,
    checkpoint: Literal["best", "last"] = "best",
    device: Literal["cpu", "gpu"] | None = None,
    lm: str | None = None,
    trust_code: bool = False,
) -> None:
    quiet()
    for right, sentence in (
        (max_new_tokens >= 1, f"max_new_tokens={max_new_tokens} must be 1 or more."),
        (0 <= temperature < math.inf, f"temperature={temperature} must be 0 (greedy) or more."),
        (0 < top_p <= 1, f"top_p={top_p} must be above 0 and at most 1."),
        (top_k >= 0, f"top_k={top_k} must be 0 (all tokens) or more."),
    ):
        if not right:
            raise UserMistake(sentence)
    torch.manual_seed(seed)
    voices = {}
    for name, folder in named_folders(run).items():
        opened = open_run(folder, checkpoint, lm, trust_code)
        template = chat_template(opened)
        pad = opened.lm.tokenizer.pad_token_id
        stops = template.stop_ids, template.stop_strings
        settings = generation(*stops, pad, max_new_tokens, temperature, top_p, top_k)
        prompted_lm = opened.prompted_lm.to(device_named(device))
        said = system if system is not None else opened.cfg.data.get("system")
        voices[name] = Voice(name, prompted_lm, template, settings, (said or "").strip())
    Chat(voices, base).go_on(spoken())


def chat_template(run: Run) -> ChatTemplate:
    if run.label_words is not None:
        raise UserMistake(
            f"run={run.folder.root} has learned to choose labels, not to reply: give a run of data=chat."
        )
    data = options_of(run.cfg.data)
    return ChatTemplate(run.lm.tokenizer, data.get("chat_template"), data.get("template_options"))


def device_named(device: str | None) -> str:
    if device == "gpu" and not torch.cuda.is_available():
        raise UserMistake("device=gpu: no GPU is found here; leave it out, or give device=cpu.")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def spoken() -> Iterator[str]:
    """Lines typed, or those of a pipe."""
    if not sys.stdin.isatty():
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # one byte in another encoding is no reason to stop
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    with suppress(ImportError):  # Windows
        import readline  # noqa: F401  (input() then knows the arrow keys)
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


class Chat:
    """What was said, who replies, and whether the untrained LM is heard beside it."""

    def __init__(self, voices: Mapping[str, Voice], base: bool = False):
        self.voices = dict(voices)
        self.voice = next(iter(self.voices.values()))
        self.base = base
        self.history: list[Message] = []
        self.console = Console(highlight=False, markup=False, soft_wrap=not sys.stdout.isatty())

    def go_on(self, lines: Iterator[str]) -> None:
        if sys.stdin.isatty():
            lm = Path(self.voice.prompted_lm.lm.name).name
            self.say(f"{', '.join(self.voices)} on {lm}; /help lists what can be said")
        for line in lines:
            text = line.strip()
            if text.startswith("/"):
                if not self.obeyed(text):
                    return
            elif text:
                self.answer(text)

    def obeyed(self, text: str) -> bool:
        """Whether to go on."""
        word, _, name = text.partition(" ")
        match word:
            case "/quit" | "/exit":
                return False
            case "/help":
                self.say(HELP)
            case "/reset":
                self.history = []
                self.say("(forgotten)")
            case "/base":
                self.base = not self.base
                self.say(
                    f"(the untrained LM {'replies too, to the same dialogue' if self.base else 'is silent'})"
                )
            case "/use" if name.strip() in self.voices:
                self.voice = self.voices[name.strip()]
                self.say(f"({self.voice.name} goes on)")
            case "/use":
                self.say(f"(the prompts are {', '.join(self.voices)}; now {self.voice.name})")
            case _:
                self.say(f"(there is no {word}; /help lists what there is)")
        return True

    def answer(self, text: str) -> None:
        self.history.append(Message(role="user", content=text))
        try:
            fitting = self.voice.fitting(self.history)
            if len(fitting) < len(self.history):
                self.say("(the oldest turns no longer fit and are forgotten)")
                self.history = fitting
            reply = self.compared() if self.base else self.streamed()
        except (UserMistake, BadDialogue) as problem:
            self.history.pop()
            self.say(f"({problem})")
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            self.history.pop()
            self.say("\n(interrupted)")
        else:
            self.history.append(Message(role="assistant", content=reply))

    def streamed(self) -> str:
        """Words appear as they are found."""
        return self.voice.reply(self.history, Readable(self.voice.template))

    def compared(self) -> str:
        """The untrained LM reads the same dialogue, the replies of the trained prompt included."""
        replies = {voice.name: voice.reply(self.history) for voice in (self.voice, self.voice.untrained)}
        if sys.stdout.isatty():
            table = Table(*(Column(name, ratio=1) for name in replies), expand=True)
            table.add_row(*(Text(readable(reply)) for reply in replies.values()))
            self.console.print(table)
        else:
            for name, reply in replies.items():
                self.say(f"{name}: {readable(reply)}")
        return replies[self.voice.name]

    def say(self, text: str) -> None:
        self.console.print(text)
        self.console.file.flush()


class Readable(TextStreamer):
    """Words as they come, but for so many characters as may turn out to be the end of the turn."""

    def __init__(self, template: ChatTemplate):
        super().__init__(template.tokenizer, skip_prompt=True, skip_special_tokens=True)  # type: ignore[arg-type]
        self.end_of_turn, self.held = template.shown_end, ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = self.held + text
        shown = (
            text.removesuffix(self.end_of_turn) if stream_end else text[: len(text) - len(self.end_of_turn)]
        )
        self.held = text[len(shown) :]
        super().on_finalized_text(readable(shown), stream_end)


def readable(text: str) -> str:
    """Without control characters, which a terminal obeys instead of showing."""
    return "".join(each for each in text if each in "\n\t" or category(each) != "Cc")


main = command("chat", call)

if __name__ == "__main__":
    main()
