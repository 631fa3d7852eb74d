r"""Write MATH as thoughts and answers, which recipes/papers/think-answer-*.yaml train on.

    python scripts/make_think_answer_data.py [SOURCE] [--output FILE]

SOURCE is a file, a folder or a dataset id with the columns problem and solution, by default the training split of
DigitalLearningGmbH/MATH-lighteval. The solution becomes the thought, what its last \boxed{} holds the answer:

    SOLUTION
    </think> <answer>42</answer>

as in github.com/nirmalpratheep/Alignment_and_Reasoning_RL. Rows without a box are left out and counted.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from dftune.data.config import DataConfig
from dftune.data.examples import last_boxed
from dftune.data.sources import read_rows
from dftune.files import write_jsonl


def think_answer(source: str) -> Iterator[dict[str, str]]:
    for _, row in read_rows(DataConfig(source=source, prepared=Path("unused"))):
        answer = last_boxed(row["solution"])
        if answer is not None:
            solution = f"{row['solution'].strip()}\n</think> <answer>{answer}</answer>"
            yield {"problem": row["problem"], "solution": solution, "answer": answer}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="DigitalLearningGmbH/MATH-lighteval")
    parser.add_argument("--output", type=Path, default=Path("generated/math-think-answer.jsonl"))
    arguments = parser.parse_args()
    rows = list(think_answer(arguments.source))
    write_jsonl(arguments.output, rows)
    print(f"{arguments.output}: {len(rows):,} rows")
