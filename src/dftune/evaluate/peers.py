"""The rules of two graders in daily use, so that their verdicts can be put beside ours.

`r1_zero` is the reward of sail-sg/understand-r1-zero in its fast mode; `qwen` is the extraction and comparison of the
Qwen2.5-Math evaluation. Both are written anew from descriptions of what they do, with its order and tolerances.
Where the originals hand text of the model to sympy (and thereby to Python's `eval`), these hand it to our parser, which
evaluates nothing: their last step accepts what our comparison of two plain values accepts.
"""

from __future__ import annotations

import math
import re

from dftune.evaluate.answers.expr import has, is_scalar
from dftune.evaluate.answers.judge import compare_answers, read, read_prediction
from dftune.evaluate.answers.lexer import balanced

_UNITS = re.compile(
    r"\b(?:degrees?|cm|centimeters?|meters?|miles?|seconds?|minutes?|hours?|days?|weeks?|months?|years?|feet|foot|inch|"
    r"inches|yards?|liters?|points?|dollars?|cents?|units?|square|cubic|[acdghlmost])\b(?:\^\{?[23]\}?)?"
)
_NUMBER = re.compile(r"-?\d*\.?\d+")
_LETTER = re.compile(r"\b([A-E])\b")
_MAX_CHARS = 20_000


def _last_box(text: str) -> str | None:
    start = text.rfind("boxed{")
    return balanced(text, start + len("boxed"))[0] if start >= 0 else None


def _same_value(gold: str, answer: str) -> bool:
    """The algebra of either: two numbers or formulas, no lists, sets, intervals or plus-minus, and exact."""
    trees = [*read(gold).trees, *read_prediction(answer).trees]
    plain = all(is_scalar(tree) and not has(tree, "pm", "mp") for tree in trees)
    outcome = compare_answers(gold, answer) if plain else None
    return outcome is not None and outcome.equal is True and outcome.stage != "decimal"


# r1-zero


def r1_zero(target: str, completion: str) -> bool:
    """The reward: tags exactly as ``</think> <answer>...</answer>``, then an answer that is nearly the same text."""
    if "</think> <answer>" not in completion or "</answer>" not in completion:
        return False
    answer: str | None = completion.rpartition("<answer>")[2].replace("</answer>", "")
    if answer is not None and "\\boxed" in answer:
        answer = _last_box(answer)
    return answer is not None and r1_zero_answer(target, answer)


def r1_zero_answer(target: str, answer: str) -> bool:
    """The comparison alone: equal normal texts, or equal values of the same literal kind, member by member."""
    gold = _last_box(target) if "\\boxed" in target else target
    if gold is None or len(answer) > _MAX_CHARS:
        return False
    if _hendrycks(gold) == _hendrycks(answer):
        return True
    mine, theirs = _r1_members(_r1_normal(gold)), _r1_members(_r1_normal(answer))
    if _r1_normal(gold) == _r1_normal(answer):
        return True
    if not _r1_normal(answer) or mine[0] != theirs[0] or len(mine[1]) != len(theirs[1]):
        return False
    return all(_r1_same(one, other) for one, other in zip(mine[1], theirs[1], strict=True))


def _hendrycks(text: str) -> str:
    """The normal text of the MATH authors' string comparison."""
    text = text.strip().replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = re.sub(r"\\[td]frac", r"\\frac", text)
    text = re.sub(r"\\left|\\right|\^\{?\\circ\}?|\\\$|\\%|%", "", text)
    text = re.sub(r"\\text\{ .*$", "", text)
    text = re.sub(r"(^|[ {])\.(?=\d)", r"\g<1>0.", text)
    head, equals, tail = text.partition("=")
    text = tail if equals and len(head) <= 2 and "=" not in tail else text
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac(\w)(\w)", r"\\frac{\1}{\2}", text)
    return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", "\\frac{1}{2}" if text == "0.5" else text)


def _r1_normal(text: str) -> str:
    """The normal text of the second comparison: units and words of number gone, lower case, no braces."""
    text = re.sub(r"^\\text\{(.+?)\}$", r"\1", text.strip())
    text = text.replace("\\%", "%").replace("\\$", "").replace("$", "").replace("%", "")
    text = text.replace(" or ", " , ").replace(" and ", " , ")
    for word, zeros in (("million", "*10^6"), ("billion", "*10^9"), ("trillion", "*10^12")):
        text = text.replace(word, zeros)
    text = re.sub(r"\^ *\\circ", "", _UNITS.sub("", text))
    text = text[1:-1] if text.startswith("{") and text.endswith("}") else text
    text = re.sub(r",\\! *", "", text)
    text = re.sub(r"^(-?\d+)\.0+$", r"\1", text)
    text = re.sub(r"(\d) +(\d+/\d+)", r"\1+\2", text)
    text = re.sub(
        r"\\frac\{(\w+)\}\{(\w+)\}", r"(\1)/(\2)", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    )
    return re.sub(r"(?<=\d),(?=\d{3})", "", text.replace(" ", "").replace("{", "").replace("}", "").lower())


def _r1_members(text: str) -> tuple[str, list[str]]:
    brackets = text[:1] + text[-1:] if text[:1] in ("(", "[") and text[-1:] in (")", "]") else ""
    inner = text[1:-1] if brackets and "," in text else text
    return (brackets if "," in text else ""), inner.split(",")


