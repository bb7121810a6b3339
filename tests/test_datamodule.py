"""From a user's file to batches: what is read, what is learned, what is cut, what is held out."""

import json
import pickle
from collections import Counter

import pytest
import torch
from tiny import byte_tokenizer

from ptlit.data import ClassificationData, LabelWords, Template, encoding
from ptlit.data.example import NOT_LEARNED, encode
from ptlit.data.token_rows import TokenRows
from ptlit.mistake import UserMistake

TOKENIZER = byte_tokenizer()


def write(file, count=100):
    lines = [f"this is text number {i},{'good' if i % 4 else 'bad'},note {i}" for i in range(count)]
    file.write_text("text,label,remark\n" + "\n".join(lines) + "\n")
    return file


def data_of(path, **options):
    data = ClassificationData(tokenizer=TOKENIZER, path=str(path), **options)
    data.setup()
    return data


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "mine.csv")


def test_one_file_is_split_without_losing_a_row(file):
    data = data_of(file)
    assert {split: len(rows) for split, rows in data.rows.items()} == {"train": 80, "val": 10, "test": 10}
    texts = [row["text"] for rows in data.rows.values() for row in rows]
    assert len(set(texts)) == 100
    for split in ("val", "test"):
        assert {row["label"] for row in data.rows[split]} == {0, 1}
    assert data_of(file).rows == data.rows != data_of(file, seed=1).rows
    assert "set aside" in data.summary()["notes"][0]


def test_copies_never_land_in_two_splits(tmp_path):
    file = tmp_path / "copies.csv"
    lines = [
        f"{text},{'ab'[i % 2]}" for i in range(60) for text in (f"Text {i}!", f"text {i}", f"TEXT  {i} .")
    ]
    file.write_text("text,label\n" + "\n".join(lines) + "\n")
    summary = data_of(file).summary()
    assert [split["also_in_train"] for split in summary["splits"].values()] == [0, 0, 0]
    assert all(split["rows"] % 3 == 0 for split in summary["splits"].values())


def test_given_splits_are_taken_as_they_are(tmp_path, file):
    val = write(tmp_path / "val.csv", 7)
    data = data_of(file, val_path=str(val))
    assert len(data.rows["val"]) == 7
    assert data.summary()["splits"]["val"]["also_in_train"] > 0


def test_label_words_are_found_or_declared(file):
    assert data_of(file).label_words.names == ("bad", "good")
    declared = data_of(file, label_words={"good": " yes", "bad": " no"})
    assert declared.label_words.names == ("good", "bad")
    row = declared.encoded["train"][0]
    learned = [token for token in row["labels"] if token != NOT_LEARNED]
    assert tuple(learned) == declared.label_words.token_ids[row["label"]]
    assert TOKENIZER.decode(learned) in (" yes", " no")
    with pytest.raises(UserMistake, match="line 2: the label 'bad' is none of good, fine"):
        data_of(file, label_words={"good": " yes", "fine": " no"})


@pytest.mark.parametrize("names", [("true", "false"), ("True", "False"), ("TRUE", "FALSE")])
def test_booleans_of_a_config_are_the_labels_of_the_file(tmp_path, names):
    file = tmp_path / "facts.csv"
    lines = [f"fact {i},{names[i % 2]}" for i in range(40)]
    file.write_text("\n".join(["text,label", *lines]))
    data = data_of(file, label_words={True: " yes", False: " no"}, class_weights={False: 1.0, True: 2.0})
    assert data.label_words.names == names and data.class_weights == (2.0, 1.0)
    assert data_of(file, class_weights={True: 2.0, False: 1.0}).class_weights == (1.0, 2.0)


def test_of_two_spellings_a_boolean_is_the_one_in_lower_case(tmp_path):
    file = tmp_path / "facts.csv"
    file.write_text(
        "\n".join(["text,label", *(f"fact {i},{('true', 'false')[i % 2]}" for i in range(40)), "b,True"])
    )
    with pytest.raises(UserMistake, match="line 42: the label 'True' is none of true, false"):
        data_of(file, label_words={True: " yes", False: " no"})


