"""What is kept from the terminal, and what is not."""

import logging

from ptlit.quiet import quiet


def test_who_asks_for_a_profile_sees_it() -> None:
    quiet()
    assert logging.getLogger("lightning.pytorch.profilers.profiler").isEnabledFor(logging.INFO)
    assert not logging.getLogger("lightning.pytorch.trainer").isEnabledFor(logging.INFO)
