"""Dialogues to batches: what is learned is what the tokenizer's own chat template makes inference meet."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from chats import LLAMA3, QWEN3, ROWS, TEMPLATES, chat_tokenizer, data_of, dialogue, write

from ptlit.data import ChatTemplate, encoding
from ptlit.data.dialogues import SPLITS, dialogues
from ptlit.data.example import NOT_LEARNED
from ptlit.data.splitting import same_text
from ptlit.mistake import UserMistake


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "dialogues.jsonl", ROWS)


def test_rows_are_tokenised_in_chunks_as_they_are_at_once(tmp_path, monkeypatch):
    long = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "no end " * 60}]
    rows = [*ROWS[:9], long, *ROWS[9:16], long, *ROWS[16:]]
    options = {"max_length": 110, "on_bad_row": "skip", "tokenizer": chat_tokenizer("qwen3")}
    whole = data_of(write(tmp_path / "dialogues.jsonl", rows), **options)
    assert (
        whole.skipped["train"]
        and any(whole.cut["train"])
        and len(whole.encoded["train"]) > len(whole.rows["train"])
    )
    monkeypatch.setattr(encoding, "CHUNK", 7)
    chunked = data_of(tmp_path / "dialogues.jsonl", **options)
    assert chunked.rows == whole.rows and chunked.summary() == whole.summary()
    assert {split: list(rows) for split, rows in chunked.encoded.items()} == {
        split: list(rows) for split, rows in whole.encoded.items()
    }


def learned_stretches(row):
    """(start, end) of every run of learned tokens."""
    starts = []
    for i, label in enumerate(row["labels"]):
        if label != NOT_LEARNED and (i == 0 or row["labels"][i - 1] == NOT_LEARNED):
            starts.append(i)
    ends = [
        next((j for j in range(i, len(row["labels"])) if row["labels"][j] == NOT_LEARNED), None)
        for i in starts
    ]
    return [(i, j if j is not None else len(row["labels"])) for i, j in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("learn", ["all_replies", "last_reply"])
@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}], ids=["plain", "no thinking"])
@pytest.mark.parametrize("family", TEMPLATES)
def test_every_learned_reply_stands_behind_the_ids_of_apply_chat_template(file, family, options, learn):
    """The reference is the tokenizer itself, asked as a user of transformers would ask it."""
    tokenizer = chat_tokenizer(family)
    data = data_of(file, tokenizer, learn=learn, template_options=options)
    end = "<|eot_id|>" if family == "llama3" else "<|im_end|>"
    judged = {split: [[] for _ in rows] for split, rows in data.rows.items()}
    for split, rows in data.encoded.items():
        for row in rows:
            messages = data.rows[split][row["row"]]["messages"]
            wanted = {
                tuple(
                    tokenizer.apply_chat_template(
                        messages[:place],
                        add_generation_prompt=True,
                        tokenize=True,
                        return_dict=False,
                        **options,
                    )
                ): place
                for place, message in enumerate(messages)
                if message["role"] == "assistant"
            }
            for start, stop in learned_stretches(row):
                place = wanted[tuple(row["input_ids"][:start])]  # KeyError: inference never reads these ids
                said = tokenizer.decode(row["input_ids"][start:stop])
                assert said.removeprefix("<think>\n\n</think>\n\n") == messages[place]["content"] + end
                assert row["labels"][start:stop] == row["input_ids"][start:stop]
                judged[split][row["row"]].append(place)
    for split, places in judged.items():
        for row, found in zip(data.rows[split], places, strict=True):
            replies = [i for i, message in enumerate(row["messages"]) if message["role"] == "assistant"]
            assert sorted(found) == (replies if learn == "all_replies" else replies[-1:])


def test_a_template_that_rewrites_earlier_replies_makes_a_row_of_each(tmp_path):
    file = write(tmp_path / "long.jsonl", [dialogue(3, str(i)) for i in range(30)])
    assert len(data_of(file).encoded["train"]) == len(data_of(file).rows["train"])
    data = data_of(file, chat_tokenizer("qwen3"))
    assert len(data.encoded["train"]) == 3 * len(data.rows["train"])


def test_a_token_that_spans_the_start_of_a_reply_makes_a_row_of_each(tmp_path):
    """Here the template ends in a space, and the tokenizer has a token for a space with a letter."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *alphabet, "ĠI"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "I")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '\nQ: ' if m.role == 'user' else ' A: ' }}{{ m.content }}"
        "{{ eos_token if m.role == 'assistant' }}{% endfor %}{{ ' A: ' if add_generation_prompt }}"
    )
    file = write(tmp_path / "mine.jsonl", [dialogue(2, str(i)) for i in range(30)])
    data = data_of(file, tokenizer)
    assert len(data.encoded["train"]) == 2 * len(data.rows["train"])
    for row in data.encoded["train"]:
        ((start, stop),) = learned_stretches(row)
        messages = data.rows["train"][row["row"]]["messages"]
        read = [
            tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True, return_dict=False)
            for i in (1, 3)
        ]
        assert row["input_ids"][:start] in read and stop == len(row["input_ids"])


