"""A step that leaves out virtual tokens, held against a prompt that never had them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from methods import METHODS, make_prompt
from test_training import data_of, lm, moods
from tiny import WITHOUT_KEYS_AND_VALUES, tiny_lm
from torch import Tensor

from ptlit.data import Batch
from ptlit.fewer_tokens import FewerTokens
from ptlit.lm import FrozenLM
from ptlit.loss import Loss
from ptlit.mistake import UserMistake
from ptlit.module import SoftPromptModule
from ptlit.prefix import Prefix
from ptlit.prompt import EmbeddingPrompt
from ptlit.prompted_lm import PromptedLM

__all__ = ["lm", "moods"]  # fixtures

STAYS = torch.tensor([True, False, True, True, False, True])


def module_and_batch(
    lm: FrozenLM,  # noqa: F811
    moods: Path,  # noqa: F811
    method: str,
    rate: float = 0.0,
    **options: Any,
) -> tuple[SoftPromptModule, Batch]:
    data = data_of(lm, moods, by_length=False, **options)
    torch.manual_seed(3)
    prompted_lm = PromptedLM(lm, make_prompt(method, lm.shape).eval(), data.slots)
    module = SoftPromptModule(
        prompted_lm, label_words=data.label_words, loss=Loss(label_weight=1.0), drop_virtual_tokens=rate
    )
    module.log = lambda *said, **how: None  # type: ignore[method-assign]
    return module, next(iter(data.train_dataloader()))


def loss_one_by_one(module: SoftPromptModule, batch: Batch, stays: Tensor) -> Tensor:
    """Every row alone, its virtual tokens put together by hand."""
    prompted_lm, model = module.prompted_lm, module.prompted_lm.lm.model
    given = prompted_lm.prompt()  # type: ignore[misc]
    losses = []
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        row, wanted = ids[mask == 1], labels[mask == 1]
        cache: dict[str, Any] = {}
        words = prompted_lm.lm.embed(row.clamp(min=0))
        if isinstance(prompted_lm.prompt, EmbeddingPrompt):
            virtual, stand = given[stays], row.new_tensor([-1])
            if prompted_lm.in_rows:
                here = [i for i, token in enumerate(row.tolist()) if token >= 0 or stays[-1 - token]]
                words = torch.stack([words[i] if row[i] >= 0 else given[-1 - row[i]] for i in here])
                wanted = wanted[here]
            else:
                words = torch.cat([virtual, words])
                wanted = torch.cat([stand.new_full((len(virtual),), -100), wanted])
        else:
            prefix = Prefix.from_key_values(given[:, :, stays])
            cache = {"past_key_values": prefix.growing_cache(model, 1)}
        logits = model(inputs_embeds=words[None], **cache).logits[0]
        learned = (wanted != -100).nonzero()[:, 0]
        losses.append(F.cross_entropy(logits[learned - 1], wanted[learned], reduction="none"))
    return torch.cat(losses).mean()


def gradients(loss: Tensor, module: SoftPromptModule) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad]))


@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_shorter_prompt(lm: FrozenLM, moods: Path, method: str) -> None:  # noqa: F811
    module, batch = module_and_batch(lm, moods, method)
    loss = module.losses(batch, FewerTokens(module.prompted_lm, STAYS))["loss"]
    expected = loss_one_by_one(module, batch, STAYS)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, module), gradients(expected, module), atol=1e-5, rtol=1e-3)
    assert abs((loss - module.losses(batch)["loss"]).item()) > 1e-4


@pytest.mark.parametrize("template", ["{soft:2}{text}{soft:4}", "{soft:6}{text} is", "{text}{soft:6} is"])
def test_slots(lm: FrozenLM, moods: Path, template: str) -> None:  # noqa: F811
    module, batch = module_and_batch(lm, moods, "ptuning_mlp", template=template)
    fewer = FewerTokens(module.prompted_lm, STAYS)
    loss = module.losses(batch, fewer)["loss"]
    torch.testing.assert_close(loss, loss_one_by_one(module, batch, STAYS))
    right = module._likelihoods(batch, fewer, None).gather(1, batch["label"][:, None])
    torch.testing.assert_close(loss, -right.sum() / (batch["labels"] != -100).sum())


@pytest.mark.parametrize("family", ["bloom", *WITHOUT_KEYS_AND_VALUES])
def test_other_routes(moods: Path, family: str) -> None:  # noqa: F811
    """LMs without positions, and those that take virtual tokens in every row."""
    module, batch = module_and_batch(tiny_lm(family, spread=0.2), moods, "prompt_tuning")
    loss = module.losses(batch, FewerTokens(module.prompted_lm, STAYS))["loss"]
    torch.testing.assert_close(loss, loss_one_by_one(module, batch, STAYS), atol=1e-4, rtol=1e-4)


def test_chance_and_only_in_training(lm: FrozenLM, moods: Path) -> None:  # noqa: F811
    rate = 0.3
    module, batch = module_and_batch(lm, moods, "ptuning_mlp", rate)
    torch.manual_seed(11)
    found = [FewerTokens.by_chance(module.prompted_lm, rate).stays for _ in range(2000)]
    assert torch.stack(found).float().mean(0).sub(1 - rate).abs().max() < 0.05
    always = [FewerTokens.by_chance(module.prompted_lm, 0.999).stays.sum() for _ in range(50)]
    assert set(map(int, always)) == {1}

    torch.manual_seed(11)
    loss = module.training_step(batch, 0)
    expected = module.losses(batch, FewerTokens(module.prompted_lm, found[0]))
    torch.testing.assert_close(loss, expected["total"])
    with torch.no_grad():
        scores = module.scores(batch)
        assert torch.equal(module.scores(batch), scores)
    plain, _ = module_and_batch(lm, moods, "ptuning_mlp")
    state = torch.get_rng_state()
    plain.training_step(batch, 0)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_that_is_none(lm: FrozenLM, rate: float) -> None:  # noqa: F811
    with pytest.raises(UserMistake, match="drop_virtual_tokens=.* must be a number from 0"):
        SoftPromptModule(PromptedLM(lm, None), drop_virtual_tokens=rate)


def test_what_stands_behind_bos_still_does(lm: FrozenLM) -> None:  # noqa: F811
    prompt = make_prompt("prompt_tuning", lm.shape)
    whole = PromptedLM(lm, prompt, leading=[5])
    ids = torch.tensor([[5, 8, 9, 3], [5, 7, 2, 4]])
    keep = torch.arange(4).expand(2, -1) > 0
    found = FewerTokens(whole, STAYS)(ids, torch.ones_like(ids), keep)
    words = lm.embed(ids)
    virtual = prompt()[STAYS].expand(2, -1, -1)
    by_hand = lm.model(inputs_embeds=torch.cat([words[:, :1], virtual, words[:, 1:]], dim=1)).logits
    torch.testing.assert_close(found, by_hand[:, 1 + virtual.shape[1] :].flatten(0, 1))
