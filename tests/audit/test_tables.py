"""Small tables with planted mistakes, and right ones that must raise no alarm."""

import json
import random
import subprocess
import sys
from fractions import Fraction

import pytest

from dftune.audit import Options, audit, read
from dftune.audit.granularity import rounded_sums
from dftune.audit.numbers import parse, show
from dftune.evaluate.named import NAMED

RIGHT = """\
# Results

Average@4 accuracy.

| Model | Method | MATH-500 | AMC23 | Avg. | Gain |
|---|---|---|---|---|---|
| Small | Base | 20.05 | 10.63 | 15.34 | |
|  | SFT | 31.20 | 15.00 | 23.10 | |
|  | **Ours** | **44.75** | **21.88** | **33.32** | |
| Large | Base | 40.00 | 25.00 | 32.50 | |
|  | SFT | 41.35 | **26.25** | 33.80 | |
|  | **Ours** | **52.10** | 25.63 | **38.87** | |

- **Small**: Ours achieves +17.98 points, 2.3x larger than SFT's +7.76
- **Large on AMC23**:
  - SFT yields an improvement of 1.25 points
  - Ours improves from 25.00 to 25.63 (+0.63 points)
- Ours is worse than SFT for Large on AMC23 (25.63 vs. 26.25).
- Ours outperforms SFT on all models. Ours outperforms SFT on nearly all benchmarks.
- Ours has the best overall score (38.87 average).
- Accuracy rose: 20.05% → 44.75% (+24.70% absolute, +123.2% relative).
"""


def write(tmp_path, text, name="table.md"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def check(tmp_path, text, name="table.md", **options):
    found = audit(read(write(tmp_path, text, name)), Options(**options))
    return [one for one in found if one.severity != "note"]


def test_a_right_table_with_right_sentences_raises_no_alarm(tmp_path):
    assert check(tmp_path, RIGHT) == []


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("| 23.10 |", "| 23.60 |", ("average", "23.60", "23.10")),
        ("20.05 | 10.63", "20.05 | 10.60", ("granularity", "10.60", "10.00 or 10.63")),
        ("41.35 | **26.25**", "**41.35** | **26.25**", ("bold", "41.35", "52.10")),
        ("2.3x larger", "3.2x larger", ("claim", "3.2x", "2.32x")),
        ("+17.98", "+17.89", ("claim", "+17.89", "+17.98")),
        ("of 1.25 points", "of 2.15 points", ("claim", "+2.15", "+1.25")),
        ("from 25.00 to", "from 20.05 to", ("claim", "20.05", "25.00")),
        ("(25.63 vs. 26.25)", "(25.63 vs. 15.00)", ("claim", "15.00", "26.25")),
        ("is worse than", "is better than", ("claim", "better", "not better")),
        ("on nearly all benchmarks", "on all benchmarks", ("claim", "all", "3 of 4")),
        ("(38.87 average)", "(33.32 average)", ("claim", "33.32", "38.87")),
        ("+123.2% relative", "+132.2% relative", ("claim", "+132.2", "+123.2")),
    ],
)
def test_a_planted_mistake_is_found(tmp_path, old, new, finding):
    assert RIGHT.count(old) == 1
    found = check(tmp_path, RIGHT.replace(old, new))
    assert finding in {(one.check, one.printed, one.recomputed) for one in found}


@pytest.mark.parametrize(
    ("scores", "noted"),
    [((5, 5, 5, 5, 0), ["better on 4 of 5"]), ((5, 5, 5, 0, 0), []), ((5, 5, 5, 5, 5), ["better on 5 of 5"])],
)
def test_a_lead_that_is_called_inconsistent_is_counted(tmp_path, scores, noted):
    head = "| method | a | b | c | d | e |\n|---|---|---|---|---|---|\n"
    rows = f"| Ours | {' | '.join(f'{one}.0' for one in scores)} |\n| SFT | 1.0 | 1.0 | 1.0 | 1.0 | 1.0 |\n\n"
    for sentence in (
        "Ours outperforms SFT, but this is inconsistent across datasets.",
        "SFT underperforms Ours inconsistently across the benchmarks.",
    ):
        found = audit(read(write(tmp_path, head + rows + sentence + "\n")))
        assert [(one.severity, one.recomputed) for one in found if one.check == "claim"] == [
            ("note", one) for one in noted
        ]


