"""Lets an ordinary user run every test: as root of a user namespace, which the tests of real
networking need and the others do not notice."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.netns import enter_user_namespace


def pytest_configure(config: pytest.Config) -> None:
    """Before any thread exists; where user namespaces are forbidden the error says so."""
    if os.geteuid() == 0:
        return
    # Root's own directories in /tmp would be looked for under the same names.
    private = tempfile.mkdtemp(prefix="softnlb-tests-")
    config.add_cleanup(lambda: shutil.rmtree(private, ignore_errors=True))
    config.option.basetemp = Path(private) / "pytest"
    os.environ["XDG_RUNTIME_DIR"] = private
    enter_user_namespace()
