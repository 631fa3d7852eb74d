"""The report as one HTML file: no network, no executable content but its own hashed script, model text as text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dftune.evaluate.classify import CATEGORIES
from dftune.report import wording
from dftune.report.charts import swatch
from dftune.report.cost import build_cost, knows_energy
from dftune.report.figures import build_sections
from dftune.report.learning import build_learning
from dftune.report.method import Method
from dftune.report.published import build_published
from dftune.report.samples import build_browser
from dftune.report.tables import ResultTable
from dftune.report.tuning import Tuning, grid_of

NUM_STATIC = 6
"""Questions that can be read without a script."""

_FOLDER = Path(__file__).parent


def render_html(
    title: str,
    verdict: str,
    table: ResultTable,
    notes: Sequence[str],
    method: Method,
    *,
    tuning: Tuning | None = None,
    swept: ResultTable | None = None,
) -> str:
    """The whole file; ``swept``, where it is another table, is for the charts over learning rate and batch size."""
    browser, cost = build_browser(table), build_cost(table)
    return (
        _environment()
        .get_template("template.html")
        .render(
            title=title,
            verdict=verdict,
            table=table,
            notes=notes,
            sections=build_sections(table, swept or table),
            tuning=tuning,
            browser=browser,
            browser_json=Markup(browser.as_json()),
            static_questions=browser.questions[:NUM_STATIC],
            outcomes=CATEGORIES,
            method=method,
            published=build_published(table),
            learning=build_learning(table),
            cost=cost,
            knows_energy=knows_energy(cost),
            swatch=swatch,
            **_assets("browser.js"),
        )
    )


def render_pages() -> str:
    """The page that asks a server for all completions, some at a time."""
    return _environment().get_template("completions.html").render(**_assets("pages.js"))


def _assets(script: str) -> dict[str, str]:
    text = "".join((_FOLDER / name).read_text(encoding="utf-8") for name in ("cards.js", script))
    style = Markup((_FOLDER / "style.css").read_text(encoding="utf-8"))
    return {"style": style, "script": Markup(text), "script_hash": script_hash(text)}


def script_hash(script: str) -> str:
    """What a Content-Security-Policy calls this script: base64 of its SHA-256."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (
        *(wording.percent, wording.signed, wording.interval, wording.p_value, wording.detectable, wording.doubt),
        *(wording.count, wording.plural, grid_of),
    )
    environment.filters |= {function.__name__: function for function in filters}
    return environment


def _shown(value: Any) -> Any:
    """Whatever a template prints: our own markup as it is, anything else without escapes and reordering marks."""
    return value if isinstance(value, Markup) else wording.visible(str(value))
