"""Hostile and pathological input for the grader. As a script: grade every Nth of it and print what it took."""

import json
import resource
import sys
import threading
import time
from pathlib import Path

from dftune.evaluate.grade import grade

MEGABYTE = 1_000_000
FORBIDDEN = ("exec", "compile", "open", "import", "os", "subprocess", "socket", "ctypes")


def boxed(answer: str) -> str:
    return f"Therefore the final answer is $\\boxed{{{answer}}}$."


# name: (reference, completion, correct, or None for "only return")
NUMBERS = {
    "power tower": ("1", boxed("10**10**10"), False),
    "LaTeX power tower": ("1", boxed("10^{10^{10}}"), False),
    "power tower of four": ("1", boxed("9^{9^{9^{9}}}"), False),
    "same power tower": ("10^{10^{10}}", boxed("10^{10^{10}}"), True),
    "power towers that differ": ("10^{10^{10}}", boxed("10^{10^{11}}"), None),
    "power tower in the reference": ("9^{9^{9^{9}}}", boxed("1"), False),
    "taller tower": ("1", boxed("2^" * 400 + "2"), None),
    "tower of braces": ("1", boxed("2^{" * 3000 + "2" + "}" * 3000), None),
    "negative tower": ("1", boxed("2^{-2^{2^{2^{2^{2}}}}}"), False),
    "huge exponent": ("1", boxed("1e999999"), False),
    "absurd exponent": ("1", boxed("1e" + "9" * 5000), False),
    "absurd negative exponent": ("0", boxed("1e-" + "9" * 5000), False),
    "exponent of a megabyte": ("1", boxed("2^{" + "9" * MEGABYTE + "}"), False),
    "huge base": ("1", boxed("9" * 3000 + "^" + "9" * 3000), False),
    "huge base of a numeral": ("1011_2", boxed("1011_{" + "9" * 100_000 + "}"), False),
    "numeral of a megabyte": ("1011_2", boxed("1" * MEGABYTE + "_2"), False),
    "hexadecimal digits": (r"\text{FF}_{16}", boxed("F" * 100_000 + "_{16}"), False),
    "factorial of a factorial": ("1", boxed("((9!)!)!"), None),
    "huge factorial": ("1", boxed("(10^8)!"), False),
    "tower under a factorial": ("1", boxed("(10^{10^{10}})!"), None),
    "many factorials": ("1", boxed("3" + "!" * 10_000), None),
    "double factorials": ("1", boxed("(9!!)!!"), None),
    "quotient of factorials": ("1", boxed(r"\frac{(10^9)!}{(10^9)!}"), None),
    "huge binomial": ("1", boxed(r"\binom{10^9}{5\cdot10^8}"), None),
    "binomial of towers": ("1", boxed(r"\binom{10^{10^{10}}}{10^{10}}"), None),
    "choices of a huge set": ("1", boxed("C_{999999999}^{499999999}"), None),
    "long digits": ("1", boxed("9" * MEGABYTE), False),
    "same long digits": ("9" * 150_000, boxed("9" * 150_000), True),
    "long digits off by one": ("9" * 150_000, boxed("9" * 149_999 + "8"), False),
    "long digits after the point": ("1", boxed("0." + "9" * MEGABYTE), False),
    "zeros": ("0", boxed("0" * MEGABYTE), None),
    "zeros after the point": ("0", boxed("0." + "0" * MEGABYTE), None),
    "a third in full": (r"\frac13", boxed("0." + "3" * 100_000), True),
    "fraction of long digits": ("1", boxed(r"\frac{" + "7" * 100_000 + "}{" + "7" * 100_000 + "}"), None),
    "plain fraction of long digits": ("1", boxed("7" * 50_000 + "/" + "7" * 50_000), None),
    "product of long digits": ("1", boxed(r"\cdot ".join(["9" * 4000] * 200)), False),
    "product of many": ("1", boxed(r"\cdot ".join(["7"] * 30_000)), False),
    "power of a product": ("1", boxed(r"(" + r"\cdot ".join(["7"] * 300) + ")^{99999}"), False),
    "sum of many": ("5", boxed("+".join(["1"] * 50_000)), False),
    "sum of many fractions": ("5", boxed("+".join(rf"\frac{{1}}{{{k}}}" for k in range(1, 3000))), False),
    "alternating signs": ("5", boxed("-" * 50_000 + "5"), True),
    "long period": (r"\frac13", boxed(r"0.\overline{" + "3" * 1999 + "}"), True),
    "longer period": (r"\frac13", boxed(r"0.\overline{" + "3" * 100_000 + "}"), None),
    "bracketed period": (r"\frac13", boxed("0.(" + "142857" * 20_000 + ")"), None),
    "separators of thousands": ("1", boxed("1" + ",000" * 50_000), False),
    "spaces of thousands": ("1", boxed("1" + " 000" * 50_000), False),
    "millions of millions": ("1", boxed("1" + " million" * 10_000), False),
    "percent of percent": ("1", boxed("1" + r"\%" * 10_000), None),
    "degrees of degrees": ("1", boxed("1" + r"^\circ" * 10_000), None),
    "division by zero": ("1", boxed(r"\frac{1}{0}"), False),
    "zero over zero": (r"\frac00", boxed("1"), None),
    "zero to the zero": ("1", boxed("0^0"), None),
    "logarithm of zero": ("1", boxed(r"\ln 0"), False),
    "logarithm to base one": ("1", boxed(r"\log_1 5"), False),
    "root of degree zero": ("1", boxed(r"\sqrt[0]{5}"), False),
    "root of huge degree": ("1", boxed(r"\sqrt[10^{300}]{2}"), False),
    "sine of a googol": ("1", boxed(r"\sin(10^{100})"), None),
    "tangent at its pole": ("1", boxed(r"\tan\frac{\pi}{2}"), None),
    "exponential of a tower": ("1", boxed(r"e^{e^{e^{e^{e}}}}"), None),
    "iterated sines": ("1", boxed(r"\sin " * 500 + "1"), None),
    "iterated logarithms": ("1", boxed(r"\ln(" * 100 + "9" + ")" * 100), None),
    "remainder of a tower": ("1", boxed(r"7^{7^{7^{7}}} \bmod 10"), None),
    "divisor of long numbers": ("1", boxed(rf"\gcd({'8' * 50_000}, {'6' * 50_000})"), None),
    "greatest of many": ("1", boxed(r"\max(" + ",".join(["1"] * 20_000) + ")"), None),
}
NESTED = {
    "deep fractions": ("1", boxed(r"\frac{1}{1+" * 500 + "1" + "}" * 500), None),
    "2,000 deep fractions": ("1", boxed(r"\frac{1}{1+" * 2000 + "1" + "}" * 2000), None),
    "2,000 deep fractions in the reference": (r"\frac{1}{1+" * 2000 + "1" + "}" * 2000, boxed("1"), None),
    "deep roots": ("1", boxed(r"\sqrt{" * 2000 + "1" + "}" * 2000), None),
    "roots of roots of two": ("1", boxed(r"\sqrt{2+" * 100 + "2" + "}" * 100), False),
    "bare roots": ("1", boxed(r"\sqrt" * 20_000 + "1"), None),
    "deep brackets": ("1", boxed("(" * 5000 + "1" + ")" * 5000), None),
    "deep mixed brackets": ("1", boxed(r"\{[(" * 3000 + "1" + r")]\}" * 3000), None),
    "deep text": ("1", boxed(r"\text{" * 3000 + "1" + "}" * 3000), None),
    "deep absolute values": ("1", boxed(r"\left|" * 2000 + "1" + r"\right|" * 2000), None),
    "deep subscripts": ("1", boxed("x_{" * 3000 + "1" + "}" * 3000), None),
    "deep matrices": ("1", boxed(r"\begin{pmatrix}" * 500 + "1" + r"\end{pmatrix}" * 500), None),
    "deep functions": ("1", boxed("f(" * 3000 + "x" + ")" * 3000), None),
    "deep sets": ("1", boxed(r"\{" * 3000 + "1" + r"\}" * 3000), None),
    "opening brackets": ("1", boxed("(" * 100_000), None),
    "closing brackets": ("1", boxed(")" * 100_000), None),
    "opening braces": ("1", r"\boxed" + "{" * 100_000, None),
    "closing braces": ("1", r"\boxed{1" + "}" * 100_000, True),
    "many bars": ("1", boxed("|" * 10_001), None),
    "open environments": ("1", boxed(r"\begin{pmatrix}" * 20_000), None),
    "closed environments": ("1", boxed(r"\end{pmatrix}" * 20_000), None),
}
STRUCTURES = {
    "many plus-minus": ("1", boxed("1" + r"\pm 1" * 30), False),
    "plus-minus in a list": ("1", boxed(",".join([r"1\pm 2\pm 3"] * 2000)), False),
    "plus-minus in a tuple": ("1", boxed("(" + ",".join([r"\pm 1"] * 40) + ")"), False),
    "plus-minus on both sides": ("1" + r"\pm 2" * 12, boxed("1" + r"\pm 3" * 12), None),
    "long list, turned around": (
        ",".join(map(str, range(10_000))),
        boxed(r"\{" + ",".join(map(str, reversed(range(10_000)))) + r"\}"),
        True,
    ),
    "long list, shifted": (",".join(map(str, range(10_000))), boxed(",".join(map(str, range(1, 10_001)))), False),
    "long list of roots": (
        ",".join(rf"\sqrt{{{k}}}" for k in range(2, 2000)),
        boxed(",".join(rf"\sqrt{{{k}}}" for k in range(1999, 1, -1))),
        None,
    ),
    "long list of letters": (",".join("abcdefgh" * 1000), boxed(",".join("hgfedcba" * 1000)), None),
    "long list of pairs": (
        ",".join(f"({k},{k})" for k in range(3000)),
        boxed(",".join(f"({k},{k})" for k in range(2999, -1, -1))),
        True,
    ),
    "long ellipsis": (r"1,2,\ldots,10^9", boxed(r"1,2,\ldots,999999999"), False),
    "ellipsis of many": ("1", boxed(r"1,2,\ldots,999999999"), False),
    "long tuple": ("1", boxed("(" + ",".join(["1"] * 20_000) + ")"), False),
    "union of many": ("1", boxed(r"\cup ".join(f"({2 * k},{2 * k + 1})" for k in range(2000))), False),
    "intersection of many": ("1", boxed(r"\cap ".join(["(0,1)"] * 2000)), None),
    "difference of many": ("1", boxed(r"\mathbb{R}" + "".join(rf"\setminus\{{{k}\}}" for k in range(500))), None),
    "inequality of many": ("1", boxed("<".join(["x"] * 5000)), None),
    "equation of many": ("1", boxed("=".join(["x"] * 5000 + ["2"])), None),
    "ratio of many": ("1", boxed(":".join(["1"] * 20_000)), False),
    "big matrix": ("1", boxed(r"\begin{pmatrix}" + ("1 & " * 199 + r"1 \\ ") * 200 + r"\end{pmatrix}"), False),
    "same big matrix": (
        r"\begin{pmatrix}" + (r"\frac12 & " * 99 + r"1 \\ ") * 100 + r"\end{pmatrix}",
        boxed(r"\begin{bmatrix}" + (r"0.5 & " * 99 + r"1 \\ ") * 100 + r"\end{bmatrix}"),
        None,
    ),
    "big determinant": ("1", boxed(r"\begin{vmatrix}" + ("1 & " * 11 + r"1 \\ ") * 12 + r"\end{vmatrix}"), False),
    "sum of matrices": ("1", boxed("+".join([r"\begin{pmatrix}1\\2\end{pmatrix}"] * 3000)), False),
    "thousands of variables": ("1", boxed("+".join(f"x_{{{k}}}" for k in range(5000))), False),
    "thousands of variables, turned around": (
        "+".join(f"x_{{{k}}}" for k in range(3000)),
        boxed("+".join(f"x_{{{k}}}" for k in range(2999, -1, -1))),
        None,
    ),
    "wide polynomial": ("(x+1)^{100000}", boxed("(x+1)^{100000}+1"), False),
    "tower of variables": ("x^{x^{x^{x^{x}}}}", boxed("y^{y^{y^{y^{y}}}}"), False),
    "equation of high degree": ("x^{9999}+y^{9999}=1", boxed("x^{9999}+y^{9998}=1"), False),
    "long sum": ("1", boxed(r"\sum_{k=1}^{10^9} k"), False),
    "endless sum": ("1", boxed(r"\sum_{k=1}^{\infty} \frac{1}{k}"), None),
    "nested sums": ("1", boxed(r"\sum_{j=1}^{9999}\sum_{k=1}^{9999} jk"), False),
    "sums of sums": ("1", boxed(r"\sum_{k=1}^{99}" * 50 + "k"), None),
    "endless product": ("1", boxed(r"\prod_{k=1}^{10^{10^{10}}} k"), None),
    "product of variables": (r"\prod_{k=1}^{n} k", boxed(r"\prod_{j=1}^{n} j^2"), False),
    "renamed parameters": ("(a,b,c,d,m,n)", boxed("(p,q,r,s,t,u)"), None),
    "many applications": ("1", boxed("f(x)" * 3000), None),
    "many functions": ("1", boxed(r"\sin x" * 3000), None),
    "many units": ("1", boxed("1" + r"\text{ cm}" * 20_000), None),
    "minutes and seconds": ("1", boxed("22^\\circ " + "30'" * 10_000), None),
    "degrees by primes": ("f", boxed("f" + "'" * 100_000), None),
}
TEXTS = {
    "empty": ("1", "", False),
    "blank": ("1", " \n\t " * 100_000, False),
    "NUL": ("12", boxed("1\x002"), True),
    "all NUL": ("12", "\x00" * MEGABYTE, False),
    "lone surrogates": ("12", boxed("\ud8001\udfff2"), True),
    "many lone surrogates": ("12", "\ud800" * 100_000, False),
    "surrogate in the reference": ("\udc80", boxed("1"), None),
    "invisible marks": ("5", boxed("\u200b\u202e5\u200f"), True),
    "right to left": ("12", boxed("\u202e21\u202c"), False),
    "right-to-left letters": ("12", boxed("\u05d0\u05d1" * 10_000), False),
    "Arabic digits": ("12", boxed("\u0661\u0662"), None),
    "combining marks": ("12", boxed("1" + "\u0301" * 100_000), None),
    "emoji": ("12", "\U0001f600" * 100_000, False),
    "other planes": ("12", boxed("\U0001d7cf\U0001d7d0"), True),
    "superscripts": ("12", boxed("2" + "⁹" * 50_000), False),
    "subscripts": ("12", boxed("x" + "₉" * 50_000), False),
    "vulgar fractions": ("12", boxed("½" * 20_000), None),
    "many boxes": ("7", r"\boxed{3} " * 20_000 + r"\boxed{7}", True),
    "boxes joined": ("7", r"\boxed{3} and " * 20_000 + r"\boxed{7}", False),
    "open boxes": ("1", r"\boxed{" * 20_000, None),
    "empty boxes": ("1", r"\boxed{}" * 50_000, False),
    "box in box": ("1", r"\boxed{" * 1000 + "1" + "}" * 1000, None),
    "box without end": ("1", r"\boxed{" + "1+" * 500_000, None),
    "box at the start of a megabyte": ("42", r"\boxed{42}" + " blah" * 200_000, True),
    "open displays": ("1", r"\[ 1 " * 20_000, None),
    "open environments in prose": ("1", r"\begin{align} 1 " * 20_000, None),
    "many dollars": ("1", "$" * 200_000, None),
    "many formulas": ("1", "$1$ " * 50_000, None),
    "formulas in a list": ("1", "The values are " + "$1$, " * 5_000 + "$1$.", None),
    "many phrases": ("1", "the answer is " * 50_000 + "1", True),
    "many phrases for long": ("1", ("the answer to " + "x " * 29) * 5000, None),
    "many thoughts": ("1", "<think>" * 50_000 + "</think>" * 50_000 + r"\boxed{1}", True),
    "many tags": ("1", "<answer>" * 50_000 + "1</answer>", None),
    "tags in capitals": ("1", "<ANSWER>1</ANSWER>" * 30_000, True),
    "many hashes": ("1", "#" * 200_000 + " 1", None),
    "many turns": ("1", "<|im_end|>" * 50_000 + "1", None),
    "bold": ("1", "**" * 100_000 + "1", None),
    "open bold": ("1", "The answer " + "**1" * 20_000, None),
    "a megabyte before the answer": ("42", "blah " * 200_000 + "The answer is 42.", True),
    "a megabyte of one line": ("42", "x" * MEGABYTE + " 42", None),
    "a megabyte of lines": ("42", "\n" * MEGABYTE + "42", True),
    "a megabyte of backslashes": ("42", "\\" * MEGABYTE, False),
    "a megabyte of numbers": ("42", "1 " * 500_000, False),
    "a megabyte of times": ("4:30", "4:" * 500_000 + "30", None),
    "a megabyte of the reference": ("x" * MEGABYTE, boxed("x"), None),
    "not a number": ("nan", boxed("nan"), None),
    "words": ("yes", "yes " * 100_000, None),
    "format string": ("1", boxed("{0.__class__}%s%n" * 100), False),
    "letters of a choice": ("A", "A " * 100_000 + "B", False),
    "JSON": ("1", '{"answer": ' * 10_000, None),
}
CODE = (
    "__import__('os').system('id')",
    "exec(\"open('/tmp/x','w')\")",
    "eval('1')",
    "open('/etc/passwd').read()",
    r"\write18{id}",
    r"\input{/etc/passwd}",
    r"\immediate\write18{id}",
    r"\catcode`\@=11",
    r"\def\x{\x}\x",
    r"\newcommand{\x}{\x\x}\x",
    "lambda: 0",
    "().__class__.__bases__[0].__subclasses__()",
    "compile('1','','exec')",
    "{{7*7}}",
    "$(id)",
    "`id`",
    "'; DROP TABLE x; --",
    "<script>alert(1)</script>",
    "import os",
    "N(pi, 10**9)",
    "Integer(2)**10**9",
    "sympify('1')",
    "x.func",
)
# Repeated, each must be read in linear time by every pattern that could match it.
REPEATED = (
    " ", ".", ",", ":", "-", "=", "*", "_", "'", "\"", "(", "[", "{", "}", "$", "$$", "\\", "\\(", "\\[", "\\{",
    "\\ ", "\\,", "\\text{", "\\text", "\\hspace{", "\\color", "\\begin{a}", "\\frac", "\\left", "\\overline", "a",
    "A", "A,", "A and ", "1", "1,", "1 ", "1:", "1/", "1.", "1e", "1,000", "1 000", "0.1", "0.(1)", "0.1\\dot1",
    ".\\overline{1}", "x=", "x_", "x^", "is ", "is 1", "the answer ", "answer to ", "not but ", ", not ", "A: ",
    "A:\n", "####", "#### 1\n", "**1**", "** 1", "the ", "A. ", "I hope it is correct.", "\n", "\n\n", "option A",
    "(A) is ", "yes, ", "base", "1_2", "percent", "°", "²", "½", "答案", "<answer>", "</think>", "\\boxed",
    "\\boxed{1}", "\\boxed{", "\\boxed{1},", "1\\pm", "\\circ", "e", "i", "sin", "sinx",
)  # fmt: skip


