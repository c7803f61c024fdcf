"""Fuzzing: bytes from outside, damaged, through everything that reads them.

``tests/test_fuzz.py`` runs the corpus and a bounded number of mutations of it; ``python -m
tests.fuzz`` goes on for as long as it is told to, and puts what fails into the corpus.
"""
