"""The result files of AlpacaEval: outputs are appended as they are finished; scores come later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dftune.evaluate.results import check_same
from dftune.files import append_jsonl, read_json, read_jsonl, write_json, write_jsonl

Row = dict[str, Any]


class Outputs:
    """``alpaca_eval.PROTOCOL.json`` and ``.jsonl``. Rows are appended, so a kill loses at most the last line."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Begin, or take up what a run with the same settings left.

        Args:
            path: the file of settings.
            settings: what the outputs depend on.
            overwrite: throw away what is there.

        Raises:
            ValueError: the files there were made with other settings, or hold rows without settings.
        """
        self.path, self.rows_path = path, path.with_suffix(".jsonl")
        if overwrite:
            self.rows_path.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        before = read_json(path) if path.is_file() else None
        if before is None and self.rows_path.is_file():
            raise ValueError(f"{self.rows_path} is there without {path.name}. Move it away, or use --overwrite.")
        if before is not None:
            check_same(path, {key: before.get(key) for key in settings}, settings)
        self.settings: dict[str, Any] = {**settings, "seconds": 0.0, **(before or {})}
        self.rows: dict[str, Row] = {}
        if self.rows_path.is_file():
            self.rows = {row["id"]: row for row in read_jsonl(self.rows_path, partial_last_line=True)}
        write_json(path, self.settings)

    def append(self, rows: Sequence[Row]) -> None:
        """Add outputs."""
        append_jsonl(self.rows_path, rows)
        self.rows.update({row["id"]: row for row in rows})

    def replace(self, rows: Sequence[Row], judged: Mapping[str, Any] | None = None) -> None:
        """Write all rows anew, in this order, then what is said of the judge where that is given."""
        self.rows = {row["id"]: row for row in rows}
        write_jsonl(self.rows_path, rows)
        if judged is not None:
            self.settings = {**{key: value for key, value in self.settings.items() if key != "judge"}, **judged}
        write_json(self.path, self.settings)
