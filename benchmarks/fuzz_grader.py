"""Fuzz the grader with coverage guidance: `python benchmarks/fuzz_grader.py -max_total_time=600` (needs `atheris`).

Every input is cut into fragments of LaTeX, prose and raw bytes, once as the reference and once as the completion. Wrong
are: an exception, more than two seconds of processor time, a verdict that changes when asked again, and a reference
that can be read and is not its own answer. A finding is printed and saved by the fuzzer as `crash-...`.
"""

from __future__ import annotations

import re
import sys
import time

import atheris

with atheris.instrument_imports(include=["dftune.evaluate"]):
    from dftune.evaluate.answers.judge import compare_answers, read
    from dftune.evaluate.grade import grade

FRAGMENTS = re.split(
    r"\s+",
    r"""\frac \dfrac { } ( ) [ ] \{ \} \left( \right) , ; : . | ^ _ ! % ' ° + - * / = < > \le \ge \ne \pm \mp \cup
\cap \setminus \in \mathbb{R} \infty \pi e i x y n k 0 1 2 3 7 10 12 0.5 0.\overline{3} 1,234 4.5e33 \sqrt
\sqrt[3] \sin \cos \log_2 \ln \sum_{k=1}^{n} \prod_{i=1}^{5} \binom \begin{pmatrix} \end{pmatrix} & \\
\text{cm} \text{or} \text{and} \boxed{ \circ \overline \lfloor \rfloor 10^{ 2^{ 9! f(x)= x= $ \( \) <think>
</think> <answer> </answer> #### Answer: is A (B) Yes 答案 \ldots \cdot \times \emptyset \mid 4:30 p.m. \vec
\mathrm \operatorname{cis} \begin{vmatrix} \end{vmatrix} C_6^2 _2 million""",
)


def text_of(data: atheris.FuzzedDataProvider) -> str:
    """A string of known fragments, with raw text now and then."""
    parts = []
    for _ in range(data.ConsumeIntInRange(0, 24)):
        choice = data.ConsumeIntInRange(0, len(FRAGMENTS) + 7)
        if choice < len(FRAGMENTS):
            parts.append(FRAGMENTS[choice])
        elif choice < len(FRAGMENTS) + 4:
            parts.append(" ")
        elif choice < len(FRAGMENTS) + 6:
            parts.append(str(data.ConsumeInt(4)))
        else:
            parts.append(data.ConsumeUnicode(6))
    return "".join(parts)


def one_input(raw: bytes) -> None:
    """Grade one pair and the reference against itself."""
    data = atheris.FuzzedDataProvider(raw)
    gold, completion = text_of(data), text_of(data)
    start = time.process_time()
    verdict = grade(gold, completion)
    itself = compare_answers(gold, gold)
    elapsed = time.process_time() - start
    if verdict.stage == "error" or itself.stage == "error":
        raise RuntimeError(f"internal error: {gold!r} {completion!r} {verdict.reason} {itself.reason}")
    if elapsed > 2:
        raise RuntimeError(f"{elapsed:.1f} s: {gold!r} {completion!r}")
    if grade(gold, completion).verdict != verdict.verdict:
        raise RuntimeError(f"verdict changes: {gold!r} {completion!r}")
    if gold.strip() and read(gold).trees and itself.equal is not True:
        raise RuntimeError(f"not its own answer: {gold!r} {itself}")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
