"""Text to batches. Nothing here knows a prompt, an LM or a config file."""

from ptlit.data.chat import ChatData
from ptlit.data.chat_template import ChatTemplate
from ptlit.data.classification import ClassificationData
from ptlit.data.collate import Batch
from ptlit.data.datamodule import TextData
from ptlit.data.label_words import LabelWords
from ptlit.data.templates import Template

__all__ = ["Batch", "ChatData", "ChatTemplate", "ClassificationData", "LabelWords", "Template", "TextData"]
