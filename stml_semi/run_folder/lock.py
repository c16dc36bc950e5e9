"""A run folder has one owner: a lock that the system takes back when its process ends, however it ends."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from stml_semi.runtime.errors import BadInput

NAME = ".lock"
# Decoding processes of a run that was killed notice within seconds, and hold the lock until then.
_PATIENCE = 20.0


class FolderLock:
    """The right to write a run folder, held by the main process of a run."""

    def __init__(self, folder: Path, session: Callable[[], dict[str, Any] | None]) -> None:
        """
        Args:
            folder: of the run.
            session: how the run there was started last, if that is known; names the holder.
        """
        self.folder, self._session = folder, session
        self._lock: BaseFileLock | None = None

    def check(self) -> None:
        """
        Raises:
            BadInput: another process holds the lock, or it cannot be taken here at all.
        """
        if not (self.folder / NAME).exists() or self._lock is not None:
            return
        try:
            self.acquire()
        except OSError as error:
            reason = error.strerror or error
            raise BadInput(f"--output-dir {self.folder}: {reason}; choose a folder you can write to") from None
        self.close()

    def acquire(self) -> None:
        """Takes the lock, or keeps it; the folder must exist.

        Raises:
            BadInput: another process holds it.
            OSError: the folder cannot be written.
        """
        if self._lock is not None:
            return
        try:
            self._lock = self._take(FileLock)
        except NotImplementedError:  # Some network file systems lock nothing.
            self._lock = self._take(SoftFileLock)

    def _take(self, kind: type[BaseFileLock]) -> BaseFileLock:
        lock = kind(str(self.folder / NAME), timeout=_PATIENCE if self._holder_is_gone() else 0)
        try:
            lock.acquire()
        except Timeout:
            raise BadInput(
                f"--output-dir {self.folder}: another run writes here{self._holder()}; wait for it, end it, or choose "
                f"another folder"
            ) from None
        return lock

    def _holder(self) -> str:
        session = self._session() or {}
        if not {"process", "host", "started"} <= session.keys():
            return ""
        return f" (process {session['process']} on {session['host']}, started {session['started']})"

    def _holder_is_gone(self) -> bool:
        session = self._session() or {}
        if session.get("host") != socket.gethostname() or not isinstance(session.get("process"), int):
            return False
        return not psutil.pid_exists(session["process"])

    def close(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