def test_a_label_that_training_never_shows_is_a_bad_row(tmp_path, file):
    val = tmp_path / "val.csv"
    val.write_text("text,label,remark\na,good,\nb,ugly,\n")
    with pytest.raises(UserMistake, match="val.csv has 1 bad row: line 3: the label 'ugly'"):
        data_of(file, val_path=str(val))
    assert data_of(file, val_path=str(val), on_bad_row="skip").summary()["splits"]["val"]["skipped"] == 1


def test_words_that_begin_others_get_an_end():
    words = LabelWords.make(["pos", "positive"], TOKENIZER)
    assert words.ends_with_eos
    assert all(ids[-1] == TOKENIZER.eos_token_id for ids in words.token_ids)
    row = encode(
        Template("{text}:").example("x", target=words.words[0][0], ends_with_eos=True),
        TOKENIZER,
        max_length=50,
    )
    assert tuple(row["labels"][-len(words.token_ids[0]) :]) == words.token_ids[0]
    assert not LabelWords.make(["good", "bad"], TOKENIZER).ends_with_eos
    with pytest.raises(UserMistake, match="'a' and 'b' are the same tokens"):
        LabelWords.make(["a", "b"], TOKENIZER, words={"a": "same", "b": "same"})


@pytest.mark.parametrize("template", ["Tweet: {text}\nSentiment:", "{text}\n", "{text} => ", "{{{text}}}"])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_inference_reads_the_tokens_of_training(template, adds_bos):
    tokenizer = byte_tokenizer(adds_bos)
    template = Template(template)
    words = LabelWords.make(["bad", "good"], tokenizer, lead=template.lead)
    training = encode(template.example("Hä? ", target=words.words[1][0], label=1), tokenizer, 100)
    inference = encode(template.example("Hä? "), tokenizer, 100)
    read = len(inference["input_ids"])
    assert training["input_ids"] == inference["input_ids"] + list(words.token_ids[1])
    assert training["labels"] == [NOT_LEARNED] * read + list(words.token_ids[1])
    assert inference["labels"] == [NOT_LEARNED] * read
    assert (inference["input_ids"][0] == tokenizer.bos_token_id) is adds_bos
    assert inference["input_ids"].count(tokenizer.bos_token_id) == adds_bos


def test_a_row_without_the_column_that_the_template_names_is_a_bad_row(tmp_path):
    rows = [{"text": f"row {i}", "label": "ab"[i % 2], "topic": "x"} for i in range(60)]
    rows[4]["topic"] = None
    del rows[7]["topic"]
    file = tmp_path / "topics.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        UserMistake, match=r"2 bad rows: line 5: nothing in the column 'topic'.*; line 8: nothing"
    ):
        data_of(file, template="{topic}: {text}")
    data = data_of(file, template="{topic}: {text}", on_bad_row="skip")
    assert sum(len(rows) for rows in data.rows.values()) == 58


def test_a_row_whose_other_columns_leave_no_room_is_a_bad_row(tmp_path):
    rows = [{"text": f"t{i}", "label": "ab"[i % 2], "context": "ctx "} for i in range(60)]
    rows[50]["context"] *= 600
    path = tmp_path / "long.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    template = "{context} {text}\nLabel:"
    why = r"long.jsonl has 1 bad row: line 51: with 'context' it takes 2,410 tokens .*, data.max_length=256"
    with pytest.raises(UserMistake, match=why):
        data_of(path, template=template, max_length=256)
    data = data_of(path, template=template, max_length=256, on_bad_row="skip")
    assert sum(len(rows) for rows in data.rows.values()) == 59 and sum(data.skipped.values()) == 1
    for split, rows in data.rows.items():
        for row, encoded in zip(rows, data.encoded[split], strict=True):
            assert f" {row['text']}\n" in TOKENIZER.decode(encoded["input_ids"])
    with pytest.raises(UserMistake, match="take 10 tokens without any text, but data.max_length is 9"):
        data_of(path, template=template, max_length=9, on_bad_row="skip")


