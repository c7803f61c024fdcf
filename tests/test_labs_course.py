"""The course as a student does it: each lab by its own commands, with a wrong and the right answer.

The right answers stand here, from theory and the student's seed, and not in what the checks saw.
"""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import traceback
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from xml.etree import ElementTree

import pytest

from labs.course import lesson as lessons
from labs.course.checks import CHECKS, taken_over
from labs.course.cli import noted
from labs.course.judging import Facts, judge
from labs.course.progress import WORDS, note, reason
from labs.handle import LabHandle
from labs.lab_file import check as check_file
from labs.namespaces import die_with_parent
from labs.state import running_labs
from modes import mac
from softnlb.cli import run
from softnlb.errors import UsageError
from tests.labs import ROOT, lab_name, machine
from tests.netns import wait_for

SEED = 7
NUMBERS = lessons.numbers()
BOTH = pytest.mark.parametrize("at", ["en", "de"])
AT_A_TIME = 2
ROOTLESS = os.environ.get("SOFTNLB_ROOTLESS_LABS", "9")
"""The labs that an ordinary user takes, as in 1,2,3: all of them take some minutes."""


class Student:
    """Types the verbs of the course; in this process, which is faster than one for each."""

    def say(self, *words: str) -> tuple[int, str]:
        """Exit status and standard output of ``softnlb lab WORDS``."""
        with contextlib.redirect_stdout(io.StringIO()) as out:
            status = run(["lab", *words])
        return status, out.getvalue()

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        """A line as a lesson prints it, but not as patient."""
        command = re.sub(r"-m [123]\b", "-m 0.4", command).replace("seq 40", "seq 4")
        return subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd="/tmp")

    def json(self, *words: str):
        """The document that a verb prints."""
        return json.loads(self.say(words[0], "--json", *words[1:])[1])

    def inside(self, name: str, node: str, *command: str) -> str:
        """What a command in a node prints."""
        return str(self.json("exec", "--name", name, node, "--", *command)["stdout"])


class Stranger(Student):
    """An ordinary user of this machine, with a copy of the program that such a one may read."""

    def __init__(self, directory: Path) -> None:
        for package in ("convergence", "labs", "modes", "softnlb"):
            shutil.copytree(ROOT / package, directory / package)
        (directory / "bin").mkdir()
        program = directory / "bin" / "softnlb"
        start = f"{sys.executable} -c 'from softnlb.cli import main; main()'"
        program.write_text(f'#!/bin/sh\nPYTHONPATH={directory} exec {start} "$@"\n')
        program.chmod(0o755)
        self._home = directory / "home"
        self._home.mkdir()
        os.chown(self._home, 65534, 65534)
        self._user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        self._environment = {k: v for k, v in os.environ.items() if k != "XDG_RUNTIME_DIR"}
        path = f"{program.parent}:{os.environ['PATH']}"
        course = str(self._home / "course.json")
        self._environment |= {"HOME": str(self._home), "PATH": path, "SOFTNLB_COURSE": course}

    def able(self) -> bool:
        """Whether the interpreter is within reach of other users."""
        return self._run([sys.executable, "-c", "import click"]).returncode == 0

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._user, *command],
            cwd=self._home,
            env=self._environment,
            capture_output=True,
            text=True,
        )

    def say(self, *words: str) -> tuple[int, str]:
        done = self._run(["softnlb", "lab", *words])
        assert done.returncode in (0, 1, 2, 3), done.stderr
        return done.returncode, done.stdout

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        return self._run(["sh", "-c", command])


def answered_by(port: int):
    """The host that explain names for the student's first address at a port."""

    def ask(lesson, student) -> str:
        client, server = f"{lesson.values['near']}:40000", f"{lesson.values['vip']}:{port}"
        words = ["--client", client, "--server", server, "--protocol", "tcp", "--json"]
        shown = student.inside(lesson.spec.name, "host1", "softnlb", "explain", *words)
        return f"host{json.loads(shown)['owner']}"

    return ask


def masked(lesson, student) -> str:
    vip = IPv4Address(lesson.values["vip"])
    return mac.host_mac(int(lesson.values["faulty_id"]), vip).hex("-").upper()


def group(lesson, student) -> str:
    return "239.255." + ".".join(lesson.values["vip"].split(".")[2:])