FORMS = {
    "messages": [{"messages": dialogue(1, str(i), "Be kind.")} for i in range(30)],
    "sharegpt": [
        {
            "conversations": [
                {"from": "system", "value": "Be kind."},
                {"from": "human", "value": f"What is {i} 0?"},
                {"from": "gpt", "value": f"It is {i} 0."},
            ]
        }
        for i in range(30)
    ],
    "alpaca": [
        {"instruction": f"What is {i} 0?", "input": "", "output": f"It is {i} 0.", "system": "Be kind."}
        for i in range(30)
    ],
    "prompt_completion": [
        {"prompt": f"What is {i} 0?", "completion": f"It is {i} 0.", "system": "Be kind."} for i in range(30)
    ],
}


NESTED, FLAT = (".jsonl", ".json", ".parquet"), (".csv", ".tsv")  # a table has no lists


@pytest.mark.parametrize(
    ("form", "suffix"),
    [(form, suffix) for form in FORMS for suffix in NESTED]
    + [(form, suffix) for form in ("alpaca", "prompt_completion") for suffix in FLAT],
)
def test_every_form_in_every_file_gives_the_same_rows(tmp_path, form, suffix):
    rows, file = FORMS[form], tmp_path / f"mine{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif suffix == ".json":
        file.write_text(json.dumps(rows))
    elif suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    else:
        mark = "," if suffix == ".csv" else "\t"
        file.write_text("\n".join(mark.join(row) for row in [list(rows[0]), *(row.values() for row in rows)]))
    found = data_of(file)
    assert found.encoded == data_of(file, format=form).encoded
    messages = [row["messages"] for rows in found.rows.values() for row in rows]
    assert sorted(map(str, messages)) == sorted(str(dialogue(1, str(i), "Be kind.")) for i in range(30))


def test_a_developer_is_the_system(tmp_path):
    rows = [dialogue(1, str(i), "Be kind.") for i in range(30)]
    usual = data_of(write(tmp_path / "system.jsonl", rows))
    renamed = [[messages[0] | {"role": "developer"}, *messages[1:]] for messages in rows]
    assert data_of(write(tmp_path / "developer.jsonl", renamed)).rows == usual.rows


@pytest.mark.parametrize("nothing", [0, False])
def test_a_reply_of_weight_0_is_read_and_not_learned(tmp_path, nothing):
    rows = []
    for i in range(30):
        row = dialogue(3, f"no. {i}")
        row[1]["weight"], row[3]["weight"], row[0]["tool_calls"] = 1, nothing, []
        rows.append(row)
    data = data_of(write(tmp_path / "weights.jsonl", rows))
    plain = data_of(write(tmp_path / "plain.jsonl", [dialogue(3, f"no. {i}") for i in range(30)]))
    for split, encoded in data.encoded.items():
        for row, other in zip(encoded, plain.encoded[split], strict=True):
            first, _, last = learned_stretches(other)
            assert row["input_ids"] == other["input_ids"] and learned_stretches(row) == [first, last]
    rows[5][5]["weight"] = nothing
    with pytest.raises(UserMistake, match="line 6: the last reply has the weight 0, so there is nothing"):
        data_of(write(tmp_path / "weights.jsonl", rows), learn="last_reply")


def test_the_input_of_an_instruction_is_part_of_the_question(tmp_path):
    file = tmp_path / "alpaca.json"
    file.write_text(
        json.dumps([{"instruction": "Add.", "input": f"{i} and 1", "output": str(i + 1)} for i in range(9)])
    )
    asked = {row["messages"][0]["content"] for rows in data_of(file).rows.values() for row in rows}
    assert "Add.\n3 and 1" in asked


