"""A page that shows each pair side by side, so that a decision can be checked by reading."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from difflib import SequenceMatcher
from html import escape
from typing import Any

_WORD = re.compile(r"[^\W_]+")
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --mark: #f5c84266; --muted: #777 }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2.5rem }
section { border-top: 1px solid var(--line); padding: .8rem 0 }
section { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1.5rem }
section p { grid-column: 1 / -1; margin: 0 0 .4rem } small, .answer { color: var(--muted) }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; margin: 0 }
mark { background: var(--mark); color: inherit }
@media (max-width: 42rem) { section { grid-template-columns: 1fr } }
@media print { section { break-inside: avoid } }
"""


def page(name: str, action: str, pairs: Sequence[Mapping[str, Any]]) -> str:
    """One self-contained HTML document; rows of ``contamination.jsonl`` are its pairs. All text of data is escaped."""
    same = [pair for pair in pairs if pair["same"]]
    kept = [pair for pair in pairs if not pair["same"]]
    done = {"remove": "removed from the training rows", "report": "reported, and left among the training rows"}
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(name)}: contamination</title><style>{_STYLE}</style>",
        f"<h1>{escape(name)}: training rows that are benchmark problems</h1>",
        "<p>Left the training row, right the benchmark row. What only one of them has is marked.</p>",
        f"<h2>The same problem: {_pairs(same)} ({done.get(action, action)})</h2>",
        *map(_section, same),
        f"<h2>Look-alikes that were kept: {_pairs(kept)}, the nearest first</h2>",
        *map(_section, kept),
    ]
    return "\n".join(parts) + "</html>\n"


def _pairs(pairs: Sequence[Any]) -> str:
    return f"{len(pairs):,} pair" + ("" if len(pairs) == 1 else "s")


def _section(pair: Mapping[str, Any]) -> str:
    left, right = marked(pair["problem"], pair["benchmark_problem"])
    return (
        f"<section><p><b>{escape(pair['reason'])}</b> "
        f"<small>{pair['covered']:.0%} of the benchmark's text, {pair['covered_train']:.0%} of the row's</small></p>"
        f"<div><small>{escape(pair['id'])}</small><pre>{left}</pre>{_answer(pair['answer'])}</div>"
        f"<div><small>{escape(pair['benchmark'])} / {escape(pair['benchmark_id'])}</small><pre>{right}</pre>"
        f"{_answer(pair['benchmark_answer'])}</div></section>"
    )


def _answer(answer: str | Sequence[str] | None) -> str:
    text = "not known" if not answer else answer if isinstance(answer, str) else " or ".join(answer)
    return f"<div class=answer>answer: {escape(text)}</div>"


def marked(left: str, right: str) -> tuple[str, str]:
    """Both texts as HTML, with the words and numbers marked that the other has not in the same place."""
    words = list(_WORD.finditer(left)), list(_WORD.finditer(right))
    mine, other = ([match[0].lower() for match in found] for found in words)
    blocks = SequenceMatcher(None, mine, other, autojunk=False).get_matching_blocks()
    same = (
        {place for block in blocks for place in range(block.a, block.a + block.size)},
        {place for block in blocks for place in range(block.b, block.b + block.size)},
    )
    return _marked(left, words[0], same[0]), _marked(right, words[1], same[1])


def _marked(text: str, words: Sequence[re.Match[str]], same: Collection[int]) -> str:
    out, end = [], 0
    for place, match in enumerate(words):
        word = escape(match[0])
        out += [escape(text[end : match.start()]), word if place in same else f"<mark>{word}</mark>"]
        end = match.end()
    return "".join([*out, escape(text[end:])])
