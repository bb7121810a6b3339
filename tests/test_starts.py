"""Where a prompt starts: what the LM is given before the first step, against a target worked out apart."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from methods import METHODS, make_prompt
from runs import make_place, train_at
from test_config import complaints
from tiny import padded_rows, tiny_lm
from torch import Tensor
from transformers import Cache

from ptlit.data import ClassificationData
from ptlit.data.token_rows import TokenRows
from ptlit.lm import FrozenLM
from ptlit.loss import learned_positions, learned_token_loss
from ptlit.mistake import UserMistake
from ptlit.prompt import EmbeddingPrompt, SoftPrompt
from ptlit.prompt.init import STARTS, Task, start_prompt
from ptlit.prompted_lm import PromptedLM

LABELS = ((40, 41), (50,))
COMMON = (60, 61, 62, 63, 64, 65, 66, 67, 1)  # 1 is a special token
TEXTS = tuple(tuple(row[:length].tolist()) for row, length in zip(padded_rows()[0], (14, 9, 5), strict=False))
TASK = Task(LABELS, COMMON, TEXTS)


@pytest.fixture(scope="module")
def lm() -> FrozenLM:
    return tiny_lm("llama", spread=0.2)


def started(lm: FrozenLM, method: str, start: str, task: Task = TASK, **changes: int) -> SoftPrompt:
    torch.manual_seed(3)
    prompt = make_prompt(method, lm.shape, **changes)
    torch.manual_seed(4)
    start_prompt(prompt, lm, from_=start, text="Hi you", task=task)
    return prompt.eval()


def embeddings(lm: FrozenLM, start: str) -> Tensor:
    """What six virtual tokens should begin as, said without ptlit."""
    table = lm.model.get_input_embeddings().weight
    if start == "spread":
        torch.manual_seed(4)
        return table.mean(0) + table.std(0, correction=0) * torch.randn(6, 32)
    torch.manual_seed(4)
    by_chance = [COMMON[place] for place in torch.randperm(8).tolist()[:6]]
    text = lm.tokenizer("Hi you", add_special_tokens=False)["input_ids"]
    return table[{"text": text, "labels": [40, 41, 50, 40, 41, 50], "vocabulary": by_chance}[start]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", ["text", "labels", "vocabulary", "spread"])
def test_every_method_starts_where_it_is_told(lm: FrozenLM, method: str, start: str) -> None:
    prompt, target = started(lm, method, start), embeddings(lm, start)
    if isinstance(prompt, EmbeddingPrompt):
        torch.testing.assert_close(prompt(), target, rtol=1e-4, atol=1e-5)
        return
    check_key_values(prompt, lm.model(inputs_embeds=target[None], use_cache=True).past_key_values)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_is_the_same_start(lm: FrozenLM, method: str) -> None:
    for start in STARTS:
        assert torch.equal(started(lm, method, start)(), started(lm, method, start)()), start


@pytest.mark.parametrize("method", METHODS)
def test_zero_begins_nearest_to_the_untrained_lm(lm: FrozenLM, method: str) -> None:
    """On rows that it was not tried on, too."""
    ids, mask, labels = padded_rows((12, 7, 10, 13), learned=1)
    keep, targets = learned_positions(labels)
    untrained = learned_token_loss(PromptedLM(lm, None)(ids, mask, keep), targets).item()

    def away(start: str) -> float:
        prompted_lm = PromptedLM(lm, started(lm, method, start)).eval()
        return abs(learned_token_loss(prompted_lm(ids, mask, keep), targets).item() - untrained)

    assert away("zero") < min(0.1 * untrained, away("noise"))


@pytest.mark.parametrize("architecture", ["mamba", "gpt2", "bloom"])
def test_other_lms_have_the_same_starts(architecture: str) -> None:
    lm = tiny_lm(architecture)
    for start in STARTS:
        assert started(lm, "ptuning_mlp", start)().isfinite().all()
        if lm.shape.num_kv_heads is not None:
            assert started(lm, "prefix_tuning", start)().isfinite().all()


def test_few_words_are_repeated_and_many_cut(lm: FrozenLM) -> None:
    table = lm.model.get_input_embeddings().weight
    few = started(lm, "prompt_tuning", "vocabulary", Task(common=(60, 61)))()
    assert {tuple(row) for row in few.tolist()} == {tuple(row) for row in table[[60, 61]].tolist()}
    many = started(lm, "prompt_tuning", "labels", Task(labels=((40, 41), (50,))), num_virtual_tokens=2)()
    assert torch.equal(many, table[[40, 41]])
    special = set(lm.tokenizer.all_special_ids)
    rows = started(lm, "prompt_tuning", "vocabulary", Task(), num_virtual_tokens=256)()  # all there are
    assert torch.equal(rows.sort(0)[0], table[[i for i in range(259) if i not in special]].sort(0)[0])


def test_what_the_data_offers(tmp_path: Path) -> None:
    rows = TokenRows()
    assert rows.common_tokens(2) == rows.texts(2) == []
    read = [-100] * 4
    rows.extend([dict(input_ids=[7, -1, 8, 8, 9, 8], labels=[*read, 9, 8], label=0)] * 2, range(2))
    assert rows.common_tokens(2) == [8, 7] and rows.common_tokens(9) == [8, 7, 9]
    assert rows.texts(1) == [[7, 8, 8]]
    make_place(tmp_path)
    lm = tiny_lm("llama")
    data = ClassificationData(tokenizer=lm.tokenizer, path=str(tmp_path / "tweets.csv"), template="{text}!")
    data.setup()
    counted = Counter(token for row in data.encoded["train"] for token in row["input_ids"])
    common = data.encoded["train"].common_tokens(3)
    assert [counted[token] for token in common] == [count for _, count in counted.most_common(3)]
    assert lm.tokenizer.decode(data.encoded["train"].texts(1)[0]).endswith("!")


def test_what_is_missing_is_said(lm: FrozenLM) -> None:
    with pytest.raises(UserMistake, match="from=labels needs data with labels"):
        started(lm, "prompt_tuning", "labels", Task())
    with pytest.raises(UserMistake, match="from=zero needs texts"):
        started(lm, "prompt_tuning", "zero", Task())
    (chat,) = complaints("experiment=chat_ptuning", "prompt.init.from=labels")
    assert chat == (
        "prompt.init.from=labels: dialogues have no labels: choose another, such as prompt.init.from=text."
    )
    assert complaints("prompt.init.from=labels") == []
    assert complaints("prompt.init.from=lables") == [
        "prompt.init.from=lables is not a start: did you mean labels?"
    ]


def test_a_run_starts_from_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_place(tmp_path)
    words = ["experiment=prefix_tuning", "prompt.num_virtual_tokens=4"]
    first = train_at(tmp_path, "first", *words, "prompt.init.from=labels", "trainer.max_steps=3")
    said = f"prompt.init.from={first}"
    again = train_at(tmp_path, "again", *words, said, "trainer.max_steps=1", "optim.lr=1e-12")
    assert f"The prompt goes on from {first}/adapter" in capsys.readouterr().out
    ended, begun = (json.loads((each / "metrics.json").read_text()) for each in (first, again))
    assert begun["test/loss"] == pytest.approx(ended["test/loss"], abs=1e-5)
    (wrong,) = complaints(*words, f"prompt.init.from={first}/checkpoints")
    assert wrong.endswith("is no adapter, for it has no adapter_config.json.")
    (first / "adapter" / "adapter_config.json").unlink()
    (unfinished,) = complaints(*words, said)
    assert unfinished.endswith(f"is a run without an adapter/, as one that has not ended: resume={first}.")


@pytest.mark.parametrize("method", ["prefix_tuning", "prefix_projection", "ptuning_v2"])
def test_keys_and_values_start_as_words_have_them_behind_bos(lm: FrozenLM, method: str) -> None:
    """Which comes first, where there is room for more; against what transformers keeps of the same tokens."""
    ids = lm.tokenizer("Hi yo", add_special_tokens=False)["input_ids"]
    for count, expected in ((6, [1, *ids]), (2, [1, ids[0]]), (1, [ids[0]])):
        torch.manual_seed(3)
        prompt = make_prompt(method, lm.shape, num_virtual_tokens=count).eval()
        start_prompt(prompt, lm, from_="text", text="Hi yo", behind=[1])
        cache = lm.model(input_ids=torch.tensor([expected]), use_cache=True).past_key_values
        check_key_values(prompt, cache)


def check_key_values(prompt: SoftPrompt, cache: Cache) -> None:
    for layer, (keys, values) in zip(cache.layers, prompt(), strict=True):
        torch.testing.assert_close(keys, layer.keys[0].transpose(0, 1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(values, layer.values[0].transpose(0, 1), rtol=1e-4, atol=1e-5)
