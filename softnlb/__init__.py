"""The core of softnlb: packets and their filter, the agent, the command line."""

__version__ = "0.1.0"
