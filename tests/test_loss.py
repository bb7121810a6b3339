"""What is minimised beside the loss of the learned tokens, against torch and against rows read one by one."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from methods import make_prompt
from test_training import data_of, lm, moods
from torch import Tensor

from ptlit.data import Batch
from ptlit.lm import FrozenLM
from ptlit.loss import Loss, learned_positions
from ptlit.mistake import UserMistake
from ptlit.module import SoftPromptModule
from ptlit.prompted_lm import PromptedLM

__all__ = ["lm", "moods"]  # fixtures

WORDS: dict[str, Any] = {
    "of one token": {"bad": "b", "good": "g"},
    "several of one token": {"bad": ["b", "-"], "good": ["g", "+", "!"]},
    "of several tokens": {"bad": [" bad", "x"], "good": " good"},
    "that begin others": {"bad": "b", "good": "bg"},
}


def module_and_batch(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    words: str = "of one token",
    method: str = "ptuning_mlp",
    loss: Loss | None = None,
    **options: Any,
) -> tuple[SoftPromptModule, Batch]:
    data = data_of(lm, moods, label_words=WORDS[words], by_length=False, **options)
    torch.manual_seed(3)
    prompted_lm = PromptedLM(lm, make_prompt(method, lm.shape), data.slots)
    module = SoftPromptModule(
        prompted_lm, label_words=data.label_words, loss=loss, class_weights=data.class_weights
    )
    batch = next(iter(data.train_dataloader()))
    assert len(batch["label"].unique()) == 2 and len(batch["attention_mask"].sum(1).unique()) > 1
    return module, batch


def scores_one_by_one(module: SoftPromptModule, batch: Batch) -> Tensor:
    """(B, C): every word after every text, each in a row of its own, by the slow route."""
    found = module.label_words
    assert found is not None
    rows = []
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        text = ids[(mask == 1) & (labels == -100)].tolist()
        of_words = []
        for word in found.token_ids:
            row = torch.tensor([[*text, *word]])
            keep = torch.zeros_like(row, dtype=torch.bool)
            keep[:, len(text) - 1 : -1] = True
            logits = module.prompted_lm.forward_concatenated(row, torch.ones_like(row), keep)
            of_words.append(-F.cross_entropy(logits, torch.tensor(word), reduction="sum"))
        parts = torch.stack(of_words).split([len(words) for words in found.words])
        rows.append(torch.stack([part.exp().sum().log() for part in parts]))
    return torch.stack(rows)


def gradients(total: Tensor, module: SoftPromptModule) -> list[Tensor]:
    return list(torch.autograd.grad(total, [p for p in module.parameters() if p.requires_grad]))


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("method", ["ptuning_mlp", "prefix_tuning"])
def test_labels_are_ranked_by_the_scores_that_judge_them(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    words: str,
    method: str,
) -> None:
    weights = {"bad": 3.0, "good": 0.5}
    module, batch = module_and_batch(lm, moods, words, method, Loss(label_weight=0.7), class_weights=weights)
    losses = module.losses(batch)
    plain = module_and_batch(lm, moods, words, method, class_weights=weights)[0].losses(batch)
    expected = F.cross_entropy(
        scores_one_by_one(module, batch), batch["label"], weight=torch.tensor([3.0, 0.5])
    )
    torch.testing.assert_close(losses["label_loss"], expected)
    torch.testing.assert_close(losses["loss"], plain["loss"])
    torch.testing.assert_close(losses["total"], plain["loss"] + 0.7 * expected)
    torch.testing.assert_close(
        gradients(losses["label_loss"], module), gradients(expected, module), atol=1e-5, rtol=1e-3
    )


def test_words_of_one_token_are_ranked_without_reading_again(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, batch = module_and_batch(lm, moods, "several of one token", loss=Loss(label_weight=1.0))
    readings = []
    handle = lm.model.register_forward_pre_hook(lambda *_: readings.append(1))
    module.losses(batch)
    handle.remove()
    assert len(readings) == 1


def test_places_within_the_rows(lm: FrozenLM, moods: Path) -> None:  # noqa: F811
    template = "{soft:2}{text}{soft:4} is"
    for words in ("of one token", "of several tokens"):
        module, batch = module_and_batch(lm, moods, words, loss=Loss(label_weight=1.0), template=template)
        expected = F.cross_entropy(scores_one_by_one(module, batch), batch["label"])
        torch.testing.assert_close(module.losses(batch)["label_loss"], expected)


@pytest.mark.parametrize("words", ["of one token", "of several tokens"])
@pytest.mark.parametrize("weights", [None, {"bad": 3.0, "good": 0.5}])
def test_smoothing_asks_for_all_alike(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    words: str,
    weights: dict[str, float] | None,
) -> None:
    """By its definition: a mixture of what is right and of the uniform distribution is asked for."""
    share = 0.2
    loss = Loss(label_weight=0.5, label_smoothing=share)
    module, batch = module_and_batch(lm, moods, words, loss=loss, class_weights=weights)
    losses = module.losses(batch)
    plain = module_and_batch(lm, moods, words, class_weights=weights)[0].losses(batch)

    def mixture(logits: Tensor, right: Tensor) -> Tensor:
        asked = F.one_hot(right, logits.shape[-1]) * (1 - share) + share / logits.shape[-1]
        return -(asked * logits.log_softmax(-1)).sum(-1)

    keep, targets = learned_positions(batch["labels"])
    logits = module.prompted_lm(batch["input_ids"], batch["attention_mask"], keep)
    of_row = torch.tensor([3.0, 0.5] if weights else [1.0, 1.0])[batch["label"]]
    of_token = of_row[keep.nonzero()[:, 0]]
    tokens = (mixture(logits, targets) * of_token).sum() / of_token.sum()
    labels = (mixture(scores_one_by_one(module, batch), batch["label"]) * of_row).sum() / of_row.sum()
    torch.testing.assert_close(losses["label_loss"], labels)
    torch.testing.assert_close(losses["total"], tokens + 0.5 * labels)
    torch.testing.assert_close(losses["loss"], plain["loss"])  # told as validation measures it
    assert not losses["loss"].requires_grad


def test_nothing_of_it_by_default(lm: FrozenLM, moods: Path) -> None:  # noqa: F811
    module, batch = module_and_batch(lm, moods)
    losses = module.losses(batch)
    assert set(losses) == {"loss", "total"} and losses["total"] is losses["loss"]


def test_rows_without_labels_rank_none(lm: FrozenLM) -> None:  # noqa: F811
    with pytest.raises(UserMistake, match=r"loss.label_weight=1.0 ranks labels, and there are none"):
        SoftPromptModule(PromptedLM(lm, None), loss=Loss(label_weight=1.0))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"label_weight": -0.1}, "loss.label_weight=-0.1 must be 0 or more"),
        ({"label_weight": float("nan")}, "loss.label_weight=nan must be 0 or more"),
        ({"label_smoothing": 1.0}, "loss.label_smoothing=1.0 must be a number from 0"),
    ],
)
def test_numbers_that_make_no_loss(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserMistake, match=sentence):
        Loss(**options)
