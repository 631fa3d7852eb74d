"""How far a study is: counts, who works on what, what failed."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dftune.evaluate.summary import lay_out
from dftune.files import read_jsonl
from dftune.report.wording import duration, one_line, setting
from dftune.study.board import Board
from dftune.study.plan import Plan, Task
from dftune.study.select import Choice

_STAGES = {"prepare": "prepare data", "base": "base models", "tune": "learning rates", "run": "runs"}


def status(folder: Path) -> tuple[str, bool]:
    """A study as its folder shows it now.

    Returns:
        Text for a terminal, and whether every task has ended.

    Raises:
        ValueError: the folder holds no study.
    """
    plan, board = Plan.of_folder(folder), Board(folder)
    states = board.states()
    tasks = plan.tasks(states)
    left = [task for task in tasks if task.name not in states]
    at_work = [(task, holder) for task in left if (holder := board.claims.holder(task.name)) is not None]
    lines = [f"{plan.recipe.name}: {folder}", ""]
    rows: list[tuple[str, ...]] = [("stage", "done", "failed", "running", "waiting")]
    for kind, title in _STAGES.items():
        names = [task.name for task in tasks if task.kind == kind]
        running = sum(task.kind == kind for task, _ in at_work)
        ends = Counter(states[name].status for name in names if name in states)
        counts = (ends["done"], ends["failed"], running, len(names) - ends.total() - running)
        if names:
            rows.append((title, *map(str, counts)))
    lines += lay_out(rows, 1)
    for task, holder in at_work:
        lines.append(f"  {task.name}  {_progress(task)}  ({holder.host}, process {holder.pid})")
    choices = plan.choices(states)
    if plan.two_stages and choices is None:
        lines.append("  the runs with all seeds follow when the learning rates are chosen")
    lines += ["", *choice_lines(choices or ())] if plan.recipe.study.tunes else []
    failed = [(name, state.error) for name, state in states.items() if state.status == "failed"]
    lines += [f"  failed: {name}: {one_line(error, 300)}" for name, error in failed]
    return "\n".join(lines), not left and not (plan.two_stages and choices is None)


def _progress(task: Task) -> str:
    """Steps done, and when the training will end if it goes on like this."""
    events = task.recipe.output / "events.jsonl"
    if task.kind not in ("tune", "run") or not events.is_file():
        return "at work"
    rows = read_jsonl(events, partial_last_line=True)
    starts = [index for index, row in enumerate(rows) if row["kind"] == "start"]
    if not starts:
        return "starting"
    session = rows[starts[-1] :]
    total, steps = int(session[0]["num_steps"]), [row for row in session if row["kind"] == "train"]
    if not steps:
        return f"step 0 of {total}"
    done = int(steps[-1]["step"])
    if session[-1]["kind"] == "end" or done == total:
        return "evaluating"
    num = done - int(steps[0]["step"])
    rest = "" if num == 0 else f", {duration((total - done) * (steps[-1]['time'] - steps[0]['time']) / num)} left"
    return f"step {done} of {total}{rest}"


def choice_lines(choices: tuple[Choice, ...] | list[Choice]) -> Iterator[str]:
    """The chosen learning rates, and which of them ask for a wider grid."""
    if not choices:
        return
    rows = [("chosen", "learning rate", "of (value)")]
    notes = []
    for choice in choices:
        name = " ".join(part for part in choice.key if part)
        grid = ", ".join(
            f"{setting(rate)} ({'failed' if value is None else f'{value:.4g}'})" for rate, value in choice.values
        )
        rows.append((name, "none" if choice.lr is None else setting(choice.lr), grid))
        if choice.at_edge:
            notes.append(
                f"note: the best rate of {name} is the {choice.at_edge} of its grid; a better one may lie beyond."
            )
    yield from lay_out(rows, 3)
    yield from notes


def follow(status_of: Callable[[], tuple[str, bool]], *, every_s: float = 2.0) -> None:
    """Show a status, in place, until what it is about has ended.

    Args:
        status_of: gives the text, and whether it was the last.
        every_s: seconds between two.
    """
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    text, over = status_of()
    with Live(Text(text), auto_refresh=False) as live:
        while not over:
            time.sleep(every_s)
            text, over = status_of()
            live.update(Text(text), refresh=True)


def show(status_of: Callable[[Path], tuple[str, bool]], given: Sequence[str], what: str, *, once: bool) -> int:
    """The ``status`` verb of studies and of sweeps: print once, or on a terminal follow to the end.

    Args:
        status_of: gives the text of a folder, and whether it was the last.
        given: what stands behind the verb: one folder.
        what: ``study`` or ``sweep``.
        once: do not follow.

    Returns:
        The exit status.

    Raises:
        ValueError: not exactly one folder was given.
    """
    if len(given) != 1:
        raise ValueError(f"which {what}? `dftune {what} status FOLDER`.")
    folder = Path(given[0])
    if once or not sys.stdout.isatty():
        print(status_of(folder)[0])
    else:
        follow(lambda: status_of(folder))
    return 0