def test_braces_and_columns_in_a_template(file):
    data = data_of(file, template="{{{remark}}} {text}:")
    assert TOKENIZER.decode(data.encoded["train"][0]["input_ids"]).startswith("{note ")
    with pytest.raises(UserMistake, match=r"names the field \{remrk\}.*choose from remark, text"):
        data_of(file, template="{remrk} {text}")
    for broken in ("no text", "{text} {text}", "{text", "{text!r}", ""):
        with pytest.raises(UserMistake, match="data.template"):
            data_of(file, template=broken)


@pytest.mark.parametrize("length", [20, 21, 22, 23, 24, 60])
def test_the_text_gives_way_from_its_end(length):
    template = Template("Tweet: {text}\nMood:")
    row = encode(template.example("äöü" * 30, target=" good"), TOKENIZER, length)
    text = TOKENIZER.decode(row["input_ids"])
    assert length - 1 <= len(row["input_ids"]) <= length  # an ä is two tokens
    kept = text.removeprefix("Tweet: ").removesuffix("\nMood: good")
    assert text == f"Tweet: {kept}\nMood: good" and ("äöü" * 30).startswith(kept)
    with pytest.raises(UserMistake, match="take 18 tokens without any text, but data.max_length is 17"):
        encode(template.example("äöü" * 30, target=" good"), TOKENIZER, 17)


def test_cut_rows_are_counted(file):
    data = data_of(file, max_length=40)
    summary = data.summary()["splits"]["train"]
    assert 0 < summary["truncated"] <= summary["rows"]
    assert max(len(row["input_ids"]) for row in data.encoded["train"]) == 40


def test_limits_are_stratified_and_the_same_for_the_same_seed(file):
    data = data_of(file, limit=20, val_limit=2)
    assert Counter(row["label"] for row in data.rows["train"]) == {0: 5, 1: 15}
    assert Counter(row["label"] for row in data.rows["val"]) == {0: 1, 1: 1}
    assert data.rows == data_of(file, limit=20, val_limit=2).rows
    larger = data_of(file, limit=30)
    assert all(row in larger.rows["train"] for row in data.rows["train"])


def test_few_shot_takes_so_many_of_each_label(file):
    whole, data = data_of(file), data_of(file, few_shot=16)
    assert Counter(row["label"] for row in data.rows["train"]) == {0: 16, 1: 16}
    assert all(row in whole.rows["train"] for row in data.rows["train"])
    assert {split: data.rows[split] for split in ("val", "test")} == {
        split: whole.rows[split] for split in ("val", "test")
    }
    assert data.rows == data_of(file, few_shot=16).rows
    assert (
        data_of(file, few_shot=16, val_path=str(file), test_path=str(file), seed=1).rows["train"]
        != (data_of(file, few_shot=16, val_path=str(file), test_path=str(file)).rows["train"])
    )
    short = data_of(file, few_shot=30)  # 19 bad ones are left to train on
    counts = Counter(row["label"] for row in short.rows["train"])
    assert counts == {0: len([row for row in whole.rows["train"] if row["label"] == 0]), 1: 30}
    assert f"fewer of bad {counts[0]}, which is all there are" in " ".join(short.summary()["notes"])
    with pytest.raises(UserMistake, match="data.few_shot=16 and data.limit=9 both choose"):
        data_of(file, few_shot=16, limit=9)


def test_folds_test_every_row_once(tmp_path):
    file = tmp_path / "copies.csv"
    lines = [f"{text},{'ab'[i % 3 == 0]}" for i in range(40) for text in (f"Text {i}!", f"text {i}")]
    file.write_text("text,label\n" + "\n".join(lines) + "\n")
    tested = []
    for fold in range(5):
        data = data_of(file, folds=5, fold=fold)
        rows = data.rows
        assert sum(map(len, rows.values())) == 80
        assert [split["also_in_train"] for split in data.summary()["splits"].values()] == [0, 0, 0]
        assert len(rows["test"]) == 16 and rows["val"]
        assert Counter(row["label"] for row in rows["test"])[1] in (4, 6)  # of 28: a third
        tested += [row["text"] for row in rows["test"]]
        assert f"test: fold {fold} of 5" in data.summary()["notes"][0]
    assert sorted(tested) == sorted(line.split(",")[0] for line in lines)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"folds": 5}, "data.folds=5 wants data.fold=0 to 4"),
        ({"folds": 5, "fold": 5}, "data.fold=5: data.folds=5 wants data.fold=0 to 4"),
        ({"fold": 0}, "data.fold=0 is one of how many"),
        ({"folds": 1, "fold": 0}, "data.folds=1 must be at least 2"),
        ({"folds": 5, "fold": 0, "test_path": "a.csv"}, "leave out data.test_path=a.csv"),
        ({"folds": 5, "fold": 0, "val_path": "a.csv"}, "leave out data.val_path=a.csv"),
        ({"class_weights": "balance"}, "must be balanced, or a number for each label"),
        ({"class_weights": {"a": 0.0}}, "0.0 must be a number above 0"),
        ({"class_weights": "balanced", "balanced": True}, "mend the same thing"),
    ],
)
def test_contradicting_options_are_named_before_anything_is_read(options, sentence):
    with pytest.raises(UserMistake, match=sentence):
        ClassificationData(tokenizer=TOKENIZER, path="nowhere.csv", **options)


