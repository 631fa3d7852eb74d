"""What it means that a run was asked to stop; imports nothing, for the command line knows it too."""

from __future__ import annotations

STATUS = 75
"""Exit status of a run that was asked to stop and can be taken up again: EX_TEMPFAIL of sysexits.h."""


class Stopped(Exception):  # noqa: N818  (no error, as KeyboardInterrupt is none)
    """A signal ended the run before its time.

    Attributes:
        signal: its name.
        status: of the run's last row: ``requeue`` after SIGUSR1, which batch systems send before a time limit, else
            ``interrupted``.
    """

    def __init__(self, signal: str, where: str) -> None:
        super().__init__(f"{signal} {where}. `--resume` continues the run.")
        self.signal = signal
        self.status = "requeue" if signal == "SIGUSR1" else "interrupted"
