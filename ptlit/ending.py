"""When a run ends: after so many steps, as conf/ has it, or after epochs, if its command line says those."""

from collections.abc import Sequence

from ptlit.quoting import key_of

STEPS, EPOCHS = "trainer.max_steps", "trainer.max_epochs"
VALIDATIONS = {"trainer.val_check_interval", "trainer.check_val_every_n_epoch"}
NO_END = ("", "-1", "null")


def ended_by_epochs(argv: Sequence[str]) -> list[str]:
    """`argv`; where it says epochs and no steps, the steps of conf/ end nothing, and each epoch is validated:
    so many batches from one validation to the next would leave the last ones out.
    """
    said = {key_of(word): word.partition("=")[2] for word in argv}
    if said.get(EPOCHS, "") in NO_END or STEPS in said:
        return list(argv)
    each_epoch = ["++trainer.check_val_every_n_epoch=1", "++trainer.val_check_interval=1.0"]
    return [*argv, f"++{STEPS}=-1", *([] if VALIDATIONS & said.keys() else each_epoch)]
