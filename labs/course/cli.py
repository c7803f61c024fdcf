"""The verbs of the course: ``softnlb lab list | start | next | hint | check``."""

import math
import shutil
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from labs.course.heads import HEADS, MAP
from softnlb.cli_common import json_option, print_json
from softnlb.cli_show import bold

if TYPE_CHECKING:
    from labs.course.lesson import Lesson, Step
    from labs.course.progress import Document
    from labs.handle import LabHandle

GUESS, RUN, PASSED = "guess", "run", "passed"

lang_option = click.option(
    "--lang", type=click.Choice(["en", "de"]), help="Language of the texts; default: LANG's."
)


@click.command(name="list")
@lang_option
@json_option
def list_labs(as_json: bool, lang: str | None) -> None:
    """The labs that are running, and those of the course."""
    from labs.course.lesson import language, sizes, titles
    from labs.course.progress import progress_path, read
    from labs.handle import LabHandle
    from labs.state import running_labs

    facts = [LabHandle(running).ask("nodes")["spec"] for running in running_labs()]
    at = language(lang)
    done = read(progress_path())["labs"]
    counts = sizes()
    course: list[dict[str, Any]] = [
        {
            "number": number,
            "title": title[at],
            "right": _right(done.get(str(number))),
            "steps": counts[number],
        }
        for number, title in titles().items()
    ]
    if as_json:
        print_json({"labs": facts, "course": course})
        return
    for spec in facts:
        click.echo(
            f"{spec['name']}: {spec['hosts']} hosts, {spec['mode']}, {spec['switch']} switch"
        )
    if not facts:
        click.echo(HEADS[at]["none"])
    click.echo("\n" + HEADS[at]["course"])
    for each in course:
        mark = "*" if each["right"] == each["steps"] else "+" if each["right"] else " "
        click.echo(f"{mark} {each['number']:2}  {each['title']}")


def _right(lab: "Document | None") -> int:
    steps = lab["steps"].values() if lab else ()
    return sum(step.get("verdict") == "right" for step in steps)


@click.command()
@click.argument("number", type=int)
@click.option("--seed", default=0, show_default=True, help="Other addresses, another faulty host.")
@click.option("--name", default="lab", show_default=True, help="Name of the lab.")
@lang_option
@json_option
def start(as_json: bool, number: int, seed: int, name: str, lang: str | None) -> None:
    """Start a lab of the course: its cluster, and the first question.

    softnlb lab start 3

    A lab of the course that is running gives way.
    """
    from labs.course.lesson import language, load
    from labs.course.progress import progress_path, read, write
    from labs.handle import LabHandle
    from labs.state import running_labs
    from labs.up import start_lab
    from softnlb.errors import SoftnlbError
    from softnlb.progress import step, steps

    at = language(lang)
    lesson = load(number, seed, name)
    path = progress_path()
    document = read(path)
    if name in running_labs():
        running = LabHandle(name)
        current = document["current"] or {}
        if running.ask("nodes")["supervisor_pid"] != current.get("supervisor_pid"):
            raise SoftnlbError(
                f"a lab named {name} is running that is not of the course: "
                f"`softnlb lab down --name {name}` ends it"
            )
        running.down()
    write(path, document)  # before a lab runs whose steps nobody could note
    with steps(quiet=as_json):
        step(HEADS[at]["starts"])
        status = start_lab(lesson.spec)
    document["current"] = {
        "lab": number,
        "seed": seed,
        "name": name,
        "lang": at,
        "step": 0,
        "stage": GUESS,
        "hints": 0,
        "supervisor_pid": status["supervisor_pid"],
    }
    write(path, document)
    if not as_json:
        from labs.drawing import lab_map

        click.echo(bold(f"\n{number}. {lesson.titles[at]}\n"))
        click.echo(_wrapped(lesson.stories[at]) + "\n\n" + lab_map(status, MAP[at]))
    _show(lesson, document["current"], as_json)


@click.command(name="next")
@click.argument("guess", required=False)
@click.option("--skip", is_flag=True, help="Leave a step out that has no right answer yet.")
@lang_option
@json_option
def next_step(as_json: bool, guess: str | None, skip: bool, lang: str | None) -> None:
    """Go on: make a guess and see what to run, or take the next step."""
    from labs.course.progress import entry
    from softnlb.errors import UsageError

    with _Desk(lang) as desk:
        lesson, current, step = desk.lesson, desk.current, desk.step
        heads = HEADS[current["lang"]]
        if current["stage"] == GUESS:
            letters = "abcdefgh"[: len(step.texts["en"]["choices"])]
            if guess is not None and guess.lower() not in list(letters):
                raise UsageError(f"{guess}: expected one of {' '.join(letters)}")
            lab = desk.lab()
            entry(desk.document, lesson.number, lesson.seed, step.id)["guess"] = guess
            for fault in step.broken:
                lab.break_secretly(*fault.split())
            current["stage"] = RUN
        elif current["stage"] == RUN and not skip:
            click.echo(_wrapped(heads["pending"]), err=as_json)
        else:
            current |= {"step": current["step"] + 1, "stage": GUESS, "hints": 0}
    _show(lesson, current, as_json)


