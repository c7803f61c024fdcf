"""How an answer is judged by what the lab showed; pure, so that a teacher can judge it again."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Facts:
    """What the lab shows.

    ``right``: every answer that fits; a number fits within ``tolerance``, and one that does not is
    too low or too high, but for an exit status and the like (``ordered`` False).  ``ready``: False
    when the lab is not in the state that the step asks for.  ``seen`` fills the step's texts, and
    ``clues`` what speaks against one wrong answer.
    """

    right: list[str]
    tolerance: float = 0.0
    ready: bool = True
    ordered: bool = True
    seen: dict[str, Any] = field(default_factory=dict)
    clues: dict[str, str] = field(default_factory=dict)


def tidy(answer: str) -> str:
    """An answer as it is compared: 02-BF.. as 02:bf.., "Host 3" as host3, 94 % as 94."""
    word = answer.strip().lower().rstrip("%").strip().removesuffix(" s").replace(",", ".")
    word = word.replace("host ", "host")
    return word.replace("-", ":") if len(word) == 17 else word


def judge(facts: Facts, answer: str | None) -> str:
    """ "right", "wrong", "low" or "high" (of a number), "missing", or "not ready"."""
    if not facts.ready:
        return "not ready"
    if answer is None or not answer.strip():
        return "missing"
    given = tidy(answer)
    if given in facts.right or f"host{given}" in facts.right:
        return "right"
    if not facts.ordered:
        return "wrong"
    try:
        number, wanted = float(given), float(facts.right[0])
    except ValueError:
        return "wrong"
    if abs(number - wanted) <= facts.tolerance:
        return "right"
    return "low" if number < wanted else "high"
