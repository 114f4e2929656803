"""Ctrl-C waits for the end of a step, so that what is saved is a state that training can go on from."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Interrupts:
    """While this is entered, the first Ctrl-C sets `asked`; the second one is raised at once, as always.

    It acts in the main thread alone, and leaves a handler that is not Python's own in peace.
    """

    def __init__(self, *, wanted: bool = True) -> None:
        self.asked = False
        self._wanted = wanted
        self._ours = False

    def __enter__(self) -> Interrupts:
        default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._wanted and default and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._hear)
            self._ours = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._ours = False
            # Training may have ended meanwhile, or failed of it: a loader's processes hear Ctrl-C too, and are gone then.
            if self.asked and (kind is None or issubclass(kind, Exception)):
                raise KeyboardInterrupt from error

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            signal.default_int_handler(number, frame)
        self.asked = True
