"""Equality of answers of any shape: numbers, tuples, lists, sets, intervals, matrices, equations."""

from __future__ import annotations

from dftune.evaluate.answers.budget import Budget, UndecidedError, UndefinedError
from dftune.evaluate.answers.exact import Exact
from dftune.evaluate.answers.expr import Expr, divide, has, is_scalar, mul, node, rename, symbols
from dftune.evaluate.answers.regions import is_region, region_of
from dftune.evaluate.answers.relations import Labelled, Relations, split_label
from dftune.evaluate.answers.scalars import Scalars, counted
from dftune.evaluate.answers.shapes import (
    as_list,
    assignments,
    common_value,
    is_set_of_sets,
    normal,
    unlabelled,
    unlabelled_values,
    vector_items,
    word_key,
)


class Comparison:
    """One comparison of a gold answer with another, within a budget of operations.

    ``stage`` names the step that decided: ``value``, ``decimal``, ``numeric``, ``identity``, ``points`` for scalars,
    ``structure`` for everything made of several parts. ``degrees_optional`` is off where the text says radians.
    """

    def __init__(self, budget: Budget, *, degrees_optional: bool = True) -> None:
        self.budget = budget
        self.scalars = Scalars(budget, degrees_optional=degrees_optional)
        self.relations = Relations(self.scalars)
        self.stage = "structure"

    def same(self, gold: Expr, answer: Expr) -> bool:
        """Whether ``answer`` is equal to ``gold``."""
        gold, answer = counted(gold, answer), counted(answer, gold)
        gold, answer = normal(gold), normal(answer)
        if is_scalar(gold) and is_scalar(answer) and not has(gold, "pm", "mp") and not has(answer, "pm", "mp"):
            result = self.scalars.same(gold, answer)
            self.stage = self.scalars.stage
            return result
        self.stage = "structure"
        return self.same_structure(gold, answer)

    def same_structure(self, gold: Expr, answer: Expr) -> bool:
        """Equality of answers that are not two plain scalars."""
        self.budget.spend()
        if gold.op == "text" or answer.op == "text":
            return word_key(gold) == word_key(answer) != ""
        if is_region(gold) or is_region(answer):
            verdict = self.same_region(gold, answer)
            if verdict is not None:
                return verdict
        if "rel" in (gold.op, answer.op) and "seq" not in (gold.op, answer.op):
            return self.same_relation(gold, answer)
        mine, theirs = as_list(gold), as_list(answer)
        if mine is not None or theirs is not None:
            return self.same_lists(gold, answer, mine, theirs)
        if gold.op == answer.op == "builder":
            return gold.args[1] == answer.args[1] and self.same_part(gold.args[0], answer.args[0])
        if gold.op == "setop" and answer.op == "setop":
            return gold.name == answer.name and self.unordered(list(gold.args), list(answer.args))
        if gold.op == "ratio" or answer.op == "ratio":
            return self.same_ratio(gold, answer)
        return self.same_vector(gold, answer)

    def same_part(self, gold: Expr, answer: Expr) -> bool:
        """Equality of members of a list or entries of a tuple."""
        if is_scalar(gold) and is_scalar(answer) and not has(gold, "pm", "mp") and not has(answer, "pm", "mp"):
            return self.scalars.same(gold, answer)
        return self.same_structure(gold, answer)

    # Regions

    def same_region(self, gold: Expr, answer: Expr) -> bool | None:
        """Equality as sets of real numbers; None where one of them is not such a set."""
        mine, theirs = region_of(unlabelled(gold), self.budget), region_of(unlabelled(answer), self.budget)
        if mine is None or theirs is None:
            return None
        if len(mine) != len(theirs):
            return False
        if not mine and "()" in (gold.name, answer.name):  # (5, 2) is a point, not the empty set
            return None
        return all(
            (a.low_closed, a.high_closed) == (b.low_closed, b.high_closed)
            and self.scalars.same(a.low, b.low)
            and self.scalars.same(a.high, b.high)
            for a, b in zip(mine, theirs, strict=True)
        )

    # Relations

    def same_relation(self, gold: Expr, answer: Expr) -> bool:
        """Equality where at least one side is an equation, inequality or assignment."""
        mine, theirs = split_label(gold), split_label(answer)
        if mine is not None and theirs is not None and self.same_labelled(mine, theirs):
            return True
        for chain, other in ((gold, answer), (answer, gold)):
            vector, value = vector_items(unlabelled(other)), common_value(chain)
            if vector is not None and value is not None and len(vector) == len(chain.args) - 1:
                return self.ordered(vector, [value] * len(vector))  # x = y = z = 0
        if gold.op == "rel" and answer.op == "rel":
            return self.relations.same(gold, answer)
        if mine is not None and theirs is None and answer.op != "rel":
            return self.same_part(mine.value, answer)
        if theirs is not None and mine is None and gold.op != "rel":
            return self.same_part(gold, theirs.value) or self.renamed_function(gold, theirs)
        if gold.op == "rel" and gold.name == "=" and is_scalar(answer) and "y" in symbols(gold) - symbols(answer):
            return self.relations.solves(gold, "y", answer)
        return False

    def same_labelled(self, gold: Labelled, answer: Labelled) -> bool:
        """Equal values; the variables of functions on the left may have other names."""
        if gold.arguments and answer.arguments and len(gold.arguments) == len(answer.arguments):
            names = dict(zip(answer.arguments, gold.arguments, strict=True))
            if self.same_part(gold.value, rename(answer.value, names)):
                return True
        if gold.parts and answer.parts and sorted(gold.parts) == sorted(answer.parts) and gold.parts != answer.parts:
            items = vector_items(answer.value)
            if items is None or len(items) != len(answer.parts):
                return False
            order = [items[answer.parts.index(part)] for part in gold.parts]
            return self.same_part(gold.value, node("group", *order, name="()"))
        return self.same_part(gold.value, answer.value)

    def renamed_function(self, gold: Expr, answer: Labelled) -> bool:
        """``2x`` against ``f(t) = 2t``."""
        mine = symbols(gold)
        if (
            gold.op == "sym"
            or len(answer.arguments) != 1
            or len(mine) != 1
            or answer.arguments[0] in mine
            or not next(iter(mine)).isalpha()
        ):
            return False
        return self.same_part(gold, rename(answer.value, {answer.arguments[0]: next(iter(mine))}))

    # Lists, sets, assignments

    def same_lists(self, gold: Expr, answer: Expr, mine: list[Expr] | None, theirs: list[Expr] | None) -> bool:
        """Equality where at least one side is a list or a set."""
        if is_set_of_sets(gold) != is_set_of_sets(answer):
            return False
        golds, answers = [gold] if mine is None else mine, [answer] if theirs is None else theirs
        assigned = self.same_assignments(golds, answers)
        if assigned is not None:
            return assigned
        for listed, other, swap in ((mine, answer, False), (theirs, gold, True)):
            vector = vector_items(other) if other.op in ("group", "matrix") else None
            if listed is not None and vector is not None and as_list(other) is None and len(listed) > 1:
                braces = (answer if swap else gold).op == "group"
                if all(item.op == "group" for item in vector) and not braces:
                    return self.unordered(listed, vector)
                if gold.op == "group" and gold.name == "[]" and len(vector) == 2:
                    return False  # the two ends of a closed interval are not the interval
                values = [unlabelled(item) for item in listed]
                return not braces and self.ordered(*((vector, values) if swap else (values, vector)))
        return self.unordered(unlabelled_values(golds), unlabelled_values(answers))

    def same_assignments(self, mine: list[Expr], theirs: list[Expr]) -> bool | None:
        """Lists that name each value, as in ``x = 1, y = 2``; None where names do not matter."""
        gold, answer = assignments(mine), assignments(theirs)
        if gold is None and answer is None:
            return None
        if gold is not None and answer is not None:
            if len(gold) != len(answer):
                return False
            if set(gold) == set(answer):
                return all(self.same_part(gold[name], answer[name]) for name in gold)
            return self.ordered(list(gold.values()), list(answer.values()))
        named = gold if gold is not None else answer
        assert named is not None
        plain = theirs if gold is not None else mine
        vector = vector_items(plain[0]) if len(plain) == 1 else None
        plain = vector or plain
        if len(plain) != len(named):
            return False
        plain = [unlabelled(item) for item in plain]
        alphabetical = [named[name] for name in sorted(named)]
        for order in (list(named.values()), alphabetical):
            pair = (order, plain) if gold is not None else (plain, order)
            if self.ordered(*pair):
                return True
        return False

    def ordered(self, gold: list[Expr], answer: list[Expr]) -> bool:
        """Equality member by member."""
        return len(gold) == len(answer) and all(self.same_part(a, b) for a, b in zip(gold, answer, strict=True))

    def unordered(self, gold: list[Expr], answer: list[Expr]) -> bool:
        """Equality as sets: numbers are matched by value, whatever is left pair by pair."""
        gold_keys, gold_rest = self.keyed(gold)
        answer_keys, answer_rest = self.keyed(answer)
        gold_rest += [gold_keys[key] for key in gold_keys if key not in answer_keys]
        answer_rest += [answer_keys[key] for key in answer_keys if key not in gold_keys]
        gold_rest, answer_rest = self.distinct(gold_rest), self.distinct(answer_rest)
        if len(gold_rest) != len(answer_rest):
            return False
        for item in gold_rest:
            match = next((index for index, other in enumerate(answer_rest) if self.same_part(item, other)), None)
            if match is None:
                return False
            answer_rest.pop(match)
        return True

    def keyed(self, items: list[Expr]) -> tuple[dict[object, Expr], list[Expr]]:
        """Members with an exact key by that key, and the others."""
        keys: dict[object, Expr] = {}
        rest = []
        for item in items:
            key = self.key(item)
            if key is None:
                rest.append(item)
            else:
                keys.setdefault(key, item)
        return keys, rest

    def key(self, item: Expr) -> object | None:
        """The exact value of a number, or of every entry of a tuple; None without one."""
        if item.op == "group" and item.name == "()":
            parts = [self.key(arg) for arg in item.args]
            return None if any(part is None for part in parts) else tuple(parts)
        if not is_scalar(item) or symbols(item):
            return None
        try:
            return Exact(self.budget).value(item)
        except (UndecidedError, UndefinedError):
            return None

    def distinct(self, items: list[Expr]) -> list[Expr]:
        """The members without those that repeat an earlier one."""
        if len(items) > 60:  # pairwise comparison would spend the budget; such lists are keyed or hopeless
            return items
        kept: list[Expr] = []
        for item in items:
            if not any(self.same_part(other, item) for other in kept):
                kept.append(item)
        return kept

    # Ratios, tuples, matrices

    def same_ratio(self, gold: Expr, answer: Expr) -> bool:
        """Equality where at least one side is a ratio: proportional, or equal to the quotient."""
        mine = list(gold.args) if gold.op == "ratio" else None
        theirs = list(answer.args) if answer.op == "ratio" else None
        if mine is not None and theirs is not None:
            if len(mine) != len(theirs):
                return False
            if any(part.op == "dots" for part in (*mine, *theirs)):
                return self.ordered(mine, theirs)
            if any(part.op == "num" and not part.value for part in (*mine, *theirs)):
                return self.ordered(mine, theirs)
            return all(
                self.scalars.equal(mul(a, theirs[0]), mul(b, mine[0]))
                for a, b in zip(mine[1:], theirs[1:], strict=True)
            )
        parts, other = (mine, answer) if mine is not None else (theirs or [], gold)
        return len(parts) == 2 and is_scalar(other) and self.scalars.same(divide(*parts), other)

    def same_vector(self, gold: Expr, answer: Expr) -> bool:
        """Equality of tuples, intervals with unknown ends, and matrices."""
        if gold.op == "matrix" and answer.op == "matrix" and len(gold.args) == len(answer.args) > 1:
            return all(self.ordered(list(a.args), list(b.args)) for a, b in zip(gold.args, answer.args, strict=True))
        mine, theirs = vector_items(gold), vector_items(answer)
        if mine is None or theirs is None:
            return False
        if gold.op == answer.op == "group" and len(mine) == 2 and gold.name != answer.name:
            return False
        return self.ordered(mine, theirs)