def own_buckets(lesson, student) -> str:
    """3 or 4: only the lab knows who has which."""
    status = student.json("status", "--name", lesson.spec.name)
    hosts = {host["host_id"]: host["buckets"] for host in status["hosts"]}
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
    (6, "pause"): ("60", "75"),
    (7, "drainstop"): ("0", "100"),
    (7, "stop"): ("100", "0"),
    (8, "before"): ("20", "15"),
    (8, "after"): ("15", "20"),
    (9, "split"): ("120", "60"),
    (9, "merge"): ("60", "120"),
    (10, "cost"): ("25", "80"),
    (10, "who"): ("{faulty}", "{host}"),
    (10, "probe"): ("0", "25"),
    (11, "dns"): ("25", "0"),
    (11, "nlb"): ("0", "25"),
    (12, "waste"): ("93.75", "6.25"),
    (12, "growth"): ("8", "1"),
    (12, "share"): (own_buckets, "15"),
}


def take(student: Student, number: int, name: str) -> None:
    """A lab from its start to its last step, each with a wrong and the right answer."""
    at = ("en", "de")[number % 2]
    lesson = lessons.load(number, SEED, name)
    words = ["--seed", str(SEED), "--name", name, "--lang", at]
    status, shown = student.say("start", str(number), *words)
    assert status == 0
    assert lesson.titles[at] in shown
    for step in lesson.steps:
        _take_step(student, lesson, step, at)
        status, shown = student.say("next")
        assert status == 0
    assert f"lab start {number + 1}" in shown or number == NUMBERS[-1]


def _take_step(student, lesson, step, at) -> None:
    right, wrong = ANSWERS[lesson.number, step.id]
    assert student.say("check", "x")[0] == 2, "first comes the guess"
    status, shown = student.say("next", "abc"[step.guess])
    assert status == 0
    assert step.texts[at]["observe"][:15] in shown
    assert "softnlb lab check" in shown
    if step.id == "leak" or ("faults" in step.facts and step.id != "nlb"):
        # An answer alone is not enough where something has to be done in the lab.
        assert student.json("check", "60")["verdict"] == "not ready", step.id
    for command in step.run:
        if not command.startswith(("softnlb lab run", "softnlb lab report")):  # they have tests
            done = student.shell(command.replace("HOST", lesson.values["faulty"]))
            assert done.returncode == 0 or "curl -m" in command, (command, done.stderr)
    answer = right(lesson, student) if callable(right) else lessons.fill(right, lesson.values)
    verdict = {}

    def ready() -> bool:
        nonlocal verdict
        verdict = student.json("check", lessons.fill(wrong, lesson.values))
        return bool(verdict["verdict"] != "not ready")

    wait_for(ready, 40.0)
    assert verdict["verdict"] in ("wrong", "low", "high"), (step.id, verdict)
    assert len(verdict["reason"].split()) > 5, "a reason in words"
    assert "{" not in verdict["reason"].replace('{"', "")
    status, shown = student.say("check", answer)
    assert status == 0, (step.id, answer, shown)
    assert ("came true" if at == "en" else "eingetroffen") in shown


def _work(queue: int, folder: Path) -> None:
    """One of the students: a lab after the other, NUMBER.txt says what went wrong, or nothing."""
    os.environ["SOFTNLB_COURSE"] = str(folder / f"{os.getpid()}.json")
    while number := os.read(queue, 1):
        name, trouble = lab_name(f"course{number[0]}"), ""
        try:
            take(Student(), number[0], name)
        except BaseException:
            trouble = traceback.format_exc()
        finally:
            if name in running_labs():
                LabHandle(name).down()
        written = folder / f"{number[0]}.new"
        written.write_text(trouble)
        written.rename(folder / f"{number[0]}.txt")


@pytest.fixture(scope="module")
def class_room(request, tmp_path_factory) -> Iterator[Path]:
    """Where students take the labs, two at a time: most of a lab is waiting."""
    folder = tmp_path_factory.mktemp("class")
    queue, given = os.pipe()
    asked = [getattr(item, "callspec", None) for item in request.session.items]
    os.write(given, bytes(c.params["number"] for c in asked if c and "number" in c.params))
    os.close(given)
    workers = []
    with pytest.MonkeyPatch.context() as patch:
        commands_on_the_path(patch)
        for _ in range(AT_A_TIME):
            workers.append(os.fork())
            if workers[-1] == 0:
                die_with_parent()
                try:
                    _work(queue, folder)
                finally:
                    os._exit(0)
    os.close(queue)
    yield folder
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        for name in running_labs():
            if name.endswith(f"-{worker}"):
                LabHandle(name).down()


def commands_on_the_path(patch: pytest.MonkeyPatch) -> None:
    """The commands of the course, and no language but the default."""
    patch.setenv("LANG", "C.UTF-8")
    patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for name in ("LC_ALL", "LC_MESSAGES"):
        patch.delenv(name, raising=False)