def test_a_label_that_is_set_aside_wholly_is_judged_in_the_fold_that_has_it(tmp_path):
    file = tmp_path / "rare.csv"
    lines = [f"text {i},{'ab'[i % 2]}" for i in range(40)]
    file.write_text("\n".join(["text,label", *lines, "seldom seen,rare"]))
    found = []
    for fold in range(3):
        data = data_of(file, folds=3, fold=fold, class_weights="balanced")
        assert data.label_words.names == ("a", "b", "rare")
        counts = {split: part["counts"]["rare"] for split, part in data.summary()["splits"].items()}
        said = "train has no row of rare left" in " ".join(data.summary()["notes"])
        assert said == (counts["train"] == 0)
        found.append(next(split for split, count in counts.items() if count))
    assert sorted(found) == ["test", "train", "train"]


def test_a_label_whose_texts_are_copies_of_anothers_is_no_traceback(tmp_path):
    file = tmp_path / "copies.csv"
    lines = [f"text {i},{'ab'[i % 2]}" for i in range(40)]
    for i in range(40):  # whichever is set aside, all of the third label goes with it
        file.write_text("\n".join(["text,label", *lines, f"Text {i},odd"]))
        data = data_of(file)
        assert data.label_words.names == ("a", "b", "odd")
        (split,) = [split for split, rows in data.rows.items() if 2 in [row["label"] for row in rows]]
        assert ("train has no row of odd" in data.summary()["notes"][-1]) == (split != "train")


