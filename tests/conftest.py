"""Lets an ordinary user run every test: as root of a user namespace, which the tests of real
networking need and the others do not notice."""

import os
import shutil
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from softnlb.errors import DataPlaneUnavailable
from tests.netns import enter_user_namespace

_ORDINARY = "SOFTNLB_TESTS_OF_AN_ORDINARY_USER"
ORDINARY_USER = os.geteuid() != 0 or _ORDINARY in os.environ


def pytest_configure(config: pytest.Config) -> None:
    """Before any thread exists; where user namespaces are forbidden the error says so."""
    # A shell that starts this in the background has Ctrl-C ignored, and every child inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not ORDINARY_USER or _ORDINARY in os.environ:
        return  # the worker processes are born inside, when they have threads already
    os.environ[_ORDINARY] = "1"
    # Root's own directories in /tmp would be looked for under the same names.
    private = tempfile.mkdtemp(prefix="softnlb-tests-")
    config.add_cleanup(lambda: shutil.rmtree(private, ignore_errors=True))
    config.option.basetemp = Path(private) / "pytest"
    os.environ["XDG_RUNTIME_DIR"] = private
    enter_user_namespace()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What the kernel gives to the machine's root only is not for an ordinary user's run."""
    if ORDINARY_USER:
        for item in items:
            if item.get_closest_marker("bpf") or "programs" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason="the kernel gives eBPF to root only"))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup() -> Generator[None, Any, Any]:
    """A data plane that an ordinary user cannot have is a skip; for root it is a failure."""
    try:
        return (yield)
    except DataPlaneUnavailable as error:
        if ORDINARY_USER:
            pytest.skip(str(error))
        raise


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, Any, Any]:
    """As for fixtures."""
    try:
        return (yield)
    except DataPlaneUnavailable as error:
        if ORDINARY_USER:
            pytest.skip(str(error))
        raise
