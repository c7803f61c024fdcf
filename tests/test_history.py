"""The history of a host on the disk: bounded, readable after anything, and documented."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from convergence.events import LogEvent, Severity
from softnlb import history
from softnlb.history import FILE, FORMER, History, Reader
from tests.test_tidy import PRODUCT, ROOT, python_files, trees

SOFTNLB = Path(sys.executable).with_name("softnlb")


def event(name: str = "converged", text: str = "All is well.", **fields: object) -> LogEvent:
    return LogEvent(name, Severity.INFO, text, fields)


def test_a_reader_follows_across_the_change_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "FILE_MAX_BYTES", 2000)
    written, reader = History(tmp_path, 3), Reader(tmp_path)
    seen: list[int] = []
    for _ in range(100):
        written.write(event())
        seen += [told["sequence"] for told in reader.read()]
    assert seen == list(range(1, 101))
    assert (tmp_path / FILE).stat().st_size <= 2000
    assert (tmp_path / FORMER).stat().st_size <= 2000
    assert {path.name for path in tmp_path.iterdir()} == {FILE, FORMER}
    kept = [told["sequence"] for told in Reader(tmp_path).read()]
    assert kept == list(range(kept[0], 101))
    assert len(kept) > 10


def test_an_event_says_who_wrote_it_and_when(tmp_path):
    History(tmp_path, 3).write(event(host_id=7, members=[1, 7]))
    (told,) = Reader(tmp_path).read()
    assert (told["host_id"], told["about_host_id"], told["members"]) == (3, 7, [1, 7])
    assert told["boot_ms"] > 0 < told["time"]


def test_a_torn_line_costs_itself_only(tmp_path):
    written = History(tmp_path, 1)
    written.write(event("one"))
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"time": 1, "na\n[]\n{}\nnull\n\xff\n' + b"[" * 9000 + b"\n")
    written.write(event("two"))
    assert [told["name"] for told in Reader(tmp_path).read()] == ["one", "two"]


def test_a_directory_that_goes_and_comes_back(tmp_path, caplog):
    directory = tmp_path / "state"
    written = History(directory, 1)  # is not there yet
    for number in range(3):
        written.tell(event(text=f"Number {number}."))
    names = [told.name for _at, told in written.events]
    assert names == ["converged", "events-not-written", "converged", "converged"]
    assert "not written to the disk" in caplog.text
    directory.mkdir()
    written.tell(event("repair"))
    assert [told["name"] for told in Reader(directory).read()] == ["repair", "events-written-again"]
    assert Reader(directory).read()[1]["lost"] == 3
    (directory / FILE).unlink()
    written.tell(event("stopped"))
    assert [told["name"] for told in Reader(directory).read()] == ["stopped"]


def test_the_file_is_never_written_through_a_link(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("")
    (tmp_path / FILE).symlink_to(precious)
    History(tmp_path, 1).tell(event())
    assert precious.read_text() == ""


# ---------------------------------------------------------------- the document

TELLING = ("log", "log_rarely", "LogEvent")
DYNAMIC = {
    "rule-enabled", "rule-disabled", "rule-draining", "bad-frame-*", "foreign-host", "key-missing",
    "no-key", "unknown-key", "wrong-key", "change-proposed", "change-staged", "change-refused",
}  # fmt: skip
"""Names that the code puts together; each is seen in a scenario or a test of authentication."""


def told_in_the_code() -> dict[str, str]:
    """Name and severity of each event that is told with both as literals."""
    found = {}
    for _name, tree in trees(python_files(*PRODUCT)):
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or len(node.args) < 2:
                continue
            called = ast.unparse(node.func).rpartition(".")[2]
            first, *more = node.args
            severity = [a for a in more if ast.unparse(a).startswith("Severity.")]
            if called in TELLING and isinstance(first, ast.Constant) and severity:
                found[str(first.value)] = ast.unparse(severity[0]).rpartition(".")[2].lower()
    return found


def test_every_event_is_documented_with_its_severity():
    rows = re.findall(r"^\| `([a-z*-]+)` \| (\w+) \|", (ROOT / "docs/events.md").read_text(), re.M)
    documented = dict(rows)
    assert len(documented) == len(rows)
    told = told_in_the_code()
    assert {name: documented.get(name) for name in told} == told
    assert set(documented) == set(told) | DYNAMIC


# ---------------------------------------------------------------- the command


@pytest.fixture
def state_dir(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SOFTNLB_STATE_DIR", str(tmp_path))
    for host_id in (1, 2):
        directory = tmp_path / f"10.1.0.100:{host_id}"
        directory.mkdir()
        History(directory, host_id).write(event(text=f"I am {host_id}."))
    return tmp_path


def softnlb(*words: str) -> str:
    done = subprocess.run([SOFTNLB, "events", *words], capture_output=True, text=True, check=False)
    return done.stdout or done.stderr


def test_events_of_all_hosts_and_of_one(state_dir):
    assert [line.split()[2:] for line in softnlb().splitlines()] == [
        [f"10.1.0.100:{host_id}", "info", "converged:", "I", "am", f"{host_id}."]
        for host_id in (1, 2)
    ]
    (line,) = softnlb("10.1.0.100:2", "--json").splitlines()
    assert json.loads(line)["text"] == "I am 2."
    assert "has told anything" in softnlb("10.1.0.100:3")


def test_follow_shows_what_comes(state_dir):
    with subprocess.Popen(
        [SOFTNLB, "events", ":2", "-f"], stdout=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        assert "I am 2." in following.stdout.readline()
        History(state_dir / "10.1.0.100:2", 2).write(event("stopped", "Now."))
        assert "stopped: Now." in following.stdout.readline()
        following.terminate()
