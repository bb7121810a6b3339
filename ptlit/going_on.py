"""Whether a run can go on from its last checkpoint: asked before anything of it is written anew."""

from lightning import Trainer
from omegaconf import OmegaConf

from ptlit.mistake import UserMistake
from ptlit.module import SoftPromptModule
from ptlit.peft_format import check_tensors
from ptlit.run import read_config, read_whole_checkpoint
from ptlit.run_folder import RunFolder


def check_going_on(folder: RunFolder, module: SoftPromptModule, optimizer: str, trainer: Trainer) -> None:
    """Before anything of the run that is to be resumed is written anew; runs of before lack some tensors."""
    checkpoint = read_whole_checkpoint(folder, "last")
    state, done = checkpoint["state_dict"], checkpoint["global_step"]
    if folder.metrics.is_file() and 0 < trainer.max_steps < done:
        raise UserMistake(
            f"resume={folder.root}: that run has taken {done} steps and is finished; to go beyond it give "
            f"trainer.max_steps above {done}."
        )
    epoch = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"]
    if folder.metrics.is_file() and 0 < (trainer.max_epochs or 0) < epoch:
        raise UserMistake(
            f"resume={folder.root}: that run has come to epoch {epoch} and is finished; to go beyond it give "
            f"trainer.max_epochs above {epoch}."
        )
    before = OmegaConf.select(read_config(folder), "optim._target_")
    if before is not None and before != optimizer:
        raise UserMistake(
            f"resume={folder.root}: that run learns with {before}, and {optimizer} cannot go on from what "
            "that remembers. Leave out what changes it, or begin another run."
        )
    try:
        module.load_state_dict(state)  # as the trainer is going to
    except RuntimeError:
        unsaid = {name: each for name, each in module.state_dict().items() if name.endswith(".scale.value")}
        try:
            check_tensors(f"resume={folder.root}", module, unsaid | state)
        except UserMistake as mistake:
            raise UserMistake(f"{mistake} Leave out what changes the prompt, or begin another run.") from None
        raise
