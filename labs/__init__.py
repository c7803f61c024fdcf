"""Throw-away clusters on one machine: `softnlb lab ...`, its experiments and the demo."""