def test_a_system_prompt_of_the_config_is_for_dialogues_without_one(file):
    data = data_of(file, system="Be rude.")
    assert {row["messages"][0]["content"] for row in data.rows["train"]} == {"Be rude.", "Be brief."}


@pytest.mark.parametrize("family", ["smollm2", "qwen3", "llama3"])
def test_long_dialogues_lose_their_oldest_turns(tmp_path, family):
    rows = [dialogue(1 + i % 6, f"no. {i}", "Be brief.") for i in range(40)]
    file = write(tmp_path / "long.jsonl", rows)
    tokenizer = chat_tokenizer(family)
    whole, data = data_of(file, tokenizer, max_length=4000), data_of(file, tokenizer, max_length=130)
    lengths = [len(row["input_ids"]) for row in whole.encoded["train"]]
    assert max(lengths) > 130
    assert max(len(row["input_ids"]) for row in data.encoded["train"]) <= 130
    long = {row["row"] for row in whole.encoded["train"] if len(row["input_ids"]) > 130}
    assert data.summary()["splits"]["train"]["truncated"] == len(long) > 0
    for row in data.encoded["train"]:
        messages = data.rows["train"][row["row"]]["messages"]
        start, _ = learned_stretches(row)[-1]
        kept = [
            tokenizer.apply_chat_template(
                [messages[0], *messages[first:place]], add_generation_prompt=True, return_dict=False
            )
            for place in range(2, len(messages), 2)
            for first in range(1, place, 2)
        ]
        assert row["input_ids"][:start] in kept  # the system prompt, and whole turns


def test_a_question_at_the_end_is_left_out_and_said(tmp_path):
    file = write(tmp_path / "mine.jsonl", [[*row, {"role": "user", "content": "And?"}] for row in ROWS])
    data = data_of(file)
    assert data.encoded == data_of(write(tmp_path / "other.jsonl", ROWS)).encoded
    assert "40 dialogues end in a question without a reply, which is left out" in data.summary()["notes"][0]


def test_what_ends_a_reply():
    assert ChatTemplate(chat_tokenizer()).stop_ids == chat_tokenizer().encode("<|im_end|>")
    tokenizer = chat_tokenizer("llama3")
    tokenizer.eos_token = "<eos>"
    stop = [2, tokenizer.convert_tokens_to_ids("<|eot_id|>")]
    assert ChatTemplate(tokenizer).stop_ids == stop
    assert ChatTemplate(tokenizer, LLAMA3).ids(dialogue(1)[:1])[0] == tokenizer.bos_token_id
    assert ChatTemplate(chat_tokenizer("qwen3"), QWEN3).end_of_turn == "<|im_end|>"


def test_answers_to_one_question_stay_in_one_split(tmp_path):
    rows = [
        [{"role": "user", "content": f"Say {i}!"}, {"role": "assistant", "content": f"{i} {j}"}]
        for i in range(30)
        for j in range(3)
    ]
    data = data_of(write(tmp_path / "mine.jsonl", rows))
    assert [split["also_in_train"] for split in data.summary()["splits"].values()] == [0, 0, 0]
    assert [len(rows) for rows in data.rows.values()] == [72, 9, 9]


def test_bundled_dialogues_are_distinct_and_share_no_question():
    splits = {split: dialogues(split) for split in SPLITS}
    assert [len(rows) for rows in splits.values()] == [406, 54, 47]
    asked = {
        split: {same_text(message["content"]) for row in rows for message in row["messages"][::2]}
        for split, rows in splits.items()
    }
    assert (
        not asked["train"] & asked["val"]
        and not asked["train"] & asked["test"]
        and not asked["val"] & asked["test"]
    )
    texts = [str(row["messages"]) for rows in splits.values() for row in rows]
    assert len(texts) == len(set(texts))
    long = [row for rows in splits.values() for row in rows if len(row["messages"]) > 2]
    assert 0 < sum(not row["synthetic"] for row in long) < 20 and len(long) > 250
    assert {row["topic"] for row in splits["test"]} > {"trivia", "coding"}


def test_bundled_dialogues_train():
    data = data_of("bundled_dialogues", limit=20, max_length=2000)
    assert len(data.rows["train"]) == 20
    assert any("synthetic" in note for note in data.summary()["notes"])
    assert data.content.endswith("replies to learn or to judge")
