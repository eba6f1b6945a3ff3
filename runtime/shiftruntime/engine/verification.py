"""A model held against its manifest in the background, while the ranks start."""

from __future__ import annotations

import threading
from types import TracebackType

from shiftruntime.errors import ShiftError
from shiftruntime.models.manifest import Stopped, verify


class Verification:
    """Begins at once; leaving the context ends it early."""

    def __init__(self, model: str, required: bool) -> None:
        self._model, self._required = model, required
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self.done_bytes = self.total_bytes = 0
        self._thread = threading.Thread(target=self._run, name="verify", daemon=True)

    def __enter__(self) -> Verification:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()  # it looks at the event after every mebibyte

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> None:
        """After it ran: raises StartupError(ModelDamaged) if a file is not what the manifest says."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            verify(self._model, required=self._required, progress=self._progress, stop=self._stop)
        except Stopped:
            pass
        except (ShiftError, OSError) as error:
            self._failure = error

    def _progress(self, done_bytes: int, total_bytes: int) -> None:
        self.done_bytes, self.total_bytes = done_bytes, total_bytes
