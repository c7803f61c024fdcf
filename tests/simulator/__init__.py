"""A cluster in virtual time: machines, a network that can fail, data planes, and checkers.

One seed is one episode: ``python -m tests.simulator --seeds 1 --start SEED`` replays it.
"""