@pytest.mark.parametrize("number", NUMBERS)
def test_each_lab_passes_with_the_right_answer_and_fails_with_a_reason(number, class_room):
    report = class_room / f"{number}.txt"
    wait_for(report.exists, 240.0)
    if trouble := report.read_text():
        pytest.fail(trouble, pytrace=False)


def test_the_steps_that_a_student_has_taken_are_noted(class_room):
    """Runs after the labs, of which it needs at least one."""
    done = [json.loads(path.read_text())["labs"] for path in class_room.glob("*.json")]
    taken = {int(number): lab for labs in done for number, lab in labs.items()}
    for number, lab in taken.items():
        steps = [step.id for step in lessons.load(number, SEED, "x").steps]
        assert list(lab["steps"]) == steps
        assert {step["verdict"] for step in lab["steps"].values()} == {"right"}
    assert taken


@pytest.fixture
def student(tmp_path, monkeypatch) -> Path:
    """A student's own file."""
    commands_on_the_path(monkeypatch)
    monkeypatch.setenv("SOFTNLB_COURSE", str(tmp_path / "course.json"))
    return tmp_path / "course.json"


def say(capsys, *words: str) -> tuple[int, str]:
    """Exit status and output of a verb of the course."""
    capsys.readouterr()
    status = run(["lab", *words])
    return status, capsys.readouterr().out


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
            assert not [command for command in step.run if " # " in command]
            for english, german in zip(
                *(step.texts[at].get("notes", ()) for at in ("en", "de")), strict=True
            ):
                assert (english == german) == (english == "")
            notes = {len(step.texts[at].get("notes", step.run)) for at in ("en", "de")}
            assert notes == {len(step.run)}
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
    assert judge(Facts(["28"], ordered=False), "7") == "wrong"
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


def at_a_lesson(path: Path, number: int, stage: str, **facts: object) -> None:
    """Write the file of a student who is at the first step of a lesson."""
    current = {"lab": number, "seed": 0, "name": "lab", "lang": "en", "step": 0, "hints": 0}
    current |= {"stage": stage, "supervisor_pid": 1, **facts}
    path.write_text(json.dumps({"student": "s", "labs": {}, "current": current}))


@pytest.mark.parametrize(("verb", "stage"), [("next", "guess"), ("check", "run")])
def test_who_goes_on_without_the_lab_is_told_how_to_start_it(verb, stage, student, capsys):
    name = lab_name("gone")
    at_a_lesson(student, 5, stage, seed=3, name=name)
    assert run(["lab", verb]) == 3
    assert f"`softnlb lab start 5 --seed 3 --name {name}` starts it" in capsys.readouterr().err
    assert not json.loads(student.read_text())["labs"], "no guess and no answer is noted"


def test_the_list_shows_what_is_begun_and_done(student, capsys):
    right = {"verdict": "right"}
    steps = [step.id for step in lessons.load(2, 0, "lab").steps]
    labs = {"2": dict.fromkeys(steps, right), "3": {"group": right}, "4": {"none": {"tries": 1}}}
    labs = {number: {"seed": 0, "steps": steps} for number, steps in labs.items()}
    student.write_text(json.dumps({"student": "s", "labs": labs, "current": None}))
    shown = say(capsys, "list", "--lang", "de")[1].splitlines()
    assert [line[:4] for line in shown[-12:-8]] == ["   1", "*  2", "+  3", "   4"]
    assert max(map(len, shown)) <= 80
    counts = [lab["steps"] for lab in json.loads(say(capsys, "list", "--json")[1])["course"]]
    assert counts == [len(lessons.load(number, 0, "lab").steps) for number in NUMBERS]


def test_notes_stand_above_the_commands_where_there_is_no_room_beside_them():
    commands, notes = ("lab status", "lab fault x"), ("again", "")
    assert noted(commands, notes, 22) == ["lab status    # again", "lab fault x"]
    assert noted(commands, notes, 20) == ["# again", "lab status", "lab fault x"]


def test_a_take_over_ends_with_what_is_done_next():
    def events(*words: str):
        for word in words:
            what, at_s = word.split("@")
            kind = {"event": what} if what == "buckets" else {"event": "fault", "fault": what}
            yield {"at_s": float(at_s), **kind}

    first = ("kill@1", "buckets@2.1", "start@3", "buckets@5")
    again = taken_over([*events(*first, "kill@10", "buckets@11", "buckets@11.4", "heal@20")])
    assert (again.ready, again.right) == (True, ["1.4"])
    assert taken_over([*events(*first)]).right == ["1.1"]
    for words in (("buckets@1", "mute@2"), (*first, "kill@7"), (*first, "kill@7", "start@8")):
        assert not taken_over([*events(*words)]).ready