def test_the_last_digit_of_a_mean_may_come_from_unrounded_cells(tmp_path):
    table = "| method | a | b | average |\n|---|---|---|---|\n| x | 1.24 | 1.24 | {} |\n"
    for possible in ("1.24", "1.25", "1.23"):  # two cells in [1.235, 1.245]
        assert check(tmp_path, table.format(possible)) == []
    assert [one.recomputed for one in check(tmp_path, table.format("1.26"))] == ["1.24"]


def test_columns_that_are_no_scores_do_not_disturb_a_mean(tmp_path):
    table = "| method | steps | a | b | avg | c | d | mean |\n|---|---|---|---|---|---|---|---|\n"
    assert check(tmp_path, table + "| x | 900 | 1.0 | 2.0 | 1.5 | 3.0 | 5.0 | 4.0 |\n") == []
    (found,) = check(tmp_path, table + "| x | 900 | 1.0 | 2.0 | 1.5 | 3.0 | 5.0 | 4.4 |\n")
    assert (found.printed, found.recomputed) == ("4.4", "4.0")
    table = "| method | avg | a | b |\n|---|---|---|---|\n| x | 1.5 | 1.0 | 2.0 |\n"
    assert check(tmp_path, table) == []


def test_an_average_row_is_recomputed_from_the_rows_above(tmp_path):
    table = "| task | a | b |\n|---|---|---|\n| one | 10.0 | 20.0 |\n| two | 20.0 | 40.0 |\n| Average | 15.0 | 31.0 |\n"
    (found,) = check(tmp_path, table)
    assert (found.printed, found.recomputed, found.line) == ("31.0", "30.0", 5)


def test_a_row_of_gains_and_gains_beside_scores_are_recomputed(tmp_path):
    rows = "| method | a | b |\n|---|---|---|\n| base | 10.0 | 20.0 |\n| ours | 12.5 (+2.5) | 19.0 (-1.5) |\n"
    rows += "| Δ | +2.5 | +1.0 |\n"
    found = check(tmp_path, rows)
    assert [(one.line, one.printed, one.recomputed) for one in found] == [(4, "-1.5", "-1.0")]
    rows = rows.replace("+1.0", "+3.0").replace("-1.5", "-1.0")
    assert [(one.line, one.printed, one.recomputed) for one in check(tmp_path, rows)] == [(5, "+3.0", "-1.0")]


def test_a_column_of_changes_takes_counts_units_and_per_cent(tmp_path):
    rows = "| metric | before | after | Change |\n|---|---|---|---|\n"
    rows += "| accuracy | 2.84% | 7.80% | +4.96% |\n| right | 142/5000 | 390/5000 | +248 |\n"
    rows += "| length | 279.0 tokens | 274.4 tokens | -4.6 tokens |\n| speed | 10.0 | 15.0 | +50% |\n"
    assert check(tmp_path, rows) == []
    assert [one.recomputed for one in check(tmp_path, rows.replace("+248", "+284"))] == ["+248"]


@pytest.mark.parametrize("name", ["math500", "minerva_math", "aime24", "amc23", "gsm8k"])
@pytest.mark.parametrize("samples", [1, 16])
def test_every_score_that_can_be_measured_is_possible(tmp_path, name, samples):
    size = NAMED[name].sizes[0]
    generator = random.Random(f"{name} {samples}")
    counts = [0, 1, size * samples, *(generator.randint(0, size * samples) for _ in range(40))]
    for decimals, form in ((2, "{:.2f}"), (1, "{:.1f}"), (4, "{:.4f}")):
        scale = 1 if decimals == 4 else 100
        rows = [f"| m{place} | {form.format(scale * count / (size * samples))} |" for place, count in enumerate(counts)]
        table = f"| method | {name} |\n|---|---|\n" + "\n".join(rows) + "\n"
        assert check(tmp_path, table, samples=(samples,)) == []


