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


def test_the_table_of_scenarios_names_all_of_them() -> None:
    """Every row of the README ends with names of files that there are; no file is missing."""
    rows = [
        line.rsplit("|", 2)[1].strip()
        for line in (FILES[0].parent / "README.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    named = {name for row in rows if row != "files" for name in row.split(", ")}
    assert named == {path.stem for path in FILES}
