"""Fuzz for as long as told: ``python -m tests.fuzz --seconds 60 [--target NAME] [--seed N]``."""

import argparse
import hashlib
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pytest

from tests.fuzz.mutate import mutate
from tests.fuzz.targets import CORPUS, close, seeds, targets

NAMES = ("heartbeat", "control", "remote", "config", "key_file", "nlb")


def main() -> int:
    """The number of failures is the exit status; each is kept in the corpus."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="per target")
    parser.add_argument("--target", choices=NAMES)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    options = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        made = targets(Path(directory), patch)
        for name in [options.target] if options.target else NAMES:
            chance = random.Random(f"{options.seed} {name}")
            corpus, runs, until_s = seeds(name), 0, time.monotonic() + options.seconds
            while time.monotonic() < until_s:
                data = mutate(corpus, chance)
                runs += 1
                try:
                    made[name](data)
                except Exception:
                    failures += 1
                    kept = CORPUS / name / f"failed-{hashlib.sha256(data).hexdigest()[:12]}"
                    kept.write_bytes(data)
                    print(f"{kept}:", file=sys.stderr)
                    traceback.print_exc()
                    break
            print(f"{name}: {runs} inputs, seed {options.seed}")
        close(made)
    return failures


if __name__ == "__main__":
    sys.exit(main())