def test_one_right_answer_more_or_less_is_the_nearest_possible_score(tmp_path):
    (found,) = check(tmp_path, "| method | AIME24 |\n|---|---|\n| x | 45.0 |\n", samples=(1,))
    assert (found.printed, found.recomputed) == ("45.0", "43.3 or 46.7")  # 13 and 14 of 30
    assert check(tmp_path, "| method | AIME24 |\n|---|---|\n| x | 43.3 |\n| y | 46.7 |\n", samples=(1,)) == []


def test_without_a_number_of_samples_usual_ones_are_tried(tmp_path):
    table = "| method | AMC23 |\n|---|---|\n| x | 42.8 |\n"
    assert check(tmp_path, table) == []  # 42.81 = 137 of 320
    assert check(tmp_path, "Greedy decoding.\n\n" + table)[0].recomputed == "42.5 or 45.0"


def test_a_benchmark_that_is_not_known_can_be_given(tmp_path):
    table = "| method | HMMT |\n|---|---|\n| x | 45.0 |\n"
    assert check(tmp_path, table) == []
    assert check(tmp_path, table, questions={"hmmt": 30}, samples=(1,))[0].check == "granularity"


def test_sums_of_rounded_accuracies_are_those_of_a_slow_count():
    # 3 questions: 0, 33.3, 66.7 and 100.0 per cent; two samples
    tenths = [0, 333, 667, 1000]
    expected = {one + other for one in tenths for other in tenths}
    sums = rounded_sums(3, 2)
    assert {bit for bit in range(3000) if sums >> bit & 1} == expected


def test_a_small_number_is_bold_where_small_is_good(tmp_path):
    table = "| method | perplexity | accuracy |\n|---|---|---|\n| a | **3.1** | 10.0 |\n| b | 4.5 | **12.0** |\n"
    assert check(tmp_path, table) == []


def test_one_name_with_two_scores_is_a_warning(tmp_path):
    table = "| Model | Method | AMC23 |\n|---|---|---|\n| S | SFT | {} |\n\n"
    found = check(tmp_path, table.format("25.0") + table.format("27.5"))
    assert [(one.severity, one.check, one.printed, one.recomputed) for one in found] == [
        ("warning", "repeat", "27.5", "25.0")
    ]
    assert check(tmp_path, table.format("25.0") * 2) == []


def test_a_gain_in_per_cent_may_be_relative_and_one_in_points_may_not(tmp_path):
    table = "| Model | Method | AMC23 |\n|---|---|---|\n| S | SFT | 20.0 |\n| S | New | 25.0 |\n\n"
    for right in ("by 25%", "by 5 points", "(+5.0%)"):
        assert check(tmp_path, f"{table}New outperforms SFT on AMC23 {right}.\n") == []
    (found,) = check(tmp_path, f"{table}New outperforms SFT on AMC23 by 25 points.\n")
    assert found.recomputed == "+5.0"
    (found,) = check(tmp_path, f"{table}SFT underperforms New on AMC23 by 3 points.\n")
    assert found.recomputed == "-5.0"


def test_what_30_questions_cannot_tell_is_said(tmp_path):
    table = "| method | AIME24 | MATH |\n|---|---|---|\n| a | 40.0 | 40.0 |\n| b | 50.0 | 50.0 |\n"
    notes = [one for one in audit(read(write(tmp_path, table))) if one.check == "noise"]
    assert [one.where for one in notes] == ["table 1, AIME24"]  # 12 against 15 of 30; 2,000 against 2,500 of 5,000


