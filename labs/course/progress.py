"""What a student did, in one file that can be handed in; and what a teacher makes of many."""

import csv
import getpass
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labs.course.judging import Facts, judge
from labs.course.lesson import Lesson, Step, fill, load, numbers
from softnlb.errors import SoftnlbError

WORDS = {
    "en": {
        "missing": "The question wants an answer: softnlb lab check ANSWER",
        "not done": "not done",
        "not ready": "The lab is not in the state that this step is about: start it anew.",
        "low": "{answer} is too low.",
        "high": "{answer} is too high.",
        "wrong": "{answer} is not it.",
        "clue": "What speaks against it: {clue}.",
    },
    "de": {
        "missing": "Die Frage will eine Antwort: softnlb lab check ANTWORT",
        "not done": "nicht bearbeitet",
        "not ready": "Das Lab ist nicht in dem Zustand, um den es hier geht: Starten Sie es neu.",
        "low": "{answer} ist zu wenig.",
        "high": "{answer} ist zu viel.",
        "wrong": "{answer} ist es nicht.",
        "clue": "Was dagegen spricht: {clue}.",
    },
}

Document = dict[str, Any]


def progress_path() -> Path:
    """$SOFTNLB_COURSE, else softnlb/course.json in the user's data directory."""
    own = os.environ.get("SOFTNLB_COURSE")
    if own:
        return Path(own)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data, "softnlb", "course.json")


def read(path: Path) -> Document:
    """A student's file; a new one where there is none.  Raises SoftnlbError for a damaged one."""
    try:
        document = json.loads(path.read_text())
        if not isinstance(document["labs"], dict):
            raise TypeError("no labs in it")
    except FileNotFoundError:
        return {"student": getpass.getuser(), "labs": {}, "current": None}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SoftnlbError(f"{path} is not the file of a student: {error}") from error
    return dict(document)


def write(path: Path, document: Document) -> None:
    """Replace a student's file at once, so that a crash leaves the old one or the new one.

    Raises SoftnlbError.
    """
    fresh = path.with_suffix(".new")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        fresh.replace(path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SoftnlbError(f"{path} cannot be written: {error.strerror}") from error


def note(document: Document, lesson: Lesson, step: Step, answer: str | None, facts: Facts) -> str:
    """Put a check into the document; returns the verdict.

    A right answer stays there, whatever the student tries out afterwards.
    """
    verdict = judge(facts, answer)
    done = entry(document, lesson.number, lesson.seed, step.id)
    if done.get("verdict") == "right":
        return verdict
    done |= {"answer": answer, "verdict": verdict, "facts": asdict(facts)}
    done["tries"] = done.get("tries", 0) + 1
    return verdict


def entry(document: Document, number: int, seed: int, step_id: str) -> Document:
    """The record of one step, made when it does not exist."""
    lab = document["labs"].setdefault(str(number), {"seed": seed, "steps": {}})
    if lab["seed"] != seed:  # started anew with other addresses: old answers are void
        lab |= {"seed": seed, "steps": {}}
    record: Document = lab["steps"].setdefault(step_id, {})
    return record


def reason(step: Step, at: str, verdict: str, answer: str | None, facts: Facts) -> str:
    """The verdict in words: what was seen and what it means."""
    text, words = step.texts[at], WORDS[at]
    if verdict == "not ready":
        return fill(text.get("todo", words["not ready"]), facts.seen)
    if verdict == "missing":
        return words["missing"]
    if verdict == "right":
        return fill(text["explain"], facts.seen)
    given = str(answer).strip()
    parts = [fill(words[verdict], {"answer": given}), fill(text["wrong"], facts.seen)]
    for key in (given.lower(), f"host{given}", given.lower().replace("-", ":")):
        if key in facts.clues:
            parts.append(fill(words["clue"], {"clue": facts.clues[key]}))
            break
    return " ".join(parts)


# ---------------------------------------------------------------- a class


@dataclass(frozen=True, slots=True)
class Row:
    """One step of one student.  ``result``: right, wrong or missing."""

    student: str
    seed: int
    lab: int
    step: str
    result: str
    answer: str
    tries: int
    hints: int
    reason: str


def judge_class(directory: Path, at: str) -> tuple[list[Row], list[str]]:
    """Judge every file of a directory again by what its student's lab showed.

    Returns the rows and remarks on files that cannot be read or that look copied.
    """
    paths = sorted(directory.glob("*.json"))
    if not paths:
        raise SoftnlbError(f"{directory} is not a directory with students' files, STUDENT.json")
    rows: list[Row] = []
    remarks: list[str] = []
    seeds: dict[tuple[str, int], str] = {}
    alike: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        try:
            document = read(path)
            rows += _rows(path.stem, document, at)
        except (SoftnlbError, KeyError, TypeError, AttributeError, ValueError) as error:
            remarks.append(f"{path.name}: {error}")
            continue
        for number, lab in document["labs"].items():
            first = seeds.setdefault((number, lab["seed"]), path.stem)
            if first != path.stem:
                alike.setdefault((path.stem, first), []).append(number)
    for (student, first), labs in alike.items():
        remarks.append(f"{student} has the same seed as {first} in lab {', '.join(labs)}")
    return rows, remarks


def _rows(student: str, document: Document, at: str) -> Iterator[Row]:
    for number in numbers():
        lab = document["labs"].get(str(number), {"seed": 0, "steps": {}})
        seed = int(lab["seed"])
        for step in load(number, seed, "lab").steps:
            done = lab["steps"].get(step.id, {})
            common = (done.get("tries", 0), done.get("hints", 0))
            if "facts" not in done:
                words = WORDS[at]["not done"]
                yield Row(student, seed, number, step.id, "missing", "", *common, words)
                continue
            facts, answer = Facts(**done["facts"]), done["answer"]
            verdict = judge(facts, answer)
            result = "right" if verdict == "right" else "wrong"
            why = "" if result == "right" else reason(step, at, verdict, answer, facts)
            yield Row(student, seed, number, step.id, result, answer or "", *common, why)


def write_csv(rows: list[Row], path: Path) -> None:
    """One line for each step of each student.  Raises SoftnlbError."""
    with _writing(path), path.open("w", newline="", encoding="utf-8") as out:
        table = csv.writer(out)
        table.writerow(Row.__slots__)
        for row in rows:
            # A cell that a spreadsheet would take for a formula is none.
            cells = [str(value) for value in (getattr(row, name) for name in Row.__slots__)]
            table.writerow([f"'{cell}" if cell[:1] in "=+-@" and cell else cell for cell in cells])


def write_junit(rows: list[Row], path: Path) -> None:
    """One suite for each student, one case for each step.  Raises SoftnlbError."""
    from xml.etree import ElementTree

    root = ElementTree.Element("testsuites", name="softnlb course")
    for student in dict.fromkeys(row.student for row in rows):
        own = [row for row in rows if row.student == student]
        failed = sum(row.result == "wrong" for row in own)
        skipped = sum(row.result == "missing" for row in own)
        counts = {"tests": len(own), "failures": failed, "skipped": skipped}
        texts = {key: str(value) for key, value in counts.items()}
        suite = ElementTree.SubElement(root, "testsuite", {"name": student, **texts})
        for row in own:
            case = ElementTree.SubElement(
                suite, "testcase", classname=f"{student}.lab{row.lab:02}", name=row.step
            )
            if row.result == "wrong":
                ElementTree.SubElement(case, "failure", message=row.reason)
            elif row.result == "missing":
                ElementTree.SubElement(case, "skipped", message=row.reason)
    ElementTree.indent(root)
    with _writing(path):
        ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
