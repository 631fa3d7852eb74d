"""Claims that can be read off a sentence by rule. What no rule fits is left alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dftune.audit.claims import Best, Change, Claim, Everywhere, Gain, Mixed, Order, Place, Ratio, RatioRange, Value
from dftune.audit.names import AVERAGE, Mention, Names
from dftune.audit.numbers import Printed, number
from dftune.audit.read import Document, Line
from dftune.audit.table import BASE

_SENTENCE = re.compile(r"(?<=[.!?;])\s+(?=[A-Z*])")
_GAIN = re.compile(r"(?<![\w.])(?P<gain>[+\-\N{MINUS SIGN}]\d+(?:\.\d+)?)(?![\w.]*[eE×])\s*(?P<unit>%?)")
_BY = re.compile(
    r"\b(?:by|gains? of|improvements? of)\s+(?P<gain>\d+(?:\.\d+)?)\s*(?P<unit>points?|pp|percentage points?|%)",
    re.IGNORECASE,
)
_TIMES = re.compile(r"(?<![\w.])(?P<times>\d+(?:\.\d+)?)\s*(?:×|x\b|times\b|-fold\b)", re.IGNORECASE)
_TIMES_RANGE = re.compile(
    r"(?P<low>\d+(?:\.\d+)?)\s*(?:×|x|times)?\s*(?:to|and|–|-)\s*(?P<high>\d+(?:\.\d+)?)\s*(?:×|x\b|times\b)",
    re.IGNORECASE,
)
_FROM_TO = re.compile(r"(?:\bfrom\s+(?P<old>\d+\.\d+)%?\s+)?\bto\s+(?P<new>\d+\.\d+)\b")
_ARROW = re.compile(
    r"(?P<old>\d+(?:\.\d+)?)\s*%?\s*(?:→|->|⟶)\s*(?P<new>\d+(?:\.\d+)?)\s*(?P<unit>%?)"
    r"(?:\s*\((?P<absolute>[+\-]\d+(?:\.\d+)?)\s*%?[^,()]*(?:,\s*(?P<relative>[+\-]\d+(?:\.\d+)?)\s*%\s*rel[^)]*)?\))?"
)
_VERSUS = re.compile(r"\s*\((?P<ours>\d+(?:\.\d+)?)%?\s*(?:vs\.?|against|versus)\s*(?P<theirs>\d+(?:\.\d+)?)%?\)")
_BEST = re.compile(
    r"\b(?:best|highest)\b[^.;]*?\((?P<score>\d+\.\d+)\s*%?(?:\s*(?:average|avg\.?|on average))?\)", re.IGNORECASE
)
_BETTER = re.compile(r"\b(?:outperform|surpass|exceed|beat)\w*|\b(?:better|higher)\b[^.]*\bthan\b", re.IGNORECASE)
_WORSE = re.compile(r"\bunderperform\w*|\b(?:worse|lower)\b[^.]*\bthan\b", re.IGNORECASE)
_FALL = re.compile(r"\bunderperform|\bdrop|\bdegrad|\breduc|\bdecreas|\bworse|\blos[est]|\bfall|\bfell", re.IGNORECASE)
_MIXED = re.compile(r"\binconsistent(?:ly)?\b[^.;]*\b(?:benchmarks?|data\s?sets?|tasks?)\b", re.IGNORECASE)
_ALL = re.compile(
    r"(?<!nearly )(?<!almost )(?<!not )\b(?:all|every)\s+(?:\w+\s+){0,2}?(?:of the\s+)?"
    r"(?:(?P<benchmarks>benchmarks?|data\s?sets?|tasks?)|(?P<models>models?|llms?|model families))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Context:
    """A sentence with the names in it, and those of the lines that introduce it."""

    text: str
    mentions: tuple[Mention, ...]
    inherited: tuple[Mention, ...]
    only_model: str

    def names(self, kind: str) -> list[str]:
        """Its own names of a kind, else those of what introduces it."""
        own = [mention.name for mention in self.mentions if mention.kind == kind]
        return list(dict.fromkeys(own or [mention.name for mention in self.inherited if mention.kind == kind]))

    @property
    def model(self) -> str | None:
        """The one model it speaks of; None where it names none or several."""
        names = self.names("model") or ([self.only_model] if self.only_model is not None else [])
        return names[0] if len(names) == 1 else None

    @property
    def benchmark(self) -> str | None:
        """The one benchmark it speaks of, the average where it names none; None where it names several."""
        names = self.names("benchmark")
        return AVERAGE if not names else names[0] if len(names) == 1 else None

    def method_before(self, place: int) -> str | None:
        """The last method named before a place, else the one that it inherits."""
        own = [mention for mention in self.mentions if mention.kind == "method" and mention.name != BASE]
        before = [mention.name for mention in own if mention.start < place]
        if own:
            return before[-1] if before else None
        inherited = [mention.name for mention in self.inherited if mention.kind == "method" and mention.name != BASE]
        return inherited[-1] if len(set(inherited)) == 1 else None


def claims_in(document: Document, names: Names) -> list[tuple[Claim, Place]]:
    """The claims of a document's text that a rule can read."""
    found: list[tuple[Claim, Place]] = []
    for line in document.lines:
        for sentence in _SENTENCE.split(line.text):
            context = _context(sentence, line, names)
            place = Place(document.name, line.number, sentence)
            found += [(claim, place) for claim in _claims(context, names)]
    ratios = tuple(claim for claim, _ in found if isinstance(claim, Ratio))
    return [
        (RatioRange(claim.low, claim.high, ratios) if isinstance(claim, RatioRange) else claim, place)
        for claim, place in found
    ]


