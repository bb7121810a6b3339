"""What libraries say unasked, kept from the terminal: there the command's own words count."""

import logging
import warnings

import transformers


def quiet() -> None:
    """What Lightning and transformers say of themselves, and warnings of what is meant to be so."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # who profiles asks for it
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings(
        "ignore", r".*module\(s\) in eval mode at the start of training"
    )  # the LM is frozen
    warnings.filterwarnings(
        "ignore", r"Be aware that when using `ckpt_path`, callbacks"
    )  # whoever judges a checkpoint needs none of its training's
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\).* is deprecated")
    warnings.filterwarnings(
        "ignore", r"Experiment logs directory .* exists and is not empty"
    )  # Hydra made it
    warnings.filterwarnings(
        "ignore", r"The '\w+_dataloader' does not have many workers"
    )  # rows are tokenised already
