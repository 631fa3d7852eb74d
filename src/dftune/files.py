"""Files that survive a kill: atomic writes, append-only JSONL, fingerprints, safe names."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: str, what: str) -> str:
    """Return ``name`` if it is safe as one part of a path.

    Raises:
        ValueError: it holds a separator, starts with a dot, is empty or over 100 characters.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} {name!r} cannot be used as a file name. "
            "Use 1 to 100 letters, digits, '.', '_' or '-', starting with a letter or digit."
        )
    return name


def fingerprint(*parts: bytes | str | int | float | bool | Mapping[str, Any] | list[Any] | None) -> str:
    """SHA-256 over the parts, each with its length, as 16 hex digits. Mappings and lists enter as canonical JSON."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else part.encode() if isinstance(part, str) else canonical_json(part)
        digest.update(f"{len(raw)}:".encode())
        digest.update(raw)
    return digest.hexdigest()[:16]


def canonical_json(value: Any) -> bytes:
    """One byte string per value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def umask_mode() -> int:
    """The mode a new file should have under the current umask (temporary files are created 0600)."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it into place if the block succeeds, delete it if not.

    The file is synced before the rename and its mode follows the umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(umask_mode())
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Flush a file or folder to the disk (folders where the system allows it)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` (UTF-8), all or nothing. Lone surrogates are written as ``?``."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", errors="replace"))


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by indented JSON, all or nothing."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is not JSON; the message names the file and the line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from error


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace ``path`` by one JSON object a line, all or nothing."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for row in rows:
            file.write(jsonl_line(row))


def jsonl_line(row: Mapping[str, Any]) -> bytes:
    """One row as a line of JSON; NaN and infinity are refused, since JSON has neither."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8", errors="replace") + b"\n"


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows with a single write, after dropping what a kill left of a last line. Safe for several processes."""
    data = b"".join(jsonl_line(row) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # what looks like half a line must not be another writer's, in progress
        _drop_partial_line(descriptor, os.fstat(descriptor).st_size)
        written = os.write(descriptor, data)
        if written < len(data):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise OSError(f"{path}: wrote {written} of {len(data)} bytes; the disk is full. Free space and resume.")
    finally:
        os.close(descriptor)


def _drop_partial_line(descriptor: int, size: int) -> None:
    end = size
    while end > 0:
        start = max(0, end - 65536)
        block = os.pread(descriptor, end - start, start)
        newline = block.rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)


def read_jsonl(path: Path, *, partial_last_line: bool = False) -> list[dict[str, Any]]:
    """Read one JSON object a line; blank lines are skipped.

    Args:
        path: the file.
        partial_last_line: ignore a last line without its newline, as a killed writer leaves it.

    Raises:
        ValueError: a line is not a JSON object; the message names file and line.
    """
    return [row for _, row in iter_jsonl(path, partial_last_line=partial_last_line)]


def iter_jsonl(path: Path, *, partial_last_line: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and rows of a file of any size, one line in memory at a time; otherwise as `read_jsonl`."""
    return ((number, row) for number, _, row in locate_jsonl(path, partial_last_line=partial_last_line))


def locate_jsonl(path: Path, *, partial_last_line: bool = False) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Line numbers, offsets of the lines in bytes, and rows; otherwise as `iter_jsonl`."""
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            start, end = end, end + len(line)
            if not line.strip() or (partial_last_line and not line.endswith(b"\n")):
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                shown = line[:80].decode("utf-8", errors="replace").rstrip("\n")
                problem = f"{path}, line {number}: not valid JSON ({error}). The line starts: {shown}"
                raise ValueError(problem) from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}.")
            yield number, start, row
