"""How often the same thing is told: what comes from the network must not fill the log."""

LOG_EVERY_MS = 60_000
SOURCES_MAX = 8
"""Per name and minute; whoever invents source addresses is told of no more often."""


class Rarely:
    """Remembers what was told, by name and source."""

    def __init__(self) -> None:
        self._told: dict[str, dict[bytes, int]] = {}

    def may_tell(self, name: str, source: bytes, now_ms: int) -> bool:
        """True and remembered once per name, source and minute.

        ``name`` is one of a few; ``source`` may come from a frame.
        """
        told = self._told.setdefault(name, {})
        last_ms = told.get(source)
        if last_ms is not None and now_ms - last_ms < LOG_EVERY_MS:
            return False
        if last_ms is None and len(told) >= SOURCES_MAX:
            oldest = next(iter(told))
            if now_ms - told[oldest] < LOG_EVERY_MS:
                return False
            del told[oldest]
        told.pop(source, None)
        told[source] = now_ms
        return True
