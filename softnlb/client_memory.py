"""The clients of extended affinity in memory that the agent shares with its verdict process.

Two tables of records.  The verdict process alone adds to the clients that this host remembers, and
the agent forgets by setting their time to 0; the agent alone writes those that other hosts keep.
So no lock is needed: a record's last word makes it count, and is written last.
"""

import mmap
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping

from softnlb.errors import SoftnlbError
from softnlb.kernel import boot_ms
from softnlb.known_clients import CLIENTS_MAX, Known

# Address of 4 or 16 bytes, slot, length of the address (0: this place was never used), bucket.
_CLIENT = struct.Struct("<16sBBBx4x")
_RECORD_BYTES = 32
_WORD = 3
"""Of the four words of a record the last: when the client was heard, or whose it is; 0: nobody."""
_OWN_PLACES = 2 * CLIENTS_MAX
_EXCEPTED_PLACES = 4 * CLIENTS_MAX
_PROBES = 128
_HEADER_BYTES = 4096


class _Table:
    """Records at the place that their key names, or shortly after it."""

    def __init__(self, memory: mmap.mmap, words: memoryview, at: int, places: int) -> None:
        self._memory, self._words, self._at, self._places = memory, words, at, places

    def _probe(self, key: bytes) -> Iterator[int]:
        first = hash(key)
        for step in range(_PROBES):
            yield self._at + (first + step) % self._places * _RECORD_BYTES

    def find(self, key: bytes) -> int | None:
        """The record that stands for this key and counts."""
        head = _head(key)
        for at in self._probe(key):
            found = self._memory[at : at + 18]
            if not found[17]:
                return None
            if found == head and self._words[at // 8 + _WORD]:
                return at
        return None

    def word(self, at: int) -> int:
        return int(self._words[at // 8 + _WORD])

    def set(self, at: int, word: int) -> None:
        self._words[at // 8 + _WORD] = word

    def add(self, key: bytes, bucket: int, word: int) -> bool:
        """A new record; False when there is no room near its place."""
        for at in self._probe(key):
            if not self.word(at):
                address = key[1:]
                record = _CLIENT.pack(address, key[0], len(address), bucket)
                self._memory[at : at + _CLIENT.size] = record
                self.set(at, word)
                return True
        return False

    def records(self) -> Iterator[tuple[bytes, int, int]]:
        """(key, bucket, word) of every record that counts."""
        first = self._at // 8
        marks = self._words[first + _WORD : first + 4 * self._places : 4].tolist()
        for place, word in enumerate(marks):
            if word:
                at = self._at + place * _RECORD_BYTES
                address, slot, length, bucket = _CLIENT.unpack_from(self._memory, at)
                yield bytes((slot,)) + address[:length], bucket, word


def _head(key: bytes) -> bytes:
    return key[1:].ljust(16, b"\0") + bytes((key[0], len(key) - 1))


class ClientMemory:
    """Both tables.  A ``Clients`` for the decision; the other methods are the agent's.

    The fork shares the seed of ``hash``, too.
    """

    def __init__(self, clock: Callable[[], int] = boot_ms) -> None:
        own_bytes = _OWN_PLACES * _RECORD_BYTES
        size = _HEADER_BYTES + own_bytes + _EXCEPTED_PLACES * _RECORD_BYTES
        # Untouched pages cost nothing.
        self._memory = mmap.mmap(-1, size)
        self._words = memoryview(self._memory).cast("Q")
        self._own = _Table(self._memory, self._words, _HEADER_BYTES, _OWN_PLACES)
        at = _HEADER_BYTES + own_bytes
        self._excepted = _Table(self._memory, self._words, at, _EXCEPTED_PLACES)
        self._clock = clock

    # ------------------------------------------------------------ the verdict process

    def is_excepted(self, slot: int, key: bytes) -> bool:
        return self._excepted.find(bytes((slot,)) + key) is not None

    def recall(self, slot: int, key: bytes) -> bool:
        at = self._own.find(bytes((slot,)) + key)
        if at is None:
            return False
        self._own.set(at, self._clock())
        return True

    def remember(self, slot: int, key: bytes, bucket: int) -> None:
        client = bytes((slot,)) + key
        at = self._own.find(client)
        if at is not None:
            self._own.set(at, self._clock())
        elif self._words[1] or not self._own.add(client, bucket, self._clock()):
            self._words[0] += 1

    # ------------------------------------------------------------ the agent

    def known(self) -> list[Known]:
        """All that this host remembers."""
        found = [Known(key, bucket, heard) for key, bucket, heard in self._own.records()]
        # Above this no more are taken, until some have been silent for long enough.
        self._words[1] = len(found) >= CLIENTS_MAX
        return found

    @property
    def not_remembered(self) -> int:
        """Clients for whom there was no room."""
        return int(self._words[0])

    def forget(self, keys: Iterable[bytes]) -> bool:
        """Set these back; False when none of them was remembered (any more)."""
        places = [at for key in keys if (at := self._own.find(key)) is not None]
        for at in places:
            self._own.set(at, 0)
        return bool(places)

    def heard(self, clients: Iterable[Known], now_ms: int) -> None:
        """These were heard, as far as they are remembered."""
        for client in clients:
            if (at := self._own.find(client.key)) is not None:
                self._own.set(at, now_ms)

    def put(self, hosts: Mapping[bytes, int]) -> None:
        """Leave these clients to other hosts.  Raises SoftnlbError when there is no room."""
        for key, host_id in hosts.items():
            at = self._excepted.find(key)
            if at is not None:
                self._excepted.set(at, host_id)
            elif not self._excepted.add(key, 0, host_id):
                raise SoftnlbError(f"no room for {len(hosts)} more clients of other hosts")

    def take_back(self, keys: Iterable[bytes]) -> None:
        """Leave these clients to nobody any more."""
        for key in keys:
            if (at := self._excepted.find(key)) is not None:
                self._excepted.set(at, 0)

    def close(self) -> None:
        self._words.release()
        self._memory.close()
