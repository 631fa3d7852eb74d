"""The list of objectives, for people and for programs."""

import argparse
import json

import pytest

from dftune.commands import objectives
from dftune.objectives import OBJECTIVES


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    objectives.add_arguments(parser)
    return objectives.run(parser.parse_args(arguments))


def test_every_objective_is_listed_with_formula_unit_needs_defaults_and_paper(capsys):
    assert run("--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(OBJECTIVES)
    for row in rows.values():
        assert row["formula"]
        assert row["summary"]
        assert row["paper"].startswith("arXiv:") or row["name"] == "sft"
        assert row["unit"] in ("token", "sequence", "group")
    assert rows["power"]["options"]["alpha"] == {"default": 0.5, "allowed": ">= 0, <= 100"}
    assert rows["dpo"]["options"]["loss"]["allowed"] == "sigmoid | ipo | hinge | robust"
    assert rows["dpo"]["needs"] == ["groups", "ref_logps"]
    assert rows["discriminative_ft"]["stateful"] is True
    assert rows["discriminative_ft"]["options"]["gamma"]["default"] == 0.85
    assert rows["asft"]["needs_follow_options"] is True
    assert rows["iw_sft"]["needs_follow_options"] is False


def test_the_table_shows_the_same_to_people(capsys):
    run()
    shown = capsys.readouterr().out
    for name, entry in OBJECTIVES.items():
        assert f"{name}   {entry.formula}" in shown
        assert entry.paper in shown
    assert "unit: group; adds up over: group; needs: groups, ref_logps with these options; keeps a state" in shown
    assert "label_smoothing: 0.0" in shown
    assert "floor: null" in shown
    assert max(map(len, shown.splitlines())) <= 120


def test_names_choose_what_is_shown_and_an_unknown_one_is_answered_with_the_nearest(capsys):
    run("talr", "--json")
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["talr"]
    with pytest.raises(ValueError, match="did you mean talr"):
        run("tarl")


def test_an_objective_of_ones_own_is_described_too(tmp_path, capsys):
    path = tmp_path / "own.py"
    path.write_text(
        "from dftune.objectives import LossSum, objective\n"
        "@objective(unit='token', separable='token', formula='-p')\n"
        "def linear(tokens):\n"
        "    'Expected number of tokens right.'\n"
        "    return LossSum(-tokens.logps.exp().sum())\n"
    )
    run(f"{path}:linear")
    shown = capsys.readouterr().out
    assert ":linear   -p\n  Expected number of tokens right.\n" in shown
