"""The grader beside Math-Verify on labelled pairs, and a million verdicts regraded.

`python benchmarks/grading.py PAIRS.jsonl [PAIRS.jsonl ...]` prints, for each file of labelled pairs (`gold`,
`prediction`, `kind`, `expected_equal`), agreement, false positives and negatives, and pairs a second of every grader;
each pair is given to one after the other in the same run. Math-Verify runs in a process of its own, with the reference
in a box.

`python benchmarks/grading.py --rows 1000000` writes that many completions to a temporary folder, regrades them with
`dftune grade` and prints its time and the largest memory of its processes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from dftune.evaluate.agreement import compare_graders, read_pairs

ANSWERS = (
    ("18", r"So she makes $\boxed{18}$ dollars a day."),
    (r"\frac{3}{4}", r"The probability is therefore $\frac{3}{4}$."),
    (r"\left( 3, \frac{\pi}{2} \right)", r"We find $(r,\theta) = \boxed{(3, \pi/2)}$."),
    (r"11\sqrt2", r"The length is \boxed{\sqrt{242}}."),
    ("x^2-5x+6", r"Expanding gives \boxed{(x-2)(x-3)}."),
    ("[-2,7]", r"Thus \boxed{-2 \le x \le 7}."),
    ("4", "He has 3 + 2 = <<3+2=5>>5 left.\n#### 5"),
    ("25\\%", "The answer is 0.25."),
)


def write_completions(path: Path, count: int) -> int:
    """`count` completions of 5,000 problems, with a paragraph of reasoning each; returns the size in bytes."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            target, ending = rng.choice(ANSWERS)
            reasoning = "We simplify step by step and keep track of every case. " * rng.randint(2, 12)
            row = {
                "id": f"p{index % 5000}",
                "sample": index // 5000,
                "target": target,
                "completion": reasoning + ending,
            }
            file.write(json.dumps(row) + "\n")
    return path.stat().st_size


def peak_of_tree(pid: int, stop: threading.Event, peaks: dict[int, int]) -> None:
    """Record the largest resident memory of a process and of each below it, in bytes, until told to stop."""
    while not stop.is_set():
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                status = (folder / "status").read_text()
            except OSError:
                continue
            fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
            process, parent = int(folder.name), int(fields["PPid"])
            if pid in (process, parent) and "VmHWM" in fields:
                peaks[process] = int(fields["VmHWM"].split()[0]) * 1024
        stop.wait(0.5)


def regrade(count: int, workers: int) -> None:
    """Time `dftune grade` on a file of `count` completions."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "completions.jsonl"
        size = write_completions(path, count)
        command = [sys.executable, "-m", "dftune", "grade", str(path), "--workers", str(workers)]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        stop, peaks = threading.Event(), {}
        watcher = threading.Thread(target=peak_of_tree, args=(process.pid, stop, peaks))
        watcher.start()
        out = process.communicate()[0]
        seconds = time.perf_counter() - start
        stop.set()
        watcher.join()
        own, workers_ = peaks.pop(process.pid), sorted(peaks.values())
        used = os.times()
        print(out)
        print(
            f"{count:,} rows ({size / 1e6:,.0f} MB), {workers} workers: {seconds:.0f} s, "
            f"{count / seconds:,.0f} rows/s; "
            f"processor {used.children_user + used.children_system:.0f} s; largest memory {own / 1e6:.0f} MB, "
            f"of a worker {max(workers_, default=0) / 1e6:.0f} MB; exit {process.returncode}"
        )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", type=Path)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    for path in args.pairs:
        print(f"{path.name}: {compare_graders(list(read_pairs(path)), show=0).text()}")
    if args.rows:
        regrade(args.rows, args.workers)


if __name__ == "__main__":
    main()