def test_a_lab_of_somebody_else_is_left_alone_and_a_lesson_gives_way(student, capsys):
    name = lab_name("mine")
    words = ["--name", name]
    try:
        assert say(capsys, "up", "--hosts", "1", "--timers", "fast", *words)[0] == 0
        assert run(["lab", "start", "8", *words]) == 1
        assert name in running_labs()
        at_a_lesson(student, 1, "guess", step=2, name=name)
        assert run(["lab", "next"]) == 3, "it is not the lab of the course"
        assert not any(LabHandle(name).status()["faults"].values())
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
    assert "student3 has the same seed as student2 in lab 1" in remarks
    (tmp_path / "empty").mkdir()
    for wrong in (("--all", str(tmp_path / "nothing")), ("--all", str(tmp_path / "empty"))):
        assert say(capsys, "check", *wrong)[0] == 1
    for option in ("--csv", "--junit"):
        nowhere = str(tmp_path / "nothing" / "x")
        assert run(["lab", "check", "--all", str(tmp_path), option, nowhere]) == 1
        assert f"{nowhere} cannot be written: No such" in capsys.readouterr().err
        assert run(["lab", "check", option, nowhere, "5"]) == 2


def test_a_student_whose_file_cannot_be_written_gets_no_lab(monkeypatch, capsys):
    name = lab_name("unwritten")
    monkeypatch.setenv("SOFTNLB_COURSE", "/proc/nowhere/course.json")
    assert run(["lab", "start", "1", "--name", name]) == 1
    assert "course.json cannot be written: No such file" in capsys.readouterr().err
    assert name not in running_labs()


@pytest.fixture
def own_directory():
    """One that other users may enter, which those of pytest forbid at every start."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="the whole suite already runs as an ordinary user")
def test_an_ordinary_user_can_take_the_course(own_directory):
    student = Stranger(own_directory)
    if not student.able():
        pytest.skip("the interpreter of this environment is out of reach for other users")
    before, name = machine(), lab_name("rootless-course")
    for number in map(int, ROOTLESS.split(",")):
        try:
            take(student, number, name)
        finally:
            student.say("down", "--name", name)
    assert machine() == before


@BOTH
def test_what_the_course_says_fits_the_terminal(at, tmp_path, monkeypatch, capsys):
    path = tmp_path / "course.json"
    monkeypatch.setenv("SOFTNLB_COURSE", str(path))
    monkeypatch.setenv("COLUMNS", "60")
    for number in NUMBERS:
        current = {"lab": number, "seed": 0, "name": "lab", "lang": at, "step": 0, "hints": 0}
        document = {"student": "s", "labs": {}, "current": {**current, "stage": "passed"}}
        path.write_text(json.dumps(document))
        assert run(["lab", "next"]) == 0
        assert run(["lab", "hint"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) > 10 * len(NUMBERS)
    assert not [line for line in told if len(line) > 60 and "softnlb lab" not in line]


def test_a_right_answer_outlives_what_is_tried_afterwards():
    lesson, document = lessons.load(8, 0, "lab"), {"labs": {}}
    facts = Facts(["20"])
    given = ("15", "20", "99")
    verdicts = [note(document, lesson, lesson.steps[0], one, facts) for one in given]
    assert verdicts == ["low", "right", "high"]
    noted = document["labs"]["8"]["steps"]["before"]
    assert (noted["verdict"], noted["answer"], noted["tries"]) == ("right", "20", 2)


def test_a_guess_is_kept_although_nobody_reads_on(tmp_path):
    path = tmp_path / "course.json"
    current = {"lab": 8, "seed": 0, "name": "lab", "lang": "en", "step": 0, "hints": 0}
    path.write_text(
        json.dumps({"student": "s", "labs": {}, "current": {**current, "stage": "passed"}})
    )
    read_end, write_end = os.pipe()
    os.close(read_end)
    program = "from softnlb.cli import main; main()"
    subprocess.run(
        [sys.executable, "-c", program, "lab", "next"],
        env={**os.environ, "SOFTNLB_COURSE": str(path)},
        stdout=write_end,
        check=False,
        timeout=60,
    )
    os.close(write_end)
    assert json.loads(path.read_text())["current"]["step"] == 1
