"""From a row to an Example: a template is read, the label word after it is learned."""

from collections.abc import Mapping
from string import Formatter

from ptlit.data.example import NO_LABEL, Example, Segment
from ptlit.mistake import UserMistake


class Template:
    """`Template("Tweet: {text}\\nSentiment:")`; other columns go by their names, `{{` is a brace."""

    def __init__(self, template: str) -> None:
        self.template = template
        try:
            parts = list(Formatter().parse(template))
        except ValueError as error:
            raise UserMistake(
                f"data.template {template!r} is broken ({error}): write {{{{ and }}}} for literal braces."
            ) from error
        if any(conversion or spec for _, _, spec, conversion in parts):
            raise UserMistake(f"data.template {template!r}: only plain fields like {{text}} are filled in.")
        self.pieces = [(literal, field) for literal, field, _, _ in parts]
        self.fields = tuple(field for _, field in self.pieces if field is not None)
        if self.fields.count("text") != 1:
            raise UserMistake(f"data.template {template!r} must hold the field {{text}} exactly once.")
        # White space at the very end belongs to the first learned token: " good" is not "good".
        literal, field = self.pieces[-1]
        self.lead = literal[len(literal.rstrip()) :] if field is None else ""
        if self.lead:
            self.pieces[-1] = (literal.rstrip(), None)

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
        for literal, field in self.pieces:
            segments.append(Segment(literal))
            if field is not None:
                filling = text.strip() if field == "text" else fields[field]
                segments.append(Segment(filling, gives_way=field == "text"))
        if target is not None:
            segments.append(Segment(self.lead + target, learned=True))
        return Example(tuple(segments), label, ends_with_eos and target is not None, spare)