@click.command()
@lang_option
@json_option
def hint(as_json: bool, lang: str | None) -> None:
    """One hint more for the step at hand."""
    from labs.course.progress import entry

    with _Desk(lang) as desk:
        current, step = desk.current, desk.step
        heads, hints = HEADS[current["lang"]], step.texts[current["lang"]]["hints"]
        if current["hints"] >= len(hints):
            text = heads["hints"]
        else:
            current["hints"] += 1
            numbers = {"number": current["hints"], "count": len(hints)}
            text = heads["hint"].format(text=hints[current["hints"] - 1], **numbers)
            record = entry(desk.document, desk.lesson.number, desk.lesson.seed, step.id)
            record["hints"] = current["hints"]
    if as_json:
        print_json({"hint": text})
    else:
        click.echo(_wrapped(text))


@click.command()
@click.argument("answer", nargs=-1)
@click.option(
    "--all",
    "directory",
    type=click.Path(path_type=Path),
    help="Judge the files of a class: DIR/STUDENT.json, each a student's course.json.",
)
@click.option("--junit", type=click.Path(path_type=Path), help="With --all: write JUnit XML.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="With --all: write CSV.")
@lang_option
@json_option
def check(
    as_json: bool,
    answer: tuple[str, ...],
    directory: Path | None,
    junit: Path | None,
    csv_path: Path | None,
    lang: str | None,
) -> int:
    """Check the step at hand: the lab as it is, and your answer.

    Exit status 0 when it is right, 1 when it is not.
    """
    if directory is not None:
        return _check_class(directory, junit, csv_path, lang, as_json)
    from softnlb.errors import UsageError

    if junit is not None or csv_path is not None:
        raise UsageError("--junit and --csv go with --all DIR")
    with _Desk(lang) as desk:
        lesson, current, step = desk.lesson, desk.current, desk.step
        at = current["lang"]
        heads = HEADS[at]
        if current["stage"] == GUESS:
            letters = "|".join("abcdefgh"[: len(step.texts["en"]["choices"])])
            raise UsageError(heads["say"].format(letters=letters))
        from labs.course.checks import look
        from labs.course.progress import note, reason
        from softnlb.progress import step as tell
        from softnlb.progress import steps

        given, lab = " ".join(answer) or None, desk.lab()
        with steps(quiet=as_json):
            tell(heads["look"])
            facts = look(lab, step.check, {**lesson.values, **step.facts})
        verdict = note(desk.document, lesson, step, given, facts)
        right = verdict == "right"
        if right:
            current["stage"] = PASSED
        why = reason(step, at, verdict, given, facts)
        record = desk.document["labs"][str(lesson.number)]["steps"][step.id]
    if as_json:
        print_json({"lab": lesson.number, "step": step.id, "verdict": verdict, "reason": why})
        return int(not right)
    click.echo(bold(heads["explain" if right else "no"]))
    click.echo(_wrapped(why))
    if right:
        click.echo(_about_the_guess(step, at, record.get("guess")) + _way_on(lesson, current))
    return int(not right)


def _about_the_guess(step: "Step", at: str, guess: str | None) -> str:
    if guess is None:
        return "\n"
    right = "abcdefgh"[step.guess]
    key = "guessed" if guess == right else "missed"
    return "\n" + HEADS[at][key].format(letter=guess, right=right) + "\n"


def _way_on(lesson: "Lesson", current: "Document") -> str:
    from labs.course.lesson import numbers

    heads = HEADS[current["lang"]]
    if current["step"] + 1 < len(lesson.steps):
        return heads["next"]
    if lesson.number == numbers()[-1]:
        return heads["over"]
    return heads["end"].format(following=lesson.number + 1)


class _Desk:
    """The student's file, the lesson and the step at hand; written back at the end."""

    def __init__(self, lang: str | None) -> None:
        from labs.course.lesson import load
        from labs.course.progress import progress_path, read
        from softnlb.errors import NotRunningError, SoftnlbError

        self._path = progress_path()
        self.document = read(self._path)
        if not self.document["current"]:
            raise NotRunningError("no lab of the course has begun: `softnlb lab start 1` does")
        self.current: dict[str, Any] = self.document["current"]
        self.current["lang"] = lang or self.current["lang"]
        self.lesson = load(self.current["lab"], self.current["seed"], self.current["name"])
        if self.current["step"] >= len(self.lesson.steps):
            raise SoftnlbError(_way_on(self.lesson, self.current))
        self.step = self.lesson.steps[self.current["step"]]

    def lab(self) -> "LabHandle":
        """The lab that `lab start` started, and not another one of that name."""
        from labs.handle import LabHandle
        from labs.state import running_labs
        from softnlb.errors import NotRunningError

        name, number, seed = (self.current[key] for key in ("name", "lab", "seed"))
        if name in running_labs():
            lab = LabHandle(name)
            if lab.ask("nodes")["supervisor_pid"] == self.current["supervisor_pid"]:
                return lab
        options = f" --seed {seed}" * bool(seed) + f" --name {name}" * (name != "lab")
        command = f"softnlb lab start {number}{options}"
        raise NotRunningError(
            HEADS[self.current["lang"]]["gone"].format(lab=number, command=command)
        )

    def __enter__(self) -> "_Desk":
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Keep what was done, but for a command that failed."""
        from labs.course.progress import write

        if kind is None:
            write(self._path, self.document)


def _show(lesson: "Lesson", current: "Document", as_json: bool) -> None:
    """What the step at hand wants now: a guess, or an answer."""
    at = current["lang"]
    heads = HEADS[at]
    if current["step"] >= len(lesson.steps):
        click.echo(_way_on(lesson, current | {"step": len(lesson.steps)}))
        return
    step = lesson.steps[current["step"]]
    text = step.texts[at]
    if as_json:
        shown = {key: text[key] for key in ("predict", "choices", "observe")}
        run = noted(step.run, text.get("notes", ())) if current["stage"] != GUESS else []
        print_json({"lab": lesson.number, "step": step.id, **shown, "run": run, **current})
        return
    numbers = {"lab": lesson.number, "step": current["step"] + 1, "steps": len(lesson.steps)}
    click.echo(bold("\n" + heads["step"].format(**numbers)))
    if current["stage"] == GUESS:
        letters = "abcdefgh"[: len(text["choices"])]
        _part(heads["predict"], text["predict"])
        for letter, choice in zip(letters, text["choices"], strict=True):
            click.echo(_wrapped(choice, f"  {letter}) "))
        click.echo("\n" + heads["say"].format(letters="|".join(letters)))
        return
    click.echo(bold("\n" + heads["run"]))
    for line in noted(step.run, text.get("notes", ()), _columns() - 2):
        click.echo(f"  {line}")
    _part(heads["observe"], text["observe"])
    click.echo("\n" + heads["answer"])


def noted(commands: tuple[str, ...], notes: Sequence[str], columns: float = math.inf) -> list[str]:
    """Commands with their notes behind them, one below the other; above them if one is too long."""
    rows = list(zip_longest(commands, notes, fillvalue=""))
    width = max((len(command) for command, note in rows if note), default=0)
    longest = max((len(note) for _, note in rows), default=0)
    if width + len("    # ") + longest > columns:
        pairs = ((f"# {note}" if note else "", command) for command, note in rows)
        return [line for pair in pairs for line in pair if line]
    return [f"{command:{width}}    # {note}" if note else command for command, note in rows]


def _part(head: str, text: str) -> None:
    click.echo(bold("\n" + head))
    click.echo(_wrapped(text))


def _columns() -> int:
    return min(88, shutil.get_terminal_size((88, 24)).columns)


def _wrapped(text: str, mark: str = "") -> str:
    """Paragraphs as wide as the terminal, 88 columns at most; ``mark`` hangs before the first."""
    return "\n\n".join(
        click.wrap_text(part, _columns(), initial_indent=mark, subsequent_indent=" " * len(mark))
        for part in text.strip().split("\n\n")
    )


def _check_class(
    directory: Path, junit: Path | None, csv_path: Path | None, lang: str | None, as_json: bool
) -> int:
    from dataclasses import asdict

    from labs.course.lesson import language
    from labs.course.progress import judge_class, write_csv, write_junit

    rows, remarks = judge_class(directory, language(lang))
    if junit is not None:
        write_junit(rows, junit)
    if csv_path is not None:
        write_csv(rows, csv_path)
    if as_json:
        print_json({"rows": [asdict(row) for row in rows], "remarks": remarks})
    else:
        students = dict.fromkeys(row.student for row in rows)
        labs = sorted({row.lab for row in rows})
        click.echo(f"{'lab':20}" + "".join(f"{lab:>5}" for lab in labs))
        for student in students:
            own = [[r for r in rows if (r.student, r.lab) == (student, lab)] for lab in labs]
            cells = (f"{sum(r.result == 'right' for r in each)}/{len(each)}" for each in own)
            click.echo(f"{student[:19]:20}" + "".join(f"{cell:>5}" for cell in cells))
        for remark in remarks:
            click.echo(remark, err=True)
    sys.stdout.flush()
    return int(bool(remarks))


COMMANDS: tuple[click.Command, ...] = (list_labs, start, next_step, hint, check)
