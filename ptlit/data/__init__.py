"""Text to batches. Nothing here knows a prompt, an LM or a config file."""

from ptlit.data.collate import Batch
from ptlit.data.datamodule import ClassificationData
from ptlit.data.label_words import LabelWords
from ptlit.data.templates import Template

__all__ = ["Batch", "ClassificationData", "LabelWords", "Template"]
