"""Claims in a YAML file, for sentences that no rule reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dftune import config
from dftune.audit.claims import Claim, Everywhere, Gain, Order, Place, Times, Value
from dftune.audit.names import AVERAGE, Names
from dftune.audit.numbers import Printed, number
from dftune.audit.table import BASE
from dftune.config import Config


class ClaimConfig(Config):
    """One claim: what is said of a method on a model and a benchmark."""

    text: str = ""
    """The sentence, for the finding."""
    method: str
    """Who is spoken of, as the table has it."""
    over: str | tuple[str, ...] = BASE
    """Who it is held against."""
    model: str = ""
    """Of which model; may be left out where the tables name but one."""
    benchmark: str = AVERAGE
    """Name of a column; average is the column of averages."""
    value: str | None = None
    """It scores this. Numbers are given as text ("7.50"), since the digits say how it is rounded."""
    gain: str | None = None
    """It scores so many points more than `over`."""
    times: str | None = None
    """Its gain over the base is so many times that of `over`."""
    better: bool | None = None
    """true: it scores more than `over`; false: less."""
    everywhere: bool = False
    """better, on every benchmark of every model."""


class ClaimsConfig(Config):
    """A file of claims."""

    claims: tuple[ClaimConfig, ...]
    """The claims."""


def read_claims(path: Path, names: Names, source: str) -> Iterator[tuple[Claim, Place]]:
    """The claims of a file.

    Args:
        path: YAML.
        names: of the tables that they speak of.
        source: the audited file, for the findings.

    Raises:
        RecipeError: a key is unknown, missing, or holds something else.
        ValueError: a number is none.
        FileNotFoundError: there is no such file.
    """
    for place_in_file, claim in enumerate(config.load(path, ClaimsConfig).claims, 1):
        text = claim.text or f"claim {place_in_file} of {path.name}"
        for found in _claims(claim, names):
            yield found, Place(source, 0, text)


def _claims(claim: ClaimConfig, names: Names) -> Iterator[Claim]:
    others = (claim.over,) if isinstance(claim.over, str) else claim.over
    model = claim.model or (names.models[0] if len(names.models) == 1 else "")
    if claim.everywhere:
        yield Everywhere(claim.method, others, names.benchmarks, (model,) if model else names.models or ("",))
    if claim.value is not None:
        yield Value(model, claim.method, claim.benchmark, _number(claim.value))
    for over in others:
        if claim.gain is not None:
            yield Gain(model, claim.method, over, claim.benchmark, _number(claim.gain))
        if claim.better is not None:
            yield Order(model, claim.method, over, claim.benchmark, claim.better)
        if claim.times is not None:
            yield Times(model, claim.method, over, claim.benchmark, _number(claim.times))


def _number(text: str) -> Printed:
    try:
        return number(text.strip())
    except ArithmeticError:
        raise ValueError(f"a claim has the number {text!r}; expected one such as 15.66 or +1.4.") from None
