"""Damage to bytes: what bits, lengths, copies and numbers at their limits can do."""

import random

WORDS = """
0 -1 1 33 64 100 65535 65536 4294967296 1e999 NaN -0.0 null true {} [] "" 'all' "all" "\\ud800"
"\\u0000" [[[[ }} ]] [[port_rule]] [cluster] = : , # 0x 1_0 1979-05-27 ::1 /0 /33
"""
BYTES = (b"\n", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b'"' * 3, b"9" * 5000, b"\xff" * 8)
TOKENS = (*WORDS.encode().split(), *BYTES)
EDITS_MAX = 8


def mutate(seeds: list[bytes], chance: random.Random) -> bytes:
    """One of the seeds with up to ``EDITS_MAX`` edits."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(0, EDITS_MAX)):
        at = chance.randint(0, len(data))
        end = min(len(data), at + chance.choice((1, 1, 2, 4, 8, 32, 1496)))
        edit = chance.randint(0, 6)
        if edit == 0 and at < len(data):
            data[at] ^= 1 << chance.randint(0, 7)
        elif edit == 1 and at < len(data):
            data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif edit == 2:
            data[at:at] = chance.choice(TOKENS)
        elif edit == 3:
            data[at:end] = chance.choice(TOKENS)
        elif edit == 4:
            del data[at:end]
        elif edit == 5:
            data[at:at] = data[at:end]
        else:
            other = chance.choice(seeds)
            start = chance.randint(0, len(other))
            data[at:end] = other[start : start + end - at]
    return bytes(data)
