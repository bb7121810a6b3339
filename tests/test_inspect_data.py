"""What a training would read, shown before any training, and without the LM."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from chats import chat_tokenizer
from runs import call
from tiny import byte_tokenizer

from ptlit.config import conf_folder
from ptlit.data import ClassificationData
from ptlit.inspect_data import as_read, histogram, main
from ptlit.overrides import preflight
from ptlit.quoting import paths_quoted


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizers that have no LM, and files."""
    folder = tmp_path_factory.mktemp("readers")
    byte_tokenizer().save_pretrained(folder / "lm")
    chat_tokenizer().save_pretrained(folder / "chat_lm")
    texts = [f"flight {i} was {'lovely' if i % 3 else 'late' * (i + 1)}" for i in range(40)]
    lines = [f"{text},{'good' if i % 3 else 'bad'}" for i, text in enumerate(texts)]
    (folder / "mine.csv").write_text("\n".join(["text,label", *lines, ",good"]))
    rows = [{"role": role, "content": f"Words {i}."} for i in range(4) for role in ("user", "assistant")]
    (folder / "mine.jsonl").write_text(
        "".join(json.dumps({"messages": rows[: 2 + i % 7 // 2 * 2]}) + "\n" for i in range(40))
    )
    return folder


def said(place: Path, capsys: pytest.CaptureFixture, *words: str) -> str:
    before = set(place.rglob("*"))
    call(place, main, "model=hf", *words)
    assert set(place.rglob("*")) == before  # it leaves nothing behind
    return capsys.readouterr().out


OWN = ["model.name_or_path=lm", "data=classification", "data.path=mine.csv", "data.on_bad_row=skip"]


def test_own_texts(readers: Path, capsys: pytest.CaptureFixture) -> None:
    words = [*OWN, "data.max_length=60", "data.template='Tweet: {text} Mood:'", "rows=4", "data.batch_size=4"]
    out = said(readers, capsys, *words, "prompt.num_virtual_tokens=7")
    data = data_of(readers, template="Tweet: {text} Mood:", max_length=60, batch_size=4, stratified=True)
    counts = data.summary()["splits"]
    for name, figures in (
        ("rows", [counts[split]["rows"] for split in counts]),
        ("good", [counts[split]["counts"]["good"] for split in counts]),
        ("skipped", [1, 0, 0]),
    ):
        assert re.search(rf"{name} +│ +{' +│ +'.join(map(str, figures))} ", out), name
    assert out.count("‹7 virtual tokens›Tweet: flight") == 4
    assert "⟦ good⟧" in out and "data.on_bad_row=error names the bad rows" in out
    cut = re.search(r"was (late\w*)✂ (\d+) characters Mood:⟦ bad⟧", out.replace("\n", " "))
    assert cut is not None
    texts = [row["text"].split()[-1] for row in data.rows["train"]]
    assert len(cut[1]) + int(cut[2]) in map(len, texts)
    shares = []
    lengths = [len(row["input_ids"]) for row in data.encoded["train"]]
    for batch in data.train_dataloader():
        real, cells = int(batch["attention_mask"].sum()), batch["input_ids"].numel()
        shares.append(1 - real / cells)
    assert f"{sum(shares) / len(shares):.1%} in batches of 4 rows of like length" in out
    assert re.search(r"^Peak memory of this look: [\d,]+ MB\.$", out, flags=re.MULTILINE)
    drawn = re.findall(r"^ +[\d-]+ █* ?(\d+)$", out, flags=re.MULTILINE)
    assert sum(map(int, drawn)) == len(lengths)


def data_of(place: Path, **options: object) -> ClassificationData:
    data = ClassificationData(
        tokenizer=byte_tokenizer(), path=str(place / "mine.csv"), on_bad_row="skip", **options
    )
    data.setup()
    return data


def test_own_texts_with_the_settings_of_others_are_said(readers: Path, capsys: pytest.CaptureFixture) -> None:
    note = "data.path=mine.csv is read with the template, instruction and limits of data=tweets"
    words = ["model.name_or_path=lm", "data.path=mine.csv", "data.on_bad_row=skip", "rows=0"]
    assert note in said(readers, capsys, *words)
    assert "of data=tweets" not in said(readers, capsys, *words, "data=classification")


def test_slots_stand_where_they_are(readers: Path, capsys: pytest.CaptureFixture) -> None:
    words = [*OWN, "data.template='{soft:4}Tweet: {text}{soft:3} Mood:'", "rows=1"]
    words += ["experiment=ptuning_mlp", "prompt.num_virtual_tokens=7"]
    out = said(readers, capsys, *words)
    assert re.search(r"‹4 virtual tokens›Tweet: [\w ]+‹3 virtual tokens› Mood:⟦ (good|bad)⟧", out)
    assert "‹7" not in out


def test_dialogues(readers: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["model.name_or_path=chat_lm", "experiment=chat_ptuning", "data.path=mine.jsonl", "split=val"]
    words += ["data.max_length=200", "prompt.num_virtual_tokens=3", "rows=40"]
    out = said(readers, capsys, *words)
    assert "‹3 virtual tokens›<|im_start|>system" in out.replace("✂ oldest turns\n", "")
    assert re.search(
        r"<\|im_start\|>user\nWords \d\.<\|im_end\|>\n<\|im_start\|>assistant\n⟦Words \d\.<\|im_end\|>⟧", out
    )
    assert "replies" in out


def test_nothing_is_added_nor_left_out(readers: Path) -> None:
    data = data_of(readers)
    for row in data.encoded["train"]:
        shown = re.sub("[⟦⟧]", "", as_read(data, "train", row).plain)
        assert shown == data.tokenizer.decode(row["input_ids"])


def test_a_histogram_counts_every_row_once() -> None:
    assert list(histogram([5])) == ["          5 " + "█" * 50 + " 1"]
    lines = list(histogram([3, 3, 4, 90]))
    assert len(lines) <= 12 and sum(int(line.split()[-1]) for line in lines) == 4
    assert lines[0].endswith("█ 3") and lines[1].endswith(" 0") and "█" not in lines[1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["split=dev"], "split=dev must be train, val or test"),
        (["rows=few"], "rows=few must be a whole number"),
        (["spilt=val"], "spilt is not a key of this config: did you mean split"),
        (["data.pth=mine.csv"], "data.pth is not a key of this config .* did you mean data.path"),
        (["data.path=gone.csv"], "data.path=gone.csv: there is no such file"),
        (["data.on_bad_row=error"], "mine.csv has 1 bad row: line 42: empty text"),
        (["optim.lr=-1"], "optim.lr=-1 must be above 0"),
        (["-m", "rows=1,2"], "-m is for training"),
        (["model.name_or_path=gone"], "model.name_or_path=gone could not be loaded"),
    ],
)
def test_mistakes_are_one_sentence(readers: Path, words: list[str], sentence: str) -> None:
    with pytest.raises(SystemExit, match=sentence) as end:
        call(readers, main, *sorted(["model=hf", *OWN, *words], key=lambda word: word != "-m"))
    assert len(str(end.value).splitlines()) == 1


def test_a_recipe_for_a_gpu_can_be_looked_at_without_one(
    readers: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copy(readers / "mine.jsonl", readers / "other.jsonl")
    words = ["experiment=qwen7b_chat_ptuning", "model.name_or_path=chat_lm", "model.trust_remote_code=false"]
    assert "‹10 virtual tokens›<|im_start|>" in said(readers, capsys, *words, "data.path=other.jsonl")


def test_the_examples_of_the_help_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = yaml.safe_load((conf_folder() / "inspect_data.yaml").read_text())["hydra"]["help"]["template"]
    examples = re.findall(r"^ +python -m ptlit.inspect_data\b(.*)$", text, flags=re.MULTILINE)
    assert len(examples) == 3
    for example in examples:
        for file in re.findall(r"data\.path=(\S+)", example):
            Path(file).touch()
        preflight(paths_quoted(shlex.split(example)), "inspect_data")
