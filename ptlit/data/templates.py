"""From a row to an Example: a template is read, the label word after it is learned.

`{soft:10}` is a place for ten virtual tokens. Without any such slot all stand before the row.
"""

from collections.abc import Iterable, Mapping, Sequence
from string import Formatter

from transformers import PreTrainedTokenizerBase

from ptlit.data.example import NO_LABEL, Example, Segment, encode, encode_all, length
from ptlit.data.label_words import LabelWords
from ptlit.mistake import UserMistake

SLOT = "soft"
SAYING_NOTHING = ("N/A", "[MASK]", "")


class Template:
    """`Template("{soft:10}Tweet: {text}\\nSentiment:")`; other columns go by their names, `{{` is a brace."""

    def __init__(self, template: str) -> None:
        self.template = template
        try:
            parts = list(Formatter().parse(template))
        except ValueError as error:
            raise UserMistake(
                f"data.template {template!r} is broken ({error}): write {{{{ and }}}} for literal braces."
            ) from error
        if any(conversion or (spec and field != SLOT) for _, field, spec, conversion in parts):
            raise UserMistake(
                f"data.template {template!r}: only plain fields like {{text}} and slots like {{soft:10}} are "
                "filled in."
            )
        self.pieces = [
            (literal, field, _size(spec, template) if field == SLOT else 0)
            for literal, field, spec, _ in parts
        ]
        self.slots = sum(size for _, _, size in self.pieces)  # virtual tokens that stand in the row
        self.fields = tuple(field for _, field, _ in self.pieces if field not in (None, SLOT))
        if self.fields.count("text") != 1:
            raise UserMistake(f"data.template {template!r} must hold the field {{text}} exactly once.")
        self.other_fields = tuple(field for field in dict.fromkeys(self.fields) if field != "text")
        # White space at the very end belongs to the first learned token: " good" is not "good".
        literal, field, _ = self.pieces[-1]
        self.lead = literal[len(literal.rstrip()) :] if field is None else ""
        if self.lead:
            self.pieces[-1] = (literal.rstrip(), None, 0)

    @property
    def without_slots(self) -> str:
        """All that is read of it."""
        read = ""
        for literal, field, _ in self.pieces:
            read += literal.replace("{", "{{").replace("}", "}}")
            read += f"{{{field}}}" if field not in (None, SLOT) else ""
        return read

    def check_fields(self, columns: set[str]) -> None:
        """`columns` are those that a row offers besides its text."""
        if unknown := [field for field in self.fields if field not in columns | {"text"}]:
            raise UserMistake(
                f"data.template {self.template!r} names the field {{{unknown[0]}}}, which the rows lack:"
                f" choose from {', '.join(sorted(columns | {'text'}))}."
            )

    def example(
        self,
        text: str,
        fields: Mapping[str, str] | None = None,
        *,
        target: str | None = None,
        label: int = NO_LABEL,
        ends_with_eos: bool = False,
        spare: int = 0,
    ) -> Example:
        """Without a `target` nothing is learned: what the LM reads at inference."""
        fields = fields or {}
        self.check_fields(set(fields))
        segments = []
        for literal, field, size in self.pieces:
            segments.append(Segment(literal))
            if field == SLOT:
                segments.append(Segment(virtual=size))
            elif field is not None:
                filling = text.strip() if field == "text" else fields[field]
                segments.append(Segment(filling, gives_way=field == "text"))
        if target is not None:
            segments.append(Segment(self.lead + target, learned=True))
        return Example(tuple(segments), label, ends_with_eos and target is not None, spare)

    def lessons(self, rows: Iterable[tuple[str, Mapping[str, str], int]], words: LabelWords) -> list[Example]:
        """What rows of a text, other columns and a label teach: to say the label's first word."""
        # The same of a text is read whichever label is right: its end must not tell.
        spare = [words.longest - len(tokens) for tokens in words.firsts]
        return [
            self.example(
                text,
                fields,
                target=words.words[label][0],
                label=label,
                ends_with_eos=words.ends_with_eos,
                spare=spare[label],
            )
            for text, fields, label in rows
        ]

    def without_room(
        self,
        rows: Sequence[Mapping[str, str]],
        words: LabelWords,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> dict[int, str]:
        """Which rows cannot be read however much of their text is cut, and why: their other columns leave no
        room. That the template by itself leaves none is no row's fault, but a mistake.
        """
        if not self.other_fields:
            return {}

        def bare(fields: Mapping[str, str]) -> Example:
            return self.example("", fields, spare=words.longest)

        encode(bare(dict.fromkeys(self.other_fields, "")), tokenizer, max_length)
        read, _ = encode_all([bare(fields) for fields in rows], tokenizer, None)
        taken = [length(row) + words.longest for row in read]
        columns = " and ".join(map(repr, self.other_fields))
        return {
            place: f"with {columns} it takes {tokens:,} tokens without any text, data.max_length={max_length}"
            for place, tokens in enumerate(taken)
            if tokens > max_length
        }


def content_free(template: Template, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The template around words that say nothing: what an LM answers then is its own leaning.

    Zhao et al. (2021), "Calibrate Before Use".
    """
    empty = [template.example(word, dict.fromkeys(template.other_fields, word)) for word in SAYING_NOTHING]
    rows, _ = encode_all(empty, tokenizer, max_length=None)
    return [row["input_ids"] for row in rows if row["input_ids"]]


def _size(spec: str | None, template: str) -> int:
    if not spec or not spec.isdecimal() or int(spec) < 1:
        raise UserMistake(
            f"data.template {template!r}: a slot says how many virtual tokens stand in it, as {{soft:10}}."
        )
    return int(spec)
