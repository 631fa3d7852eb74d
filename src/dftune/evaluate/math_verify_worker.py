"""Math-Verify in a process of its own, with limits that hold: it hangs on hostile text and cannot run in a thread."""

from __future__ import annotations

import importlib.util
import json
import selectors
import subprocess
import sys
from types import TracebackType

_CODE = r"""
import json, logging, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (%(bytes)d, %(bytes)d))
logging.disable(logging.CRITICAL)
from math_verify import parse, verify
print("ready", flush=True)
for line in sys.stdin:
    gold, text = json.loads(line)
    try:
        correct = verify(parse("\\boxed{" + gold + "}"), parse(text))
    except Exception as error:
        print(json.dumps(type(error).__name__), flush=True)
    else:
        print(json.dumps(bool(correct)), flush=True)
"""
_START_SECONDS = 60.0


class MathVerify:
    """Asks Math-Verify for verdicts, with the reference in a box (bare LaTeX references fail against themselves).

    Args:
        seconds: limit for one pair; the process is killed and started again when it is over.
        max_bytes: address space of the process.
    """

    def __init__(self, seconds: float = 10.0, max_bytes: int = 4 << 30) -> None:
        self.seconds = seconds
        self.code = _CODE % {"bytes": max_bytes}
        self.process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def installed() -> bool:
        """Whether the package is there."""
        return importlib.util.find_spec("math_verify") is not None

    def __enter__(self) -> MathVerify:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def verdict(self, gold: str, completion: str) -> bool | None:
        """Its verdict; None when it raised, ran out of memory, or took too long."""
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps([gold, completion]).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            self.stop()
            return None
        answer = self._line(process, self.seconds)
        return {b"true": True, b"false": False}.get(answer)

    def stop(self) -> None:
        """Kill the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
            self.process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            self.stop()
            self.process = subprocess.Popen(
                [sys.executable, "-c", self.code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            if self._line(self.process, _START_SECONDS) != b"ready":
                self.stop()
                raise ValueError("Math-Verify does not start. Check `python -c 'import math_verify'`.")
        assert self.process is not None
        return self.process

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes:
        """The next line of its output; empty, and the process killed, when none comes in time."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if selector.select(seconds) and (line := process.stdout.readline()):
                return line.strip()
        self.stop()
        return b""
