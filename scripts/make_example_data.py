"""Write the data of the example recipes and of the study: arithmetic stories of the demo's kind, right and wrong.

    python scripts/make_example_data.py

A function of nothing but the code; the files in recipes/examples/data/ and recipes/studies/data/ are what it writes.
"""

from pathlib import Path

from dftune.demo.problems import corrupt, generate, wrong_solutions
from dftune.demo.run import write_problems
from dftune.files import write_jsonl

RECIPES = Path(__file__).parents[1] / "recipes"
NUM_TRAIN, NUM_TEST = 400, 100
NUM_STUDY_TRAIN, NUM_STUDY_VALIDATION, NUM_STUDY_TEST = 1000, 100, 300


def write(folder: Path) -> None:
    rows = []
    for one in generate(NUM_TRAIN, seed=1, split="train"):
        row = {"id": one.id, "problem": one.problem, "solution": one.solution, "answer": one.answer}
        rows.append({**row, "rejected": list(wrong_solutions(one, seed=0))})
    write_jsonl(folder / "arithmetic-negatives.jsonl", rows)
    write_problems(folder / "arithmetic-test.jsonl", generate(NUM_TEST, seed=1, split="test"))


def write_study(folder: Path) -> None:
    """Demonstrations that are all right, the same with 30 % wrong, and problems to choose by and to test on."""
    right = generate(NUM_STUDY_TRAIN, seed=2, split="train")
    write_problems(folder / "right.jsonl", right)
    write_problems(folder / "wrong-30.jsonl", corrupt(right, share=0.3, seed=0))
    write_problems(folder / "choose.jsonl", generate(NUM_STUDY_VALIDATION, seed=2, split="validation"))
    write_problems(folder / "stories.jsonl", generate(NUM_STUDY_TEST, seed=2, split="test"))


if __name__ == "__main__":
    write(RECIPES / "examples" / "data")
    write_study(RECIPES / "studies" / "data")
