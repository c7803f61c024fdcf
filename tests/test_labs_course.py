"""The course as a student does it: each lab by its own commands, with a wrong and the right answer.

The right answers stand here, from theory and the student's seed, and not in what the checks saw.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from ipaddress import IPv4Address
from pathlib import Path
from xml.etree import ElementTree

import pytest

from labs.course import lesson as lessons
from labs.course.checks import CHECKS, Facts, judge
from labs.course.progress import WORDS, reason
from labs.handle import LabHandle
from labs.lab_file import check as check_file
from labs.state import running_labs
from modes import mac
from softnlb.cli import run
from softnlb.errors import UsageError
from tests.labs import ROOT, lab_name
from tests.netns import wait_for

SEED = 7
NUMBERS = lessons.numbers()
BOTH = pytest.mark.parametrize("at", ["en", "de"])


def answered_by(port: int):
    """The host that explain names for the student's first address at a port."""

    def ask(lesson, handle) -> str:
        client, server = f"{lesson.values['near']}:40000", f"{lesson.values['vip']}:{port}"
        words = ["--client", client, "--server", server, "--protocol", "tcp", "--json"]
        return f"host{json.loads(handle.output('host1', ['softnlb', 'explain', *words]))['owner']}"

    return ask


def masked(lesson, handle) -> str:
    vip = IPv4Address(lesson.values["vip"])
    return mac.host_mac(int(lesson.values["faulty_id"]), vip).hex("-").upper()


def group(lesson, handle) -> str:
    return "239.255." + ".".join(lesson.values["vip"].split(".")[2:])


def own_buckets(lesson, handle) -> str:
    """3 or 4: only the lab knows who has which."""
    hosts = {host["host_id"]: host["buckets"] for host in handle.status()["hosts"]}
    assert set(hosts.values()) == {3, 4}
    return str(hosts[int(lesson.values["faulty_id"])])


# Step: the right answer (text, or a function of lesson and lab) and a wrong one.
ANSWERS = {
    (1, "bystander"): ("100", "25"),
    (1, "mask"): (masked, "{mac}"),
    (1, "leak"): ("{faulty}", "{host}"),
    (2, "refused"): ("{mac}", "02-bf-0a-01-00-64"),
    (2, "static"): ("100 %", "0"),
    (2, "ports"): ("0", "100"),
    (3, "group"): (group, "224.0.0.1"),
    (3, "black-hole"): ("{faulty}", "{host}"),
    (3, "querier"): ("100", "0"),
    (4, "none"): ("4", "1"),
    (4, "network"): (answered_by(82), "host9"),
    (4, "office"): ("1", "4"),
    (5, "weights"): ("40", "36"),
    (5, "single"): ("3", "host1"),
    (5, "disabled"): ("28", "7"),
    (5, "default"): ("host1", "host2"),
    (6, "crash"): ("1,5 s", "60"),
    (6, "cable"): ("1", "4"),
    (7, "drainstop"): ("0", "100"),
    (7, "stop"): ("100", "0"),
    (8, "before"): ("20", "15"),
    (8, "after"): ("15", "20"),
    (9, "split"): ("120", "60"),
    (9, "merge"): ("60", "120"),
    (10, "cost"): ("25", "80"),
    (10, "who"): ("{faulty}", "{host}"),
    (11, "dns"): ("25", "0"),
    (11, "nlb"): ("0", "25"),
    (12, "waste"): ("93.75", "6.25"),
    (12, "share"): (own_buckets, "15"),
}


@pytest.fixture
def student(tmp_path, monkeypatch):
    """A student's own file, and the commands of the course on the path."""
    monkeypatch.setenv("SOFTNLB_COURSE", str(tmp_path / "course.json"))
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for name in ("LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "course.json"


def say(capsys, *words: str) -> tuple[int, str]:
    """Exit status and output of a verb of the course."""
    capsys.readouterr()
    status = run(["lab", *words])
    return status, capsys.readouterr().out


def type_in(commands: tuple[str, ...], values: dict[str, str]) -> None:
    """What the step tells the student to run, but for the experiments that have tests."""
    for command in commands:
        if "softnlb lab run" not in command:
            command = command.replace("HOST", values["faulty"])
            done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd="/tmp")
            assert done.returncode == 0 or "curl -m" in command, (command, done.stderr)


@pytest.mark.parametrize("number", NUMBERS)
def test_each_lab_passes_with_the_right_answer_and_fails_with_a_reason(number, student, capsys):
    name = lab_name(f"course{number}")
    at = ("en", "de")[number % 2]
    try:
        lesson = lessons.load(number, SEED, name)
        words = ["--seed", str(SEED), "--name", name, "--lang", at]
        status, shown = say(capsys, "start", str(number), *words)
        assert status == 0
        assert lesson.titles[at] in shown
        handle = LabHandle(name)
        for step in lesson.steps:
            right, wrong = ANSWERS[number, step.id]
            _do_step(capsys, lesson, handle, step, at, right, lessons.fill(wrong, lesson.values))
            status, shown = say(capsys, "next")
            assert status == 0
    finally:
        if name in running_labs():
            LabHandle(name).down()
    assert f"lab start {number + 1}" in shown or number == NUMBERS[-1]
    done = json.loads(student.read_text())["labs"][str(number)]["steps"]
    assert [step["verdict"] for step in done.values()] == ["right"] * len(lesson.steps)


