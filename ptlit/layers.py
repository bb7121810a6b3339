"""The layers of an LM of transformers, whatever its family calls them."""

from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def layers_of(model: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    """From the first to the last."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
