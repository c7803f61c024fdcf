"""Every scenario file happens as it is written.

SOFTNLB_REWRITE=1 writes the files anew; keep only the differences that you understand.
"""

import os
from pathlib import Path

import pytest

from tests.simulator.scenario import replay

FILES = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    happened = replay(path)
    if os.environ.get("SOFTNLB_REWRITE"):
        path.write_text(happened)
    assert happened == path.read_text()
    assert "VIOLATION" not in happened


def test_there_are_scenarios() -> None:
    assert len(FILES) >= 70
