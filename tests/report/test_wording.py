"""Numbers and hostile text as people read them."""

from __future__ import annotations

import pytest

from dftune.report.charts import Scale, linear_scale, log_scale, thin_out, tick_label
from dftune.report.markdown import grid, plain
from dftune.report.wording import duration, one_line, p_value, setting, signed, visible


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a\x1b[31mred", "a\\x1b[31mred"),
        ("bell\a nul\0 del\x7f", "bell\\x07 nul\\x00 del\\x7f"),
        ("\x9b31m", "\\x9b31m"),
        ("left\u202eright", "left\\u202eright"),
        ("lone \ud800 surrogate", "lone \\ud800 surrogate"),
        ("tag\U000e0041", "tag\\U000e0041"),
        ("line\nbreak\tand\r\nreturn", "line\nbreak\tand\nreturn"),
        ("over\rwrite", "over\\x0dwrite"),
        ("π ≈ 3,14 中文 👩\u200d🔬", "π ≈ 3,14 中文 👩\u200d🔬"),
    ],
)
def test_what_acts_on_a_terminal_or_on_reading_order_is_written_out(raw: str, shown: str) -> None:
    assert visible(raw) == shown


def test_one_line_cuts_and_flattens() -> None:
    assert one_line("a\n\n b" + "x" * 300, 10) == "a bxxxxxx…"


@pytest.mark.parametrize(("value", "shown"), [(0.12, "+12.0"), (-0.034, "−3.4"), (-0.0001, "0.0"), (0.0001, "0.0")])
def test_differences_carry_a_sign_unless_they_round_to_zero(value: float, shown: str) -> None:
    assert signed(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(0.0001, "0.0001"), (0.012, "0.012"), (0.5, "0.50")])
def test_p_values_show_the_digits_that_matter(value: float, shown: str) -> None:
    assert p_value(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.5, "0.5"), (1e-4, "1e-4"), (2.5e-5, "2.5e-5"), (0.01, "0.01"), (0.0, "0"), (16.0, "16"), (-0.003, "-3e-3")],
)
def test_numbers_of_recipes_are_written_as_in_recipes(value: float, shown: str) -> None:
    assert setting(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(59.6, "60 s"), (600, "10.0 min"), (7200, "2.0 h")])
def test_durations(value: float, shown: str) -> None:
    assert duration(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (1500, "1500"),
        (20_000, "20k"),
        (2e6, "2M"),
        (2e-5, "2e−5"),
        (2.5e-5, "2.5e−5"),
        (-0.5, "−0.5"),
    ],
)
def test_tick_labels(value: float, shown: str) -> None:
    assert tick_label(value) == shown


def test_labels_of_one_axis_are_written_in_one_way() -> None:
    assert [tick_label(value, 0.003) for value in (0, 0.001, 0.003)] == ["0", "0.001", "0.003"]
    assert [tick_label(value, 20_000) for value in (0, 5_000, 20_000)] == ["0", "5k", "20k"]


def test_a_linear_scale_ends_at_round_numbers_around_the_data() -> None:
    scale = linear_scale([0.13, 0.87])
    assert scale.ticks == pytest.approx((0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
    assert scale.share(0.5) == pytest.approx(0.5)


def test_a_scale_of_one_value_or_none_still_has_a_width() -> None:
    for scale in (linear_scale([1.0, 1.0]), linear_scale([0.0], zero=True), linear_scale([float("nan")])):
        assert scale.high > scale.low


def test_a_log_scale_spans_whole_decades_and_gives_each_the_same_room() -> None:
    scale = log_scale([3, 4000], low=1)
    assert (scale.low, scale.high) == pytest.approx((1, 10_000))
    assert [scale.share(10.0**power) for power in range(5)] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert isinstance(scale, Scale)


def test_a_long_curve_is_averaged_to_few_points_with_the_same_mean() -> None:
    curve = [(float(step), float(step % 7)) for step in range(4200)]
    thin = thin_out(curve, 100)
    assert len(thin) == 100
    assert sum(y for _, y in thin) / 100 == pytest.approx(sum(y for _, y in curve) / 4200)


def test_markdown_shows_text_as_it_is() -> None:
    assert (
        plain("a|b <img> [x](y) `c` *d* dynamic_ft _e_")
        == "a\\|b \\<img\\> \\[x\\](y) \\`c\\` \\*d\\* dynamic_ft \\_e\\_"
    )


def test_a_markdown_table_lines_up_and_numbers_stand_right() -> None:
    assert grid(["name", "x"], [["a", "1.0"], ["bcdef", "12.0"]]).split("\n") == [
        "| name  |    x |",
        "| ----- | ---: |",
        "| a     |  1.0 |",
        "| bcdef | 12.0 |",
    ]
