"""Reading tables and sentences from Markdown (or text with pipe tables), CSV and TSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dftune.audit.numbers import strip_markup
from dftune.audit.table import Table, build_table

MAX_BYTES = 20_000_000
_RULE = re.compile(r"\s*\|?\s*:?-{2,}:?\s*(\|\s*:?-{2,}:?\s*)*\|?\s*")
_ITEM = re.compile(r"(?P<indent>\s*)(?:[-*+]|\d+[.)])\s+(?P<text>.*)")
_CAPTION = re.compile(r"(?:Table|Tab\.)\s*\d+", re.IGNORECASE)
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Line:
    """A line of running text.

    Attributes:
        number: from 1.
        text: without markup and bullet.
        parents: the lines that introduce it: items around it, and a paragraph that ends in a colon before a list.
    """

    number: int
    text: str
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """What stands in a file.

    Attributes:
        name: of the file.
        tables: in order.
        lines: the text between them.
    """

    name: str
    tables: tuple[Table, ...]
    lines: tuple[Line, ...]


def read_document(path: Path) -> Document:
    """Read a file: ``.csv`` and ``.tsv`` as one table, anything else as Markdown.

    Raises:
        ValueError: it is too large, or not text.
        FileNotFoundError: there is no such file.
    """
    raw = path.read_bytes()
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{path}: {len(raw):,} bytes; an audited file has at most {MAX_BYTES:,}.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}). Convert it first.") from None
    separator = _SEPARATORS.get(path.suffix.lower())
    return _separated(path.name, text, separator) if separator else _markdown(path.name, text)


def _separated(name: str, text: str, separator: str) -> Document:
    reader = csv.reader(text.splitlines(), delimiter=separator)
    rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    if len(rows) < 2:
        raise ValueError(f"{name}: expected a header and at least one row, found {len(rows)} rows.")
    (line, header), *body = rows
    table = build_table(header, body, title="", number=1, line=line, context=name)
    return Document(name, (table,), ())


def _markdown(name: str, text: str) -> Document:
    lines = text.splitlines()
    fenced = _fenced(lines)
    tables: list[Table] = []
    inside: set[int] = set()
    for index in range(1, len(lines)):
        header = lines[index - 1]
        starts = "|" in header and _RULE.fullmatch(lines[index]) and "-" in lines[index]
        if not starts or index in fenced or index - 1 in inside:
            continue
        end = index + 1
        while end < len(lines) and "|" in lines[end] and lines[end].strip():
            end += 1
        inside.update(range(index - 1, end))
        rows = [(number + 1, split_cells(lines[number])) for number in range(index + 1, end)]
        title, context = _above(lines, index - 1)
        tables.append(
            build_table(split_cells(header), rows, title=title, number=len(tables) + 1, line=index, context=context)
        )
    return Document(name, tuple(tables), tuple(_text(lines, inside | fenced)))


def _fenced(lines: Sequence[str]) -> set[int]:
    """Numbers of the lines inside code fences."""
    found: set[int] = set()
    fence = ""
    for index, line in enumerate(lines):
        mark = line.strip()[:3]
        if mark in ("```", "~~~") and fence in ("", mark):
            found.add(index)
            fence = "" if fence else mark
        elif fence:
            found.add(index)
    return found


def split_cells(line: str) -> list[str]:
    """The cells of a row of a pipe table."""
    inner = line.strip().removeprefix("|")
    inner = inner[:-1] if inner.endswith("|") and not inner.endswith("\\|") else inner
    return [cell.replace("\\|", "|").strip() for cell in re.split(r"(?<!\\)\|", inner)]


def _above(lines: Sequence[str], start: int) -> tuple[str, str]:
    """Caption (or heading) of a table, and the text around it that says how it was measured."""
    near, heading = "", ""
    for line in reversed(lines[:start]):
        text = strip_markup(line.strip().lstrip("#>"))
        if line.lstrip().startswith("#"):
            heading = text
            break
        if "|" in line:
            break
        if text and not near:
            near = text
    title = near if _CAPTION.match(near) else heading or near
    return title, "\n".join(filter(None, (heading, near)))


def _text(lines: Sequence[str], skip: set[int]) -> list[Line]:
    found: list[Line] = []
    stack: list[tuple[int, str]] = []
    for index, raw in enumerate(lines):
        text = strip_markup(raw)
        if index in skip or not text:
            continue
        if raw.lstrip().startswith("#"):
            stack = []
            continue
        item = _ITEM.fullmatch(raw)
        depth = len(item["indent"].expandtabs(4)) if item else -1
        text = strip_markup(item["text"]) if item else text
        stack = [(other, parent) for other, parent in stack if other < depth]
        found.append(Line(index + 1, text, tuple(parent for _, parent in stack)))
        if text.endswith(":") or item:
            stack.append((depth, text))
    return found
