"""``softnlb lab report``: an event log becomes a page, picture files, or numbers."""

from pathlib import Path
from typing import Any

from labs.events import labs_in, parse
from labs.handle import LabHandle
from labs.report.page import document, section
from labs.report.story import Story, story_of
from softnlb.errors import MachineError, SoftnlbError, UsageError


def stories(path: Path | None, name: str) -> list[Story]:
    """One per lab of an event log: of a file, or of the running lab ``name``.

    Raises SoftnlbError.
    """
    if path is None:
        text, source = LabHandle(name).events().decode(), f"lab {name}"
    else:
        try:
            text, source = path.read_text(), str(path)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise SoftnlbError(f"{path}: {why}") from error
    return [story_of(events) for events in labs_in(parse(text.splitlines(), source))]


def _figures() -> Any:
    try:
        from labs.report import figures
    except ImportError as error:
        raise MachineError(
            "figures are drawn by matplotlib, which is not installed: "
            "pip install 'softnlb[report]'; --json needs none"
        ) from error
    return figures


def html(told: list[Story], title: str) -> str:
    """The page.  Raises MachineError without matplotlib."""
    figures = _figures()
    parts = [
        f"<header><h1>{title}</h1><p class='lead'>Drawn from the event log of this run, and from "
        "nothing else.</p></header>"
    ]
    for story in told:
        drawn = {
            name: (*figures.FIGURES[name][:2], figures.svg(figure))
            for name, figure in figures.draw(story).items()
        }
        parts.append(section(story, drawn))
    parts.append("<footer>softnlb lab report</footer>")
    return document(title, "\n".join(parts))


def write_figures(told: list[Story], directory: Path) -> list[Path]:
    """PNG and SVG files.  Raises SoftnlbError."""
    figures = _figures()
    written: list[Path] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for story in told:
            prefix = f"{story.title}-" if len(told) > 1 else ""
            written += figures.write(figures.draw(story), directory, prefix)
    except OSError as error:
        raise SoftnlbError(f"{directory}: {error.strerror}") from error
    return written


def draw_growth(rows: list[dict[str, Any]], path: Path) -> None:
    """The figure of ``softnlb lab run scale``, as SVG or PNG by the file's ending.

    Raises MachineError without matplotlib, SoftnlbError.
    """
    _figures()
    from labs.report.growth import figure

    if path.suffix not in (".svg", ".png"):
        raise UsageError(f"{path}: a figure ends in .svg or .png")
    metadata: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {}
    try:
        figure(rows).savefig(path, dpi=150, metadata=metadata)
    except OSError as error:
        raise SoftnlbError(f"{path}: {error.strerror}") from error