@pytest.mark.parametrize(("name", "mark"), [("table.csv", ","), ("table.tsv", "\t")])
def test_separated_values_are_read(tmp_path, name, mark):
    rows = [["method", "a", "b", "avg"], ["x", "1.0", "2.0", "1.5"], ["y", "1.0", "2.0", "2.5"]]
    (found,) = check(tmp_path, "\n".join(mark.join(row) for row in rows), name)
    assert (found.line, found.printed, found.recomputed) == (3, "2.5", "1.5")


def test_tables_inside_code_fences_are_not_read(tmp_path):
    with pytest.raises(ValueError, match="no table found"):
        read(write(tmp_path, "```\n| method | a |\n|---|---|\n| x | 1 |\n```\n"))


def test_claims_in_a_file_are_checked(tmp_path):
    claims = """\
claims:
  - {method: Ours, model: Small, times: "2.3", over: SFT}
  - {text: twice as good, method: Ours, model: Small, times: "2.0", over: SFT}
  - {method: Ours, model: Large, benchmark: AMC23, better: true, over: SFT}
  - {method: SFT, model: Large, benchmark: AMC23, gain: "+1.25"}
  - {method: SFT, model: Large, benchmark: AMC23, value: "26.52"}
  - {method: Ours, over: [Base, SFT], everywhere: true}
"""
    found = check(tmp_path, RIGHT, claims=write(tmp_path, claims, "claims.yaml"))
    assert [(one.printed, one.recomputed) for one in found] == [
        ("2.0x", "2.32x"),
        ("better", "not better"),
        ("26.52", "26.25"),
        ("all", "7 of 8"),
    ]
    with pytest.raises(ValueError, match="methods: unknown key"):
        check(tmp_path, RIGHT, claims=write(tmp_path, "claims:\n  - {methods: a, method: b}\n", "claims.yaml"))


@pytest.mark.parametrize(
    ("text", "value", "decimals"),
    [
        ("**64.89**", "64.89", 2),
        ("−0.63", "-0.63", 2),
        ("12.3 ± 0.4", "12.3", 1),
        ("1,319", "1319", 0),
        (".5%", "0.5", 1),
    ],
)
def test_numbers_are_read_as_they_are_printed(text, value, decimals):
    printed = parse(text)
    assert (str(printed.value), printed.decimals) == (value, decimals)


@pytest.mark.parametrize("text", ["", "--", "7B", "1st", "n/a", "Qwen-7B", "5.9×", "1 2", "7B model", "2024-01-02"])
def test_what_is_no_number_is_none(text):
    assert parse(text) is None


def test_halves_are_rounded_away_from_zero():
    assert show(Fraction(5, 1000), 2) == "0.01"
    assert show(Fraction(-5, 1000), 2, signed=True) == "-0.01"
    assert show(Fraction(1, 1000), 2, signed=True) == "+0.00"


def test_the_command_lists_or_prints_json_and_exits_with_1_for_an_error(tmp_path):
    right, wrong = write(tmp_path, RIGHT), write(tmp_path, RIGHT.replace("| 23.10 |", "| 23.60 |"), "wrong.md")
    command = [sys.executable, "-m", "dftune", "audit"]
    done = subprocess.run([*command, str(right)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith("0 errors, 0 warnings")
    done = subprocess.run(
        [*command, str(right), str(wrong), "--json", "-"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    first = json.loads(done.stdout)["findings"][0]
    assert (first["severity"], first["check"], first["source"], first["line"]) == ("error", "average", "wrong.md", 8)
    done = subprocess.run([*command, str(right), "--questions", "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "expected NAME=N" in done.stderr


def test_the_audit_imports_no_torch():
    heavy = "{'torch', 'transformers', 'datasets'}"
    code = f"import sys, dftune.audit; sys.exit(', '.join({heavy} & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
