"""What keeps slow and greedy clients of the page from holding up the others: bounds of time, number and memory.

The standard library's server has a thread per connection. A thread that waits costs next to nothing, so that a slow
client takes nothing from others but a place, and whoever has kept a full server waiting longest loses it.
"""

import contextlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class Arriving(io.RawIOBase):
    """What a connection receives, up to a moment that no byte puts off."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        """
        Args:
            connection: to read from.
            seconds: from now on, after which reading raises a TimeoutError.
        """
        self._connection, self._end = connection, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


@dataclass
class _Held:
    since: float = field(default_factory=time.monotonic)
    amount: int = 0
    working: bool = False


class Room:
    """Something that connections share a limited amount of: places, or bytes of memory."""

    def __init__(self, most: int) -> None:
        """
        Args:
            most: what there is of it.
        """
        self.most, self.used = most, 0
        self._held: dict[socket.socket, _Held] = {}
        self._lock = threading.Lock()

    def take(self, connection: socket.socket, amount: int = 1) -> bool:
        """Gives some more to a connection. Where nothing is left, the oldest ones are cut off that still send or
        receive.

        Returns:
            False if there is no older one: this one has nothing any more, and what it asks for is refused.
        """
        with self._lock:
            held = self._held.setdefault(connection, _Held())
            held.amount += amount
            self.used += amount
            while self.used > self.most:
                waiting = (other for other in self._held if other is connection or not self._held[other].working)
                oldest = min(waiting, key=lambda other: self._held[other].since)
                self._drop(oldest)
                if oldest is connection:
                    return False
                with contextlib.suppress(OSError):  # It has just hung up.
                    oldest.shutdown(socket.SHUT_RDWR)
            return True

    def leave(self, connection: socket.socket) -> None:
        """Takes back what a connection has; before it is closed, for its number may then be another's."""
        with self._lock:
            self._drop(connection)

    @contextlib.contextmanager
    def working(self, connection: socket.socket) -> Iterator[None]:
        """Within this context a connection is not cut off: it waits for the server, not the other way round."""
        self._mark(connection, working=True)
        try:
            yield
        finally:
            self._mark(connection, working=False)

    def _mark(self, connection: socket.socket, *, working: bool) -> None:
        with self._lock:
            if held := self._held.get(connection):
                held.working = working
                held.since = time.monotonic()

    def _drop(self, connection: socket.socket) -> None:
        if held := self._held.pop(connection, None):
            self.used -= held.amount
