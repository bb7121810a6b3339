"""Dialogues that cannot be learned from, by a row or at all: a sentence that says where, or the rest."""

import json
import random

import pytest
from chats import ROWS, SMOLLM2, chat_tokenizer, data_of, dialogue, write

from ptlit.data import ChatData
from ptlit.data.example import NOT_LEARNED
from ptlit.mistake import UserMistake


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "dialogues.jsonl", ROWS)


def test_columns_of_no_known_form_are_named(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("text,label\na,b\n")
    with pytest.raises(
        UserMistake, match="columns 'text', 'label', which are no form of dialogue.*alpaca: instr"
    ):
        data_of(file)
    with pytest.raises(UserMistake, match="line 2: has no column 'prompt'"):
        data_of(file, format="prompt_completion")


def test_a_question_and_a_reply_that_do_not_fit_are_a_bad_row(tmp_path):
    rows = [*ROWS[:20], dialogue(1, "x" * 100_000), *ROWS[20:]]
    file = write(tmp_path / "long.jsonl", rows)
    with pytest.raises(
        UserMistake, match=r"long.jsonl has 1 bad row: line 21: question and reply take 200,\d+ tokens"
    ):
        data_of(file)
    data = data_of(file, on_bad_row="skip")
    assert sum(split["skipped"] for split in data.summary()["splits"].values()) == 1
    assert sum(len(rows) for rows in data.rows.values()) == 40
    for split, rows in data.encoded.items():
        for row in rows:
            question = data.rows[split][row["row"]]["messages"][-2]["content"]
            assert question in chat_tokenizer().decode(row["input_ids"])


USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
BAD = {
    "broken line": (b'{"messages": [', "broken JSON"),
    "not an object": (b'"hello"', "not a JSON object"),
    "not utf-8": (b'{"messages": "\xff"}', "bytes that do not fit the encoding"),
    "other columns": ({"dialogue": []}, "has no column 'messages' .it has 'dialogue'."),
    "empty": ({"messages": []}, "the dialogue is empty"),
    "no list": ({"messages": "Hi"}, "'messages' is a str, not a list"),
    "null": ({"messages": None}, "'messages' is a NoneType"),
    "no message": ({"messages": ["Hi", "Hello"]}, "message 1 is a str"),
    "no role": ({"messages": [{"content": "Hi"}]}, "message 1 has no 'role'"),
    "unknown role": ({"messages": [USER, REPLY | {"role": "robot"}]}, "message 2 has the role 'robot'"),
    "role of a wrong type": ({"messages": [USER | {"role": ["user"]}, REPLY]}, "message 1 has the role"),
    "assistant first": ({"messages": [REPLY, USER, REPLY]}, "the assistant speaks first"),
    "twice in a row": ({"messages": [USER, USER, REPLY]}, "message 2: user speaks twice in a row"),
    "late system": (
        {"messages": [USER, REPLY, {"role": "system", "content": "x"}]},
        "message 3 is a system prompt",
    ),
    "only system": ({"messages": [{"role": "system", "content": "x"}]}, "a system prompt and nothing else"),
    "no reply": ({"messages": [USER]}, "no reply of the assistant"),
    "empty reply": ({"messages": [USER, REPLY | {"content": " \n"}]}, "message 2 .assistant. is empty"),
    "reply is null": ({"messages": [USER, REPLY | {"content": None}]}, "message 2 .assistant. is missing"),
    "reply is a number": (
        {"messages": [USER, REPLY | {"content": 4}]},
        "message 2 .assistant. is a int, not text",
    ),
    "weight": (
        {"messages": [USER, REPLY | {"weight": 0.5}]},
        "message 2 .assistant. has the weight 0.5: give 1",
    ),
    "nothing to learn": (
        {"messages": [USER, REPLY | {"weight": 0}, USER]},
        "all replies have the weight 0, so there is nothing to learn",
    ),
    "tool call": (
        {"messages": [USER, {"role": "assistant", "content": "Wait.", "tool_calls": [{"id": "1"}]}]},
        "message 2: 'tool_calls' is not empty, and ptlit does not read it: write the call as text",
    ),
    "function call": (
        {"messages": [USER, {"role": "assistant", "content": None, "function_call": {"name": "f"}}]},
        "message 2: 'function_call' is not empty, and ptlit does not read it: write the call as text",
    ),
    "tools": (
        {"messages": [USER, REPLY], "tools": [{"type": "function"}]},
        "'tools' is not empty, and ptlit does not read it: describe them in the system prompt",
    ),
    "NUL": ({"messages": [USER, REPLY | {"content": "a\0b"}]}, "message 2 .assistant. holds a NUL byte"),
    "surrogate": ({"messages": [USER, REPLY | {"content": "\ud83d"}]}, "holds half a character"),
}


@pytest.mark.parametrize(("bad", "expected"), BAD.values(), ids=BAD)
def test_a_bad_row_is_named_with_file_and_line_or_skipped(tmp_path, bad, expected):
    file = tmp_path / "mine.jsonl"
    good = [json.dumps({"messages": row}).encode() for row in ROWS]
    line = bad if isinstance(bad, bytes) else json.dumps(bad).encode()
    file.write_bytes(b"\n".join([*good[:3], line, *good[3:]]))
    with pytest.raises(UserMistake, match=rf"mine\.jsonl has 1 bad row: line 4: .*{expected}") as caught:
        data_of(file)
    assert "\n" not in str(caught.value)
    data = data_of(file, on_bad_row="skip")
    assert sum(split["skipped"] for split in data.summary()["splits"].values()) == 1
    assert sum(len(rows) for rows in data.rows.values()) == 40


def test_a_history_is_not_lost_in_silence(tmp_path):
    rows = [{"instruction": f"Say {i}!", "output": f"{i}.", "history": []} for i in range(30)]
    rows[3]["history"] = [["Hi", "Hello"]]
    file = tmp_path / "alpaca.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        UserMistake, match="line 4: 'history' is not empty.*write the whole dialogue as 'mess"
    ):
        data_of(file)
    data = data_of(file, on_bad_row="skip")
    assert sum(len(rows) for rows in data.rows.values()) == 29