def _do_step(capsys, lesson, handle, step, at, right, wrong) -> None:
    assert run(["lab", "check", "x"]) == 2, "first comes the guess"
    status, shown = say(capsys, "next", "abc"[step.guess])
    assert status == 0
    assert step.texts[at]["observe"][:15] in shown
    assert "softnlb lab check" in shown
    if step.id not in ("black-hole", "nlb", "before") and "todo" in step.texts[at]:
        # An answer alone is not enough where something has to be done in the lab.
        verdicts = json.loads(say(capsys, "check", "--json", "60")[1])["verdict"]
        assert verdicts == "not ready" or not step.facts.get("states"), step.id
    type_in(step.run, lesson.values)
    answer = right(lesson, handle) if callable(right) else lessons.fill(right, lesson.values)
    shown = ""

    def ready() -> bool:
        nonlocal shown
        shown = say(capsys, "check", "--json", wrong)[1]
        return bool(json.loads(shown)["verdict"] != "not ready")

    wait_for(ready, 40.0)
    verdict = json.loads(shown)
    assert verdict["verdict"] in ("wrong", "low", "high"), (step.id, verdict)
    assert len(verdict["reason"].split()) > 5, "a reason in words"
    assert "{" not in verdict["reason"].replace('{"', "")
    status, shown = say(capsys, "check", answer)
    assert status == 0, (step.id, answer, shown)
    assert ("came true" if at == "en" else "eingetroffen") in shown


def test_the_files_of_the_course_are_lab_files_and_every_step_is_complete():
    assert list(range(1, 13)) == NUMBERS
    for number in NUMBERS:
        raw = tomllib.loads((lessons.FOLDER / f"{number:02}.toml").read_text())
        check_file(raw, str(number))
        one, other = lessons.load(number, 1, "lab"), lessons.load(number, 2, "lab")
        assert one.values["vip"] != other.values["vip"], "each seed has its own addresses"
        for step in one.steps:
            assert (number, step.id) in ANSWERS
            assert step.check in CHECKS
            assert step.texts["en"].keys() == step.texts["de"].keys()
            assert len(step.texts["en"]["choices"]) == len(step.texts["de"]["choices"]) > 1
            assert step.guess < len(step.texts["en"]["choices"])
            assert len(step.texts["en"]["hints"]) == len(step.texts["de"]["hints"]) > 0
            assert step.texts["en"]["predict"] != step.texts["de"]["predict"]
    faulty = {lessons.load(3, seed, "lab").values["faulty"] for seed in range(1, 30)}
    assert faulty == {"host1", "host2", "host3", "host4"}


@BOTH
def test_reasons_say_what_was_seen(at):
    step = lessons.load(1, 0, "lab").steps[2]
    facts = Facts(["host3"], clues={"host1": "host1: 02:01:0a:01:00:64"})
    assert judge(facts, "HOST 3") == judge(facts, "3") == "right"
    assert judge(facts, "host1") == judge(facts, "1.5") == "wrong"
    assert judge(facts, " ") == judge(facts, None) == "missing"
    text = reason(step, at, "wrong", "1", facts)
    assert "02:01:0a:01:00:64" in text
    assert WORDS[at]["wrong"].split()[-1] in text
    number = Facts(["1.9"], tolerance=0.5, ready=True)
    assert [judge(number, a) for a in ("1,6 s", "2.4", "0.3", "7")] == [
        "right", "right", "low", "high"
    ]  # fmt: skip
    assert judge(Facts(["02:bf:0a:01:00:64"]), "02-BF-0A-01-00-64") == "right"
    number.ready = False
    assert judge(number, "1.9") == "not ready"
    assert reason(step, at, "not ready", "1", number) == step.texts[at]["todo"]


