"""Lets an ordinary user run every test: as root of a user namespace, which the tests of real
networking need and the others do not notice."""

import os

from tests.netns import enter_user_namespace


def pytest_configure() -> None:
    """Before any thread exists; where user namespaces are forbidden the error says so."""
    if os.geteuid() != 0:
        enter_user_namespace()
