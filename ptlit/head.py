"""What the head of an LM is shown: the head alone turns hidden states into logits, and few of them matter."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def head_sees_only(model: PreTrainedModel, keep: Tensor) -> Iterator[None]:
    """Inside, the LM's own head is shown the hidden states at `keep` (B, T) alone, as one row: (1, N, H).

    Logits elsewhere would be the largest tensor of the step. The head stays the model's: soft-capping,
    scaling and tied weights differ by family, and what follows the head acts on each position by itself.
    """

    with head_sees(model, lambda hidden: hidden[keep][None]):  # (1, N, H)
        yield


@contextmanager
def head_sees(model: PreTrainedModel, select: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the LM's own head is shown what is selected of the hidden states (B, T, H)."""

    def hook(head: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (select(inputs[0]),)

    handle = model.get_output_embeddings().register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
