"""What a watcher costs training: the same run alone, with a watcher on another core, and with one on its own core.

    python benchmarks/watch.py --rounds 3

Every run is `dftune train` on the demo's model, bound to one core (taskset), and every watcher `dftune watch` bound to
another. Wall time is that between the first and the last event of training; processor time is that of the whole
training process. The ways take turns, so that what else the machine does meets all of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from demo_recipe import write_recipe

WAYS = ("alone", "watcher on another core", "watcher on the same core")


def write_inputs(folder: Path, num_train: int, num_test: int) -> Path:
    from dftune.demo.problems import generate
    from dftune.demo.run import write_problems

    problems = folder / "arithmetic.jsonl"
    write_problems(problems, generate(num_test, seed=0, split="test"))
    return write_recipe(
        folder,
        num_train + 40,
        data={"validation": 40},
        train={"epochs": 1, "batch_size": 32, "checkpoint_every": 5, "device": "cpu", "threads": 1},
        evaluate={"benchmarks": [str(problems)], "max_tokens": 64},
    )


def bound(core: int, *arguments: str) -> list[str]:
    return ["taskset", "-c", str(core), sys.executable, "-m", "dftune", *arguments]


def train_once(recipe: Path, way: str, cores: tuple[int, int], nice: int) -> dict[str, float]:
    """Wall and processor seconds of training, and how many checkpoints were evaluated while it went on."""
    from dftune.files import read_jsonl

    run = recipe.parent / "run"
    shutil.rmtree(run, ignore_errors=True)
    watcher = None
    if way != WAYS[0]:
        core = cores[1] if way == WAYS[1] else cores[0]
        command = bound(core, "watch", str(run), "--threads", "1", "--poll-s", "0.5", "--nice", str(nice))
        watcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert watcher.stderr is not None
        watcher.stderr.readline()  # it waits for the run
        time.sleep(10)  # for its imports
    training = subprocess.Popen(
        bound(cores[0], "train", str(recipe), "--no-evaluate"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(training.pid, 0)
    ended = time.time()
    if watcher is not None:
        watcher.communicate()
    if status != 0:
        raise SystemExit(f"training ended with status {status}")
    rows = read_jsonl(run / "events.jsonl")
    marks = [row["time"] for row in rows if row["kind"] in ("start", "end")]
    evaluated = [row["time"] for row in rows if row["kind"] == "evaluation"]
    return {
        "wall_s": marks[-1] - marks[0],
        "cpu_s": used.ru_utime + used.ru_stime,
        "evaluated": len(evaluated),
        "during": sum(moment <= ended for moment in evaluated),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=960)
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--nice", type=int, default=19, help="of the watcher")
    parser.add_argument("--train-core", type=int, default=0)
    parser.add_argument("--watch-core", type=int, default=1)
    args = parser.parse_args()
    missing = {args.train_core, args.watch_core} - os.sched_getaffinity(0)
    if missing or args.train_core == args.watch_core:
        parser.error(f"two different cores are wanted, and this process may use {sorted(os.sched_getaffinity(0))}")
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="dftune-watch-") as folder:
        recipe = write_inputs(Path(folder), args.examples, args.problems)
        subprocess.run(bound(args.train_core, "prepare", str(recipe)), check=True, capture_output=True)
        for number in range(args.rounds):
            for way in WAYS:
                one = train_once(recipe, way, (args.train_core, args.watch_core), args.nice)
                found[way].append(one)
                print(f"round {number + 1}, {way}: {one}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    print("| training | wall s | of alone | CPU s | of alone | evaluated (while training) |")
    print("|---|---:|---:|---:|---:|---:|")
    alone = {key: statistics.median(one[key] for one in found[WAYS[0]]) for key in ("wall_s", "cpu_s")}
    for way, runs in found.items():
        wall, cpu = (statistics.median(one[key] for one in runs) for key in ("wall_s", "cpu_s"))
        counts = f"{runs[-1]['evaluated']:.0f} ({runs[-1]['during']:.0f})"
        print(
            f"| {way} | {wall:.1f} | {wall / alone['wall_s']:.3f} | {cpu:.1f} | {cpu / alone['cpu_s']:.3f} | {counts} |"
        )


if __name__ == "__main__":
    main()