@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_end_in_a_sentence_or_in_right_batches(tmp_path, seed):
    """Seeded chance: bytes, keys, types and order of a good file are damaged; nothing is lost in silence."""
    chance = random.Random(seed)
    lines = [json.dumps({"messages": row}).encode() for row in ROWS]
    for _ in range(chance.randint(1, 6)):
        lines.insert(chance.randrange(len(lines)), damaged(chance))
    file = tmp_path / "mine.jsonl"
    file.write_bytes(b"\n".join(lines))
    total = sum(bool(line.strip()) for line in b"\n".join(lines).split(b"\n"))
    for on_bad_row in ("error", "skip"):
        try:
            data = data_of(file, on_bad_row=on_bad_row, max_length=300)
        except UserMistake as mistake:
            assert on_bad_row == "error" and "\n" not in str(mistake)
            assert "mine.jsonl has" in str(mistake) and "line " in str(mistake)
            continue
        summary = data.summary()["splits"].values()
        assert sum(split["rows"] + split["skipped"] for split in summary) == total
        for split, loader in (("train", data.train_dataloader()), ("test", data.test_dataloader())):
            for batch in loader:
                assert ((batch["labels"] != NOT_LEARNED).sum(1) > 0).all()
                assert len(data.rows[split]) > batch["row"].max()