def test_the_language_follows_the_environment(monkeypatch):
    for name in ("LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "de_AT.UTF-8")
    assert lessons.language(None) == "de"
    assert lessons.language("en") == "en"
    monkeypatch.setenv("LC_ALL", "C")
    assert lessons.language(None) == "en"


def test_verbs_before_a_start_and_for_a_lab_that_does_not_exist(student, capsys):
    for verb in ("next", "hint", "check"):
        assert run(["lab", verb]) == 3
    assert run(["lab", "start", "13"]) == 2
    with pytest.raises(UsageError, match="labs 1 to 12"):
        lessons.load(0, 0, "lab")
    status, shown = say(capsys, "list", "--lang", "de")
    assert status == 0
    assert lessons.titles()[9]["de"] in shown
    assert len(json.loads(say(capsys, "list", "--json")[1])["course"]) == 12


def test_a_lab_of_somebody_else_is_left_alone_and_a_lesson_gives_way(student, capsys):
    name = lab_name("mine")
    words = ["--name", name]
    try:
        assert say(capsys, "up", "--hosts", "1", "--timers", "fast", *words)[0] == 0
        assert run(["lab", "start", "8", *words]) == 1
        assert name in running_labs()
        LabHandle(name).down()
        assert say(capsys, "start", "8", *words)[0] == 0
        first = LabHandle(name).ask("nodes")["supervisor_pid"]
        assert say(capsys, "next", "x")[0] == 2, "no such choice"
        hints = [say(capsys, "hint", "--lang", at)[1] for at in ("en", "de")]
        assert "Hint 1 of 1" in hints[0]
        assert "Mehr Tipps" in hints[1]
        assert say(capsys, "next")[0] == 0
        assert "waits for its answer" in say(capsys, "next", "--lang", "en")[1]
        assert say(capsys, "next", "--skip")[0] == 0
        assert say(capsys, "start", "9", *words)[0] == 0
        assert LabHandle(name).ask("nodes")["supervisor_pid"] != first
    finally:
        if name in running_labs():
            LabHandle(name).down()


def test_a_class_is_judged_again_from_what_was_handed_in(tmp_path, capsys):
    def file(student: str, seed: int, answer: str) -> None:
        facts = {"right": ["100"], "tolerance": 2.0, "ready": True, "clues": {}}
        seen = {"sent": 10, "idle": 10}
        step = {"answer": answer, "verdict": "right", "facts": facts | {"seen": seen}, "tries": 3}
        labs = {"1": {"seed": seed, "steps": {"bystander": step}}}
        document = {"student": student, "labs": labs, "current": None}
        (tmp_path / f"{student}.json").write_text(json.dumps(document))

    file("student1", 1, "100")
    file("student2", 2, "=1+1")
    file("student3", 2, "100")
    (tmp_path / "student4.json").write_text('{"labs": 5}')
    table, report = tmp_path / "class.csv", tmp_path / "class.xml"
    words = ["check", "--all", str(tmp_path), "--csv", str(table), "--junit", str(report)]
    status, shown = say(capsys, *words, "--lang", "en")
    assert status == 1, "one file cannot be read"
    assert "student1" in shown
    assert "1/3" in shown
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 3 * len(ANSWERS)
    first = {row["student"]: row for row in rows if row["step"] == "bystander"}
    assert [row["result"] for row in first.values()] == ["right", "wrong", "right"]
    assert "The switch counted 10 frames" in first["student2"]["reason"]
    assert first["student2"]["answer"] == "'=1+1", "no formula for a spreadsheet"
    suites = ElementTree.parse(report).getroot().findall("testsuite")
    assert [suite.get("failures") for suite in suites] == ["0", "1", "0"]
    remarks = json.loads(say(capsys, "check", "--all", str(tmp_path), "--json")[1])["remarks"]
    assert any("student4.json" in remark for remark in remarks)
    assert any("same seed as student2" in remark for remark in remarks)
    assert say(capsys, "check", "--all", str(tmp_path / "nothing"))[0] == 1


@pytest.fixture
def own_directory():
    """One that other users may enter, which those of pytest forbid at every start."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="the whole suite already runs as an ordinary user")
def test_an_ordinary_user_can_take_the_course(own_directory):
    directory = own_directory
    for package in ("convergence", "labs", "modes", "softnlb"):
        shutil.copytree(ROOT / package, directory / package)
    user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", sys.executable]
    if subprocess.run([*user, "-c", "import click"], capture_output=True, cwd="/").returncode:
        pytest.skip("the interpreter of this environment is out of reach for other users")
    home = directory / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    environment = {key: v for key, v in os.environ.items() if key != "XDG_RUNTIME_DIR"}
    environment |= {"HOME": str(home), "SOFTNLB_COURSE": str(home / "course.json")}

    def verb(*words: str) -> subprocess.CompletedProcess[str]:
        command = [*user, "-m", "labs.cli", *words]
        return subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, text=True
        )

    name = lab_name("rootless-course")
    try:
        started = verb("start", "2", "--name", name, "--lang", "en")
        assert started.returncode == 0, started.stderr
        assert verb("next", "b").returncode == 0
        assert verb("check", "03-bf-0a-01-00-64").returncode == 0
        verb("next")
        verb("next", "b")
        entry = "ip neigh replace 10.1.0.100 lladdr 03:bf:0a:01:00:64 dev eth0 nud permanent"
        assert verb("exec", "--name", name, "router", "--", "sh", "-c", entry).returncode == 0
        done = verb("check", "100")
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        verb("down", "--name", name)