def cases() -> dict[str, tuple[str, str, bool | None]]:
    """Every input by name."""
    found = {**NUMBERS, **NESTED, **STRUCTURES, **TEXTS}
    found |= {f"code {code}": ("7.25", boxed(code), False) for code in CODE}
    found |= {f"code in prose {code}": (code, f"The answer is {code}", None) for code in CODE}
    found |= {f"repeated {unit!r}": ("1", unit * (60_000 // len(unit)) + "!", None) for unit in REPEATED}
    found |= {
        f"repeated in a box {unit!r}": ("1", boxed(unit * (20_000 // len(unit)) + "!"), None) for unit in REPEATED
    }
    found |= {
        f"repeated in the reference {unit!r}": (unit * (8_000 // len(unit)), boxed("1"), None) for unit in REPEATED
    }
    return found


def main() -> None:
    """Grade everything, alone and in threads; print the time of each, the memory, and what an audit hook saw."""
    everything = dict(list(cases().items())[:: int(sys.argv[1]) if len(sys.argv) > 1 else 1])
    seen: list[str] = []
    watching = False

    def hook(event: str, _: tuple) -> None:
        if watching and event.split(".", maxsplit=1)[0] in (
            "exec",
            "compile",
            "open",
            "import",
            "os",
            "subprocess",
            "socket",
        ):
            seen.append(event)

    grade("1", boxed("2"))
    sys.addaudithook(hook)
    watching = True
    report = {}
    for name, (target, completion, _) in everything.items():
        start = time.process_time()
        verdict = grade(target, completion)
        report[name] = (time.process_time() - start, verdict.verdict, verdict.reason)
    names = list(everything)[::4]
    in_threads: dict[str, str] = {}

    def work(part: int) -> None:
        for name in names[part::4]:
            in_threads[name] = grade(*everything[name][:2]).verdict

    watching = False  # starting a thread is no crime of the grader's
    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = sorted(set(seen))
    differ = [name for name in names if in_threads.get(name) != report[name][1]]
    print(json.dumps({"report": report, "peak_bytes": _peak(), "events": events, "differ_in_threads": differ}))


def _peak() -> int:
    """Most bytes of memory that this process held; what getrusage says counts its parent before the fork, too."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (kib,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(kib)


if __name__ == "__main__":
    main()
