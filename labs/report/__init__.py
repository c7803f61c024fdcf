"""From an event log to a page with figures."""
