"""Soft prompts: one class a method, one YAML file of the same name in conf/prompt."""

from ptlit.prompt.base import EmbeddingPrompt, KeyValuePrompt, SoftPrompt
from ptlit.prompt.prefix_tuning import PrefixProjection, PrefixTuning, PtuningV2
from ptlit.prompt.prompt_tuning import PromptTuning
from ptlit.prompt.ptuning import PtuningLstm, PtuningMlp

__all__ = [
    "EmbeddingPrompt",
    "KeyValuePrompt",
    "PrefixProjection",
    "PrefixTuning",
    "PromptTuning",
    "PtuningLstm",
    "PtuningMlp",
    "PtuningV2",
    "SoftPrompt",
]