def _r1_same(gold: str, answer: str) -> bool:
    fraction = re.compile(r"-?\(?\d+\)?/\(?\d+\)?")
    if fraction.fullmatch(gold) and fraction.fullmatch(answer):
        return gold == answer
    if bool(re.fullmatch(r"-?\d+", gold)) != bool(re.fullmatch(r"-?\d+", answer)):
        return False
    letters = set(re.findall(r"[a-z]", re.sub(r"sqrt|frac", "", answer)))
    if len(letters) > 2 or re.search(r"\^[{(]|\^\d+\^|\^\d\d+", gold + answer):
        return False
    return _same_value(gold, answer)


# Qwen2.5-Math


def qwen(target: str, completion: str) -> bool:
    """Extraction and equality of the Qwen2.5-Math evaluation."""
    return qwen_equal(_qwen_normal(target), _qwen_normal(qwen_answer(completion)))


def qwen_answer(completion: str) -> str:
    """Its order: the Minerva phrase, the last box, "he answer is", "final answer is", 答案是, the last number."""
    text = completion
    if "final answer is $" in text and "$. I hope" in text:
        found = text.partition("final answer is $")[2].partition("$. I hope")[0]
    elif "boxed" in text:
        rest = text.rpartition("boxed")[2]
        found = balanced(rest, 0)[0] if rest.startswith("{") else rest.partition("$")[0]
    elif "he answer is" in text:
        found = text.rpartition("he answer is")[2]
    elif "final answer is" in text:
        found = text.rpartition("final answer is")[2]
    elif "答案是" in text:
        found = text.partition("答案是")[2].partition("\n\n")[0]
    else:
        numbers = _NUMBER.findall(text.replace(",", ""))
        return numbers[-1] if numbers else ""
    return re.sub(r"\n\s*", "", found).strip().removeprefix(":").removesuffix(".").removesuffix("/")


def _qwen_normal(text: str) -> str:
    """Its normal text: no units, money, percent, degrees, names or words; fractions and roots braced."""
    text = text.strip().replace("\n", "").rstrip(".").replace("\\!", "")
    text = re.sub(r"\\begin\{array\}\{.*?\}|\\begin\{bmatrix\}", r"\\begin{pmatrix}", text)
    text = re.sub(r"\\end\{(?:array|bmatrix)\}", r"\\end{pmatrix}", text)
    text = re.sub(r"\\[td]frac", r"\\frac", text)
    text = re.sub(r"\\(neq|leq|geq)", lambda found: found.group()[:-1], text)
    text = re.sub(r"\\left|\\right|\\(?=[{}])", "", text)
    text = re.sub(r"\\text\{.*?\}$", "", text).strip()
    text = _UNITS.sub("", _UNITS.sub("", text))
    text = re.sub(r"\^\{?\\circ\}?|\\?\$|\\\(|\\\)", "", text)
    text = re.sub(r"\\text\{(.*?)\}", r"\1", text)
    text = re.sub(r"[xyz]\s*(?:=|\\in\b)|\\?%", "", text)
    text = re.sub(r"(^|[ {])\.(?=\d)", r"\g<1>0.", text)
    text = re.sub(r"infinity|(?<![\\a-z])inf\b|\+\\inity", r"\\infty", text)
    text = re.sub(r"\band\b|\\mathbf|\\mbox\{.*?\}", "", text)
    text = re.sub(r"(\d+)\.0+(?=\D|$)", r"\1", text)
    head, equals, tail = text.partition("=")
    text = tail if equals and len(head.strip()) <= 2 and "=" not in tail else text
    text = re.sub(r"\\sqrt\s*(\w)", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac(\w)(\w)", r"\\frac{\1}{\2}", text)
    return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", text)


def qwen_equal(gold: str, answer: str, level: int = 0) -> bool:
    """Its order of comparisons: text, letter, number up to 1e-4 and a factor of 100, members, equation, algebra."""
    if gold.lower() == answer.lower():
        return True
    if len(answer) > _MAX_CHARS or level > 3:
        return False
    if gold in ("A", "B", "C", "D", "E"):
        letters = _LETTER.findall(answer.upper())
        return bool(letters) and letters[-1] == gold
    numbers = _as_number(gold), _as_number(answer)
    if numbers[0] is not None and numbers[1] is not None:
        return any(math.isclose(numbers[1], numbers[0] * factor, rel_tol=1e-4) for factor in (0.01, 1, 100))
    if not answer:
        return False
    plain = [re.sub(r"[{}()\[\]]", "", text).lower() for text in (gold, answer)]
    if plain[0] == plain[1]:
        return True
    if all(re.fullmatch(r"[(\[].+[)\]]", text) for text in (gold, answer)):
        mine, theirs = gold[1:-1].split(","), answer[1:-1].split(",")
        if len(mine) == len(theirs):
            return all(
                qwen_equal(one.strip(), other.strip(), level + 1) for one, other in zip(mine, theirs, strict=True)
            )
    for one, other in ((gold, answer), (answer, gold)):
        head, equals, tail = one.partition("=")
        if equals and "=" not in tail and len(head.strip()) <= 2 and "=" not in other:
            return qwen_equal(*((tail, other) if one is gold else (other, tail)), level + 1)
    return _same_value(gold, answer)


def _as_number(text: str) -> float | None:
    plain = text.replace(",", "").strip()
    if not re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?%?", plain) or len(plain) > 300:
        return None
    return float(plain.removesuffix("%")) / (100 if plain.endswith("%") else 1)