def test_one_label_left_to_train_on_is_a_mistake(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("\n".join(["text,label", *(f"text {i},a" for i in range(30)), "other,b"]))
    with pytest.raises(UserMistake, match="too few different texts of b: once val and test are set aside"):
        for fold in range(3):
            data_of(file, folds=3, fold=fold)


def test_folds_of_a_source_that_has_splits_are_refused(tmp_path, file):
    folder = tmp_path / "splits"
    folder.mkdir()
    for name in ("train", "test"):
        write(folder / f"{name}.csv")
    with pytest.raises(UserMistake, match="brings its own test: give data.path=<its training file>"):
        data_of(folder, folds=5, fold=0)
    with pytest.raises(UserMistake, match="brings its own val and test"):
        data_of("bundled_tweets", folds=5, fold=0)
    with pytest.raises(UserMistake, match="too few different texts for data.folds=500"):
        data_of(file, folds=500, fold=200)


def test_class_weights_are_balanced_or_given(file):
    assert data_of(file).class_weights is None
    data = data_of(file, class_weights="balanced")
    counts = Counter(row["label"] for row in data.rows["train"])
    sums = [weight * counts[label] for label, weight in enumerate(data.class_weights)]
    assert sums == pytest.approx([40, 40])  # of 80 rows
    assert data_of(file, class_weights={"good": 1, "bad": 3.5}).class_weights == (3.5, 1.0)
    with pytest.raises(UserMistake, match="must give a weight to each label: bad, good"):
        data_of(file, class_weights={"good": 1.0})


def test_balanced_training_shows_each_label_equally_often(file):
    data = data_of(file, balanced=True)
    drawn = Counter(label for batch in data.train_dataloader() for label in batch["label"].tolist())
    assert drawn[0] == drawn[1] == Counter(row["label"] for row in data.rows["train"])[1]
    judged = Counter(label for batch in data.eval_dataloader("train") for label in batch["label"].tolist())
    assert judged[0] < judged[1]


def test_stratified_training_has_the_labels_evenly_in_all_batches(file):
    def shares(**options):
        batches = [batch["label"].tolist() for batch in data_of(file, **options).train_dataloader()]
        return {sum(labels) for labels in batches if len(labels) == 8}

    assert max(shares(stratified=True)) - min(shares(stratified=True)) <= 2
    assert max(shares()) - min(shares()) > 2


def test_a_batch_points_back_to_its_rows(file):
    data = data_of(file)
    data.setup("fit")  # nothing is read twice
    for loader, split in ((data.train_dataloader(), "train"), (data.test_dataloader(), "test")):
        for batch in loader:
            assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
            assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["labels"].shape
            for i, row in enumerate(batch["row"].tolist()):
                ids = batch["input_ids"][i, : batch["attention_mask"][i].sum()]
                assert data.rows[split][row]["text"] in TOKENIZER.decode(ids)
                assert data.rows[split][row]["label"] == batch["label"][i]
                assert (batch["labels"][i][batch["attention_mask"][i] == 0] == NOT_LEARNED).all()


def test_it_pickles(file):
    data = data_of(file)
    again = pickle.loads(pickle.dumps(data))
    one, other = next(iter(data.train_dataloader())), next(iter(again.train_dataloader()))
    assert torch.equal(one["input_ids"], other["input_ids"])


@pytest.mark.parametrize(
    ("key", "value"),
    [("batch_size", 0), ("eval_batch_size", -1), ("max_length", 0), ("limit", 0), ("num_workers", -1)]
    + [("on_bad_row", "ignore"), ("label_words", {"one": " one"})],
)
def test_a_wrong_option_is_named_before_anything_is_read(key, value):
    with pytest.raises(UserMistake, match=f"data.{key}="):
        ClassificationData(tokenizer=TOKENIZER, path="nowhere.csv", **{key: value})


def test_one_label_only_and_too_few_rows_are_mistakes(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("text,label\na,x\nb,x\nc,x\n")
    with pytest.raises(UserMistake, match="every row has the label 'x'"):
        data_of(file)
    file.write_text("text,label\na,x\nb,y\n")
    with pytest.raises(UserMistake, match="too few rows"):
        data_of(file)


def test_bundled_tweets_carry_their_topic():
    data = data_of("bundled_tweets", subset="claritin", limit=50)
    assert {row["group"] for row in data.rows["train"]} == {"claritin"}
    assert len(data.rows["train"]) == 50
    assert data.label_words.names == ("negative", "neutral", "positive")


def test_rows_in_tokens_are_what_was_put_in():
    rows = [{"input_ids": [i, -1, 250_000], "labels": [-100, -100, i], "label": i % 3 - 1} for i in range(9)]
    rows[4] = {"input_ids": [], "labels": [], "label": -1}
    found = TokenRows()
    found.extend(rows[:5], range(5))
    found.extend(rows[5:], range(10, 14))
    expected = [row | {"row": place} for row, place in zip(rows, [*range(5), *range(10, 14)], strict=True)]
    assert list(found) == expected and found[::2] == expected[::2] and found[-1] == expected[-1]
    assert found.lengths.tolist() == [3, 3, 3, 3, 0, 3, 3, 3, 3]
    assert pickle.loads(pickle.dumps(found)) == found != TokenRows()
    with pytest.raises(IndexError):
        found[9]


def test_rows_are_tokenised_in_chunks_as_they_are_at_once(file, monkeypatch):
    whole = data_of(file, max_length=40)
    monkeypatch.setattr(encoding, "CHUNK", 7)
    parts = data_of(file, max_length=40)
    assert parts.encoded == whole.encoded and parts.cut == whole.cut and any(whole.cut["train"])
    for row in whole.encoded["train"]:
        longer = 8 + len(whole.rows["train"][row["row"]]["text"]) + len("\nSentiment: good") > 40
        assert whole.cut["train"][row["row"]] == longer
