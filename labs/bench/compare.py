"""Ratios between interleaved measurements, and what may be said of them."""

import statistics
from typing import Any

from labs.runs.bulk import interval

PAIRS_MIN = 7


def ratio(measured: list[float], beside: list[float]) -> dict[str, Any]:
    """Median ratio of the pairs with its 95 % interval; "ahead" when that lies above 1."""
    ratios = [one / other for one, other in zip(measured, beside, strict=True)]
    low, high = interval(ratios)
    says = "ahead" if low > 1 else "behind" if high < 1 else "even"
    return {
        "median": round(statistics.median(ratios), 4),
        "interval_95": [round(low, 4), round(high, 4)],
        "says": says,
    }


def turn(names: list[str], number: int) -> list[str]:
    """The order of round ``number``: another one begins each time."""
    at = number % len(names)
    order = names[at:] + names[:at]
    return order if number % 2 else order[::-1]
