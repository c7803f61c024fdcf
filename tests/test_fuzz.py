"""Bytes from outside, damaged: an error of the promised kind or a meaning, and nothing else."""

import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import NAMES
from tests.fuzz.mutate import mutate
from tests.fuzz.targets import CORPUS, Target, close, seeds, targets

EXAMPLES = {
    "heartbeat": 150,
    "control": 300,
    "remote": 300,
    "config": 300,
    "key_file": 200,
    "nlb": 300,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    with pytest.MonkeyPatch.context() as patch:
        found = targets(tmp_path_factory.mktemp("fuzz"), patch)
        yield found
        close(found)


CASES = [path for name in NAMES for path in sorted((CORPUS / name).iterdir())]


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_corpus(made: dict[str, Target], path: object) -> None:
    made[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_mutations_of_the_corpus(made: dict[str, Target], name: str) -> None:
    corpus, target = seeds(name), made[name]

    @settings(
        max_examples=EXAMPLES[name],
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def mutations(chance: random.Random) -> None:
        target(mutate(corpus, chance))

    mutations()
