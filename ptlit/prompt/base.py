"""What a soft prompt is: a module that answers "what is the tensor?". Where it goes is not its affair.

The legend of axes for the whole project: B batch, T tokens, P virtual tokens, H width of an embedding, L
layers, K key/value heads, D size of a head, V vocabulary, E an encoder's hidden size, C classes, N supervised
positions.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ptlit.lm import LMShape
from ptlit.mistake import UserMistake


class SoftPrompt(nn.Module, ABC):
    """Interface. `forward()` gives the learned tensor without a batch axis; it depends on no input."""

    peft_type: str

    def __init__(self, num_virtual_tokens: int):
        super().__init__()
        if num_virtual_tokens < 1:
            raise UserMistake(
                f"prompt.num_virtual_tokens={num_virtual_tokens} leaves nothing to train: give 1 or more."
            )
        self.num_virtual_tokens = num_virtual_tokens

    @abstractmethod
    def forward(self) -> Tensor: ...

    @abstractmethod
    def start_at(self, target: Tensor) -> None:
        """From now on `forward()` (in eval mode) gives `target`, and training moves on from there."""

    def completed(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Saved tensors, with those that earlier versions did not save."""
        unscaled = {
            f"{name}.value": torch.ones_like(each.value)
            for name, each in self.named_modules()
            if isinstance(each, Scale)
        }
        return unscaled | dict(saved)

    def peft_options(self) -> dict[str, object]:
        """The method's own entries in PEFT's adapter_config.json."""
        return {}


class EmbeddingPrompt(SoftPrompt, ABC):
    """Interface of the input kind: `forward()` is (P, H), read by the LM like embedded words."""


class KeyValuePrompt(SoftPrompt, ABC):
    """Interface of the deep kind: `forward()` is (L, 2, P, K, D), keys and values of every layer."""

    def __init__(self, num_virtual_tokens: int, shape: LMShape, lm_scale: bool = False):
        super().__init__(num_virtual_tokens)
        if shape.num_kv_heads is None or shape.head_dim is None:
            raise UserMistake(
                "This LM does not keep keys and values of one shape in every layer, so there is no place for "
                "a deep prompt: choose prompt_tuning, ptuning_mlp or ptuning_lstm."
            )
        self.axes = (shape.num_layers, 2, num_virtual_tokens, shape.num_kv_heads, shape.head_dim)
        self.key_width = shape.num_kv_heads * shape.head_dim  # K * D
        self.scale = Scale.of_keys_and_values(shape, lm_scale)

    def key_values(self, rows: Tensor) -> Tensor:
        """PEFT's row order (P, L * 2 * K * D) to ours, (L, 2, P, K, D)."""
        layers, two, tokens, heads, dim = self.axes
        return rows.view(tokens, layers, two, heads, dim).permute(1, 2, 0, 3, 4)


def peft_rows(key_values: Tensor) -> Tensor:
    """(L, 2, P, K, D) to PEFT's rows, (P, L * 2 * K * D)."""
    return key_values.permute(2, 0, 1, 3, 4).flatten(1)


class Scale(nn.Module):
    """A fixed factor on what is learned, so that one learning rate suits LMs of all spreads; 1 is PEFT's.

    It is saved: an LM that is opened in another type or quantised is measured a little otherwise.
    """

    value: Tensor

    def __init__(self, value: Tensor | float):
        super().__init__()
        self.register_buffer("value", torch.as_tensor(value, dtype=torch.float32))

    @classmethod
    def of_embeddings(cls, shape: LMShape, wanted: bool) -> "Scale":
        return cls(shape.embedding_scale if wanted else 1.0)

    @classmethod
    def of_keys_and_values(cls, shape: LMShape, wanted: bool) -> "Scale":
        """Each layer's own, (L, 2, 1, 1, 1)."""
        known = wanted and shape.key_scales
        ones = (1.0,) * shape.num_layers
        scales = torch.tensor([shape.key_scales, shape.value_scales] if known else [ones, ones])
        return cls(scales.T[:, :, None, None, None].contiguous())

    def forward(self, learned: Tensor) -> Tensor:
        return learned * self.value

    def undone(self, target: Tensor) -> Tensor:
        return target / self.value

    def _load_from_state_dict(self, saved: dict[str, Any], place: str, *how: Any) -> None:
        saved.setdefault(f"{place}value", torch.ones_like(self.value))  # earlier versions had none
        super()._load_from_state_dict(saved, place, *how)


class Offset(nn.Module):
    """A fixed tensor added to an encoder's output, so that an encoder too can start at a chosen place.

    A buffer, not a parameter: counts of parameters stay those of the papers. Zero is the original form.
    """

    value: Tensor

    def __init__(self, *axes: int):
        super().__init__()
        self.register_buffer("value", torch.zeros(*axes))

    def forward(self, encoded: Tensor) -> Tensor:
        return encoded + self.value

    @torch.no_grad()
    def bring(self, prompt: SoftPrompt, target: Tensor) -> None:
        """Make up the difference between what `prompt` gives, without its dropout, and `target`."""
        training = prompt.training
        prompt.eval()
        self.value += target - prompt()
        prompt.train(training)


def check_slots(slots: int, method: type[SoftPrompt], num_virtual_tokens: int) -> None:
    """Whether the places that a template has are for this prompt; 0 is a template without any."""
    if slots and issubclass(method, KeyValuePrompt):
        raise UserMistake(
            "data.template has slots for virtual tokens, which a deep prompt does not have: leave out "
            "{soft:...}, or choose prompt_tuning, ptuning_mlp or ptuning_lstm."
        )
    if slots not in (0, num_virtual_tokens):
        raise UserMistake(
            f"data.template has slots for {slots} virtual tokens and prompt.num_virtual_tokens is "
            f"{num_virtual_tokens}: make them equal."
        )


def checked_size(key: str, value: int) -> int:
    if value < 1:
        raise UserMistake(f"prompt.{key}={value} is not a size: give 1 or more.")
    return value


def checked_rate(key: str, value: float) -> float:
    if not 0 <= value < 1:
        raise UserMistake(
            f"prompt.{key}={value} is not a dropout rate: give a number from 0 up to, not including, 1."
        )
    return value
