"""The habits of the house, enforced: sizes, imports, words, and that the README tells the truth."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from labs.cli import lab
from softnlb.cli import cli

ROOT = Path(__file__).parent.parent
PRODUCT = ("convergence", "modes", "softnlb", "labs")
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 400
TEST_FILE_LINES_MAX = 600
COLUMNS_MAX = 100

# Files that read bytes which somebody else wrote: an assert there would be a crash on demand.
OUTSIDE = (
    "convergence/heartbeat.py",
    "convergence/auth.py",
    "softnlb/packet.py",
    "softnlb/filter.py",
    "softnlb/control.py",
    "softnlb/config.py",
    "softnlb/nfqueue.py",
    "softnlb/sockdiag.py",
    "softnlb/heartbeat_socket.py",
)


def python_files(*packages: str) -> list[Path]:
    """Every Python file of these folders, sorted."""
    return sorted(path for name in packages for path in (ROOT / name).rglob("*.py"))


FILES = python_files(*PRODUCT, "tests")


def trees(files: list[Path]) -> Iterator[tuple[str, ast.Module]]:
    """(path below the root, syntax tree) of each file."""
    for path in files:
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def test_files_stay_small_enough_to_read_in_one_go() -> None:
    too_long = []
    for path in FILES:
        limit = TEST_FILE_LINES_MAX if "tests" in path.parts else FILE_LINES_MAX
        lines = path.read_text().count("\n")
        if lines > limit:
            too_long.append(f"{path.relative_to(ROOT)}: {lines} lines, limit {limit}")
    assert not too_long, "\n".join(too_long)


def test_functions_fit_on_a_screen() -> None:
    too_long = []
    for name, tree in trees(FILES):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    too_long.append(f"{name}:{node.lineno} {node.name}: {lines} lines")
    assert not too_long, "\n".join(too_long)


def test_lines_fit_in_100_columns() -> None:
    texts = [*FILES, *ROOT.glob("*.toml"), ROOT / "Makefile", *(ROOT / ".ci").iterdir()]
    too_wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in texts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > COLUMNS_MAX
    ]
    assert not too_wide, "\n".join(too_wide)


def test_every_module_says_what_it_is() -> None:
    silent = [name for name, tree in trees(FILES) if not ast.get_docstring(tree)]
    assert not silent, "\n".join(silent)


def test_no_bare_except() -> None:
    bare = [
        f"{name}:{node.lineno}"
        for name, tree in trees(FILES)
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert not bare, "\n".join(bare)


def test_no_test_sleeps() -> None:
    """A test waits for an event or polls a condition; it never hopes."""
    sleeping = [
        f"{name}:{node.lineno}"
        for name, tree in trees(python_files("tests"))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep")
    ]
    assert not sleeping, "\n".join(sleeping)


def test_no_assert_where_bytes_come_from_outside() -> None:
    asserts = [
        f"{name}:{node.lineno}"
        for name, tree in trees([ROOT / name for name in OUTSIDE])
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    ]
    assert not asserts, "\n".join(asserts)


def test_the_import_rule_holds() -> None:
    """The contracts in pyproject.toml, checked by import-linter."""
    script = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([script, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_import_rule_can_be_broken() -> None:
    """The pure packages would be caught: `time` is among what they may not import."""
    import tomllib

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    forbidden = {name for c in contracts["contracts"] for name in c.get("forbidden_modules", ())}
    assert {"time", "socket", "random", "threading", "subprocess", "asyncio"} <= forbidden


def documents() -> list[Path]:
    """The pages that a user reads."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")])


def commands_in(path: Path) -> list[str]:
    """Every `softnlb ...` or `make ...` line of a page's code blocks and inline code."""
    text = path.read_text()
    blocks = re.findall(r"```[a-z]*\n(.*?)```", text, flags=re.S)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    lines += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"```.*?```", "", text, flags=re.S))
    lines = [line.removeprefix("sudo ").removeprefix(".venv/bin/") for line in lines]
    return [line for line in lines if re.match(r"(softnlb|make) [a-z]", line)]


@pytest.mark.parametrize("page", documents(), ids=lambda page: page.name)
def test_commands_in_the_documents_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    unknown = []
    for line in commands_in(page):
        words = line.split("#")[0].split()
        if words[0] == "make":
            known = re.search(rf"^{re.escape(words[1])}:", makefile, flags=re.M) is not None
        else:
            known = _is_command(words[1:])
        if not known:
            unknown.append(line)
    assert not unknown, f"{page.name}: no such command: {unknown}"


def _is_command(words: list[str]) -> bool:
    """Whether the words name a command of the CLI and options that it has."""
    command: click.Command = cli
    if words[0] == "lab":
        # Loaded by name there, so that no other command pays for it.
        command, words = lab, words[1:]
    context = click.Context(command)
    for word in words:
        if isinstance(command, click.Group) and not word.startswith("-"):
            found = command.get_command(context, word)
            if found is None:
                return False
            command = found
            continue
        if word == "--":
            return True
        if word.startswith("--"):
            options = {name for parameter in command.params for name in parameter.opts}
            if word.split("=")[0] not in options | {"--help"}:
                return False
    return True


def test_no_page_names_a_package_registry_or_a_path_of_one_machine() -> None:
    registries = r"pypi\.org|registry\.npmjs|deb\.debian\.org"
    forbidden = re.compile(registries + r"|(?<![}\w])/(?:root|work)/", re.I)
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    found = []
    for name in listed.split():
        path = ROOT / name
        if name == "tests/test_tidy.py" or not path.is_file():
            continue
        text = path.read_bytes().decode(errors="replace")
        found += [f"{name}: {hit}" for hit in forbidden.findall(text)]
    assert not found, "\n".join(found)
