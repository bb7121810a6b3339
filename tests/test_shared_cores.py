"""How threads wait is set before torch is imported, unless a user has set it."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
import ptlit
assert "torch" not in sys.modules
print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"))
"""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "10000 None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "active"}, "None active"),
    ],
)
def test_threads_wait_briefly_where_nothing_else_is_said(environment: dict[str, str], expected: str) -> None:
    plain = {
        name: each for name, each in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=plain | environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == expected
