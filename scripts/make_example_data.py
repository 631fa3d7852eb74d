"""Write the data of the example recipes with negatives: arithmetic stories of the demo's kind, right and wrong.

    python scripts/make_example_data.py

A function of nothing but the code; the files in recipes/examples/data/ are what it writes.
"""

from pathlib import Path

from dftune.demo.problems import generate, wrong_solutions
from dftune.demo.run import write_problems
from dftune.files import write_jsonl

FOLDER = Path(__file__).parents[1] / "recipes" / "examples" / "data"
NUM_TRAIN, NUM_TEST = 400, 100


def write(folder: Path) -> None:
    rows = []
    for one in generate(NUM_TRAIN, seed=1, split="train"):
        row = {"id": one.id, "problem": one.problem, "solution": one.solution, "answer": one.answer}
        rows.append({**row, "rejected": list(wrong_solutions(one, seed=0))})
    write_jsonl(folder / "arithmetic-negatives.jsonl", rows)
    write_problems(folder / "arithmetic-test.jsonl", generate(NUM_TEST, seed=1, split="test"))


if __name__ == "__main__":
    write(FOLDER)
