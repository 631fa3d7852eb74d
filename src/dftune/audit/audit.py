"""Every check on every table of a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dftune.audit.arithmetic import check_averages, check_changes
from dftune.audit.claim_file import read_claims
from dftune.audit.claims import check_claims
from dftune.audit.compare import check_bold, check_noise, check_repeats
from dftune.audit.findings import Finding, ordered
from dftune.audit.granularity import check_granularity, scores_of
from dftune.audit.names import Names
from dftune.audit.read import Document, read_document
from dftune.audit.sentences import claims_in


@dataclass(frozen=True)
class Options:
    """What a document does not say of itself.

    Attributes:
        samples: samples a question; empty: what the document says, else 1, 4, 8, 16, 32 and 64 are tried.
        questions: numbers of questions of benchmarks that are not known by name.
        claims: YAML file of further claims.
        text: whether sentences are checked.
        noise: whether differences within the noise are listed.
    """

    samples: tuple[int, ...] = ()
    questions: Mapping[str, int] = field(default_factory=dict)
    claims: Path | None = None
    text: bool = True
    noise: bool = True


def read(path: Path) -> Document:
    """A document with at least one table.

    Raises:
        ValueError: it cannot be read, or has no table.
        FileNotFoundError: there is no such file.
    """
    document = read_document(path)
    if not document.tables:
        raise ValueError(f"{path}: no table found. Tables are pipe tables (| a | b |) in text, or a .csv or .tsv file.")
    return document


def audit(document: Document, options: Options | None = None) -> list[Finding]:
    """Everything that does not fit, errors first.

    Args:
        document: from :func:`read`.
        options: what it does not say of itself.

    Raises:
        ValueError: the file of claims is not what it must be.
    """
    return ordered(list(_findings(document, options or Options())))


def _findings(document: Document, options: Options) -> Iterator[Finding]:
    for table in document.tables:
        yield from check_averages(table, document.name)
        yield from check_changes(table, document.name)
        yield from check_bold(table, document.name)
    yield from check_repeats(document)
    scores = list(scores_of(document, options.samples, options.questions))
    yield from check_granularity(scores, document.name)
    if options.noise:
        yield from check_noise(scores, document.name)
    names = Names.of(document)
    claims = claims_in(document, names) if options.text else []
    if options.claims is not None:
        claims += read_claims(options.claims, names, document.name)
    yield from check_claims(claims, document)