@pytest.mark.parametrize("seed", range(20))
def test_damaged_tables_end_in_a_sentence_or_in_right_batches(tmp_path, seed):
    chance = random.Random(seed)
    lines = [f"Say {i}!,,It is {i}.".encode() for i in range(40)]
    odd = [b"", b" ", b"\0", b"\xff", b'"open', b"a,b", b"\r", b"e" * 3000, b"'", "\u2028é".encode()]
    for _ in range(chance.randint(1, 6)):
        cells = [chance.choice([*odd, b"Hi"]) for _ in range(chance.choice([3, 3, 3, 2, 4, 1]))]
        lines.insert(chance.randrange(len(lines)), b",".join(cells))
    file = tmp_path / "mine.csv"
    file.write_bytes(b"\n".join([b"instruction,input,output", *lines]))
    for on_bad_row in ("error", "skip"):
        try:
            data = data_of(file, on_bad_row=on_bad_row, max_length=300)
        except UserMistake as mistake:
            assert on_bad_row == "error" and "\n" not in str(mistake)
            assert "mine.csv has" in str(mistake) and "line " in str(mistake)
            continue
        summary = data.summary()["splits"].values()
        assert sum(split["rows"] for split in summary) >= 40 - 6  # an open quote may cost the next line
        for batch in data.train_dataloader():
            assert ((batch["labels"] != NOT_LEARNED).sum(1) > 0).all()


def damaged(chance):
    """A line with one thing wrong, or strange but right."""
    row = dialogue(chance.randint(1, 3), "strange")
    odd = [None, 7, 1.5, True, [], {}, "", " ", "\0", "\ud800", "é" * 500, "\u2028", "user", "<|im_end|>"]
    place = chance.randrange(len(row))
    kind = chance.randrange(8)
    if kind == 0:
        row[place]["content"] = chance.choice(odd)
    elif kind == 1:
        row[place]["role"] = chance.choice(odd)
    elif kind == 2:
        del row[place][chance.choice(["role", "content"])]
    elif kind == 3:
        del row[place]
    elif kind == 4:
        row[place] = chance.choice(odd)
    elif kind == 5:
        chance.shuffle(row)
    whole = chance.choice(odd) if kind == 6 else {"messages": row}
    line = bytearray(json.dumps(whole).encode())
    if kind == 7:
        for _ in range(chance.randint(1, 4)):
            line[chance.randrange(len(line))] = chance.choice([0, 0xFF, ord('"'), ord("}"), ord("\\")])
    return bytes(line)


TOO_SHORT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{{ 'assistant: ' if add_generation_prompt }}"
)
OTHERWISE = SMOLLM2.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TOO_SHORT, "nothing marks the end of a reply"),
        (OTHERWISE, "asks for a reply in one way and writes it in another"),
        ("{% for m in messages %}", "the chat template refuses this dialogue .Unexpected end of template"),
        ("{{ 1 / 0 }}", "data.chat_template: the chat template refuses this dialogue .division by zero"),
        ("{{ messages[0].content.pop() }}", "the chat template refuses this dialogue .*no attribute 'pop'"),
        ("nowhere.jinja", "data.chat_template=nowhere.jinja: there is no such file"),
    ],
)
def test_a_template_that_cannot_be_learned_from_is_a_mistake(file, template, expected):
    with pytest.raises(UserMistake, match=expected):
        data_of(file, chat_template=template)


def test_a_tokenizer_without_a_template_takes_one_from_a_file(tmp_path, file):
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserMistake, match="brings no chat template: give one as data.chat_template"):
        data_of(file, tokenizer)
    (tmp_path / "chatml.jinja").write_text(SMOLLM2)
    assert (
        data_of(file, tokenizer, chat_template=str(tmp_path / "chatml.jinja")).encoded
        == data_of(file).encoded
    )


def test_a_dialogue_that_the_template_refuses_is_a_bad_row(file):
    strict = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    )
    with pytest.raises(UserMistake, match="refuses this dialogue .System role not supported"):
        data_of(file, chat_template=strict + SMOLLM2)
    data = data_of(file, chat_template=strict + SMOLLM2, on_bad_row="skip")
    assert sum(len(rows) for rows in data.rows.values()) == 20


@pytest.mark.parametrize(("key", "value"), [("format", "chatml"), ("learn", "everything"), ("max_length", 0)])
def test_a_wrong_option_is_named_before_anything_is_read(key, value):
    with pytest.raises(UserMistake, match=f"data.{key}="):
        ChatData(tokenizer=None, path="nowhere.jsonl", **{key: value})