def _context(sentence: str, line: Line, names: Names) -> _Context:
    inherited = tuple(mention for parent in line.parents for mention in names.mentions(parent))
    only = names.models[0] if len(names.models) == 1 else None if names.models else ""
    return _Context(sentence, tuple(names.mentions(sentence)), inherited, only)  # type: ignore[arg-type]


def _claims(context: _Context, names: Names) -> Iterator[Claim]:
    arrows = list(_ARROW.finditer(context.text))
    for arrow in arrows:
        yield from _arrow(arrow)
    if arrows:
        return
    gains = _gains(context.text)
    ratios = list(_ratios(context.text, gains))
    yield from ratios
    yield from _gain_claims(context, gains)
    yield from _values(context)
    yield from _pairs(context)
    yield from _everywhere(context, names)
    yield from _mixed(context, names)
    yield from (Best(number(match["score"])) for match in _BEST.finditer(context.text))


def _gains(text: str) -> list[tuple[int, Printed]]:
    """Signed numbers, and those that verbs such as `improves by` give a sign, with their places."""
    found = [(match.start(), _change(match["gain"], match["unit"])) for match in _GAIN.finditer(text)]
    for match in _BY.finditer(text):
        sign = "-" if _FALL.search(text[: match.start()]) else "+"
        found.append((match.start(), _change(sign + match["gain"], match["unit"])))
    return sorted(found, key=lambda entry: entry[0])


def _change(text: str, unit: str) -> Printed:
    """With a per cent sign it may be relative."""
    return replace(number(text), percent=unit == "%")


def _ratios(text: str, gains: Sequence[tuple[int, Printed]]) -> Iterator[Claim]:
    span = _TIMES_RANGE.search(text)
    if span:
        yield RatioRange(number(span["low"]), number(span["high"]), ())
        return
    times = _TIMES.findall(text)
    if len(times) == 1 and len(gains) == 2:
        first, second = (gain for _, gain in gains)
        yield Ratio(number(times[0]), first, second)


def _gain_claims(context: _Context, gains: Sequence[tuple[int, Printed]]) -> Iterator[Claim]:
    model, benchmark = context.model, context.benchmark
    if model is None or benchmark is None:
        return
    methods = [name for name in context.names("method") if name != BASE]
    against_base = re.search(r"\bover (?:the )?base\b", context.text, re.IGNORECASE)
    if len(gains) == 1 and len(methods) == 2 and not against_base:
        (_, gain), (first, second) = gains[0], methods
        if _FALL.search(context.text) and gain.value > 0:  # `A underperforms B (+2 points)` names B's lead
            first, second = second, first
        yield Gain(model, first, second, benchmark, gain)
        return
    for place, gain in gains:
        method = context.method_before(place)
        if method is not None:
            yield Gain(model, method, BASE, benchmark, gain)


def _values(context: _Context) -> Iterator[Claim]:
    model, benchmark = context.model, context.benchmark
    for match in _FROM_TO.finditer(context.text):
        method = context.method_before(match.start())
        if model is None or benchmark is None or method is None:
            continue
        yield Value(model, method, benchmark, number(match["new"]))
        if match["old"]:
            yield Value(model, BASE, benchmark, number(match["old"]))


def _pairs(context: _Context) -> Iterator[Claim]:
    """``A is worse than B on X (1.2 vs. 3.4) and Y (5.6 vs. 7.8)``."""
    methods = context.names("method")
    model = context.model
    if len(methods) != 2 or model is None:
        return
    first, second = methods
    for mention in context.mentions:
        match = _VERSUS.match(context.text, mention.end) if mention.kind == "benchmark" else None
        if match is None:
            continue
        yield Value(model, first, mention.name, number(match["ours"]))
        yield Value(model, second, mention.name, number(match["theirs"]))
        if _WORSE.search(context.text) or _BETTER.search(context.text):
            yield Order(model, first, second, mention.name, better=not _WORSE.search(context.text))


def _everywhere(context: _Context, names: Names) -> Iterator[Claim]:
    every = _ALL.search(context.text)
    verb = _BETTER.search(context.text)
    methods = [mention for mention in context.mentions if mention.kind == "method"]
    if every is None or verb is None or len(methods) < 2 or methods[0].start > verb.start():
        return
    others = tuple(dict.fromkeys(mention.name for mention in methods[1:] if mention.start > verb.start()))
    others = tuple(name for name in others if name != methods[0].name)
    models = tuple(context.names("model")) or names.models or ("",)
    benchmarks = names.benchmarks if every["benchmarks"] else (AVERAGE,)
    if others:
        yield Everywhere(methods[0].name, others, benchmarks, models)


def _mixed(context: _Context, names: Names) -> Iterator[Claim]:
    """``A outperforms B on M, but inconsistently across benchmarks``."""
    methods, model = context.names("method"), context.model
    if len(methods) != 2 or model is None or not _MIXED.search(context.text):
        return
    if bool(_BETTER.search(context.text)) != bool(_WORSE.search(context.text)):
        ahead, behind = methods if _BETTER.search(context.text) else reversed(methods)
        yield Mixed(ahead, behind, names.benchmarks, model)


def _arrow(match: re.Match[str]) -> Iterator[Claim]:
    """``2.84% → 7.80% (+4.96% absolute, +175% relative)``."""
    old, new = number(match["old"]), number(match["new"])
    if match["absolute"]:
        yield Change(old, new, number(match["absolute"]), relative=False)
    if match["relative"]:
        yield Change(old, new, number(match["relative"]), relative=True)
