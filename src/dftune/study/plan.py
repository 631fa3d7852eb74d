"""From the recipe of a study to its cells and tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dftune import config
from dftune.config import RecipeError
from dftune.evaluate.config import EvaluateConfig
from dftune.files import canonical_json
from dftune.recipe import Recipe
from dftune.study.board import State
from dftune.study.config import ObjectiveChoice, StudyRecipe, begin_folder, kept_apart, merged
from dftune.study.select import Choice, check_select, choose

Kind = Literal["prepare", "base", "tune", "run"]
Key = tuple[str, str, str]
"""Model, condition and label of the objective; empty where the study does not name models or conditions."""
_EXTENDED = ("study.objectives", "study.lrs", "study.seeds", "study.tune_seeds", "study.models", "study.conditions")
"""What may grow in a study that has begun: the cells that are there stay what they are."""


@dataclass(frozen=True)
class Cell:
    """One run of the study.

    Attributes:
        name: of its folder under ``cells/``.
        key: what it is a replicate of, together with ``lr``.
        lr: peak learning rate.
        seed: of the training.
        recipe: an ordinary, complete recipe.
    """

    name: str
    key: Key
    lr: float
    seed: int
    recipe: Recipe


@dataclass(frozen=True)
class Task:
    """A piece of work that one process does at a time.

    Attributes:
        kind: prepare a dataset, evaluate a base model, train and choose (``tune``), or train and evaluate (``run``).
        name: unique in the study.
        recipe: says what to do.
        after: tasks that must be done before.
        selects: whether the selection metric is measured.
        tests: whether the benchmarks are run.
    """

    kind: Kind
    name: str
    recipe: Recipe
    after: tuple[str, ...] = ()
    selects: bool = False
    tests: bool = False


@dataclass(frozen=True)
class Plan:
    """Everything that a study consists of.

    Attributes:
        recipe: of the study.
    """

    recipe: StudyRecipe

    @property
    def folder(self) -> Path:
        """Of the study."""
        return self.recipe.output

    @cached_property
    def keys(self) -> tuple[tuple[Key, ObjectiveChoice], ...]:
        """What is compared: models, conditions and objectives, in the order of the recipe."""
        study = self.recipe.study
        return tuple(
            ((model, condition, choice.called), choice)
            for model in study.models or {"": {}}
            for condition in study.conditions or {"": {}}
            for choice in study.objectives
        )

    def grid(self, seeds: Sequence[int]) -> Iterator[Cell]:
        """Every objective with each of its learning rates and these seeds."""
        for key, choice in self.keys:
            for lr in self.recipe.study.rates(choice) or (None,):
                for seed in seeds:
                    yield self.cell(key, choice, lr, seed)

    def cell(self, key: Key, choice: ObjectiveChoice, lr: float | None, seed: int) -> Cell:
        """One cell with its recipe.

        Raises:
            RecipeError: the recipe of the cell is not valid.
        """
        if (known := self._made.get((key, lr, seed))) is not None:
            return known
        model, condition, label = key
        study, where = self.recipe.study, "-".join(part for part in (model, condition) if part)
        values: dict[str, Any] = dict(self.recipe.shared)
        changes = ({"model": study.models.get(model, {})}, study.conditions.get(condition, {}), choice.overrides)
        for overrides in changes:
            values = merged(values, overrides)
        own = {"objective": {**choice.options, "name": choice.name}, "seed": seed}
        own |= {"data.prepared": str(self.folder / "prepared" / (where or "data"))}
        own |= {} if lr is None else {"optimizer.lr": lr}
        values = merged({key: value for key, value in values.items() if key != "objective"}, own)
        values = kept_apart(values, study.select)
        rate = lr if lr is not None else (values.get("optimizer") or {}).get("lr")
        name = "-".join(part for part in (where, label, f"lr{_rate(rate)}", f"s{seed}") if part)
        values |= {"name": name, "output": str(self.folder / "cells" / name)}
        recipe = config.validate(values, Recipe, f"{self.recipe.name}, cell {name}")
        return self._made.setdefault((key, lr, seed), Cell(name, key, recipe.optimizer.lr, seed, recipe))

    @cached_property
    def _made(self) -> dict[tuple[Key, float | None, int], Cell]:
        """Cells by what they are: tasks are listed again and again, and validating a recipe takes a while."""
        return {}

    def check(self) -> None:
        """Find what is wrong with any cell before the first is trained.

        Raises:
            ValueError: everything that is, each problem once.
        """
        from dftune.train.needs import check_recipe  # noqa: PLC0415

        study = self.recipe.study
        problems: dict[str, None] = {}
        cells: list[Cell] = []
        for key, choice in self.keys:
            try:
                cell = self.cell(key, choice, next(iter(study.rates(choice)), None), study.seeds[0])
                check_recipe(cell.recipe)
                cells.append(cell)
            except RecipeError as error:
                problems |= dict.fromkeys(error.problems)
            except ValueError as error:
                problems[str(error)] = None
        problems |= dict.fromkeys(_unequal(cells, study.equal))
        if not problems:
            for recipe in {canonical_json(c.recipe.evaluate.model_dump(mode="json")): c.recipe for c in cells}.values():
                if study.select is not None:
                    check_select(study.select, recipe)
        if problems:
            raise RecipeError(str(self.recipe.name), list(problems))
        names = [cell.name for cell in self.grid(study.seeds)]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two cells would be called {twice}: learning rates that differ in the 4th digit are one.")

    def begin(self) -> None:
        """Write down what the study is, or check that it is what was begun.

        Raises:
            ValueError: the folder holds a study whose cells would be others.
        """
        advice = "Objectives, rates, seeds, models and conditions may be added"
        begin_folder(self.folder, "study", self.recipe, may_change=_EXTENDED, advice=advice)

    @classmethod
    def of_folder(cls, folder: Path) -> Plan:
        """The plan of a study that has begun.

        Raises:
            ValueError: the folder holds none.
        """
        path = folder / "study.yaml"
        if not path.is_file():
            raise ValueError(f"{folder} holds no study: there is no study.yaml. `dftune study RECIPE` begins one.")
        return cls(config.validate(config.read_yaml(path, []), StudyRecipe, str(path)))

    # --- tasks ---------------------------------------------------------------------------------------

    def tasks(self, states: Mapping[str, State]) -> list[Task]:
        """All tasks that are known: those of the second stage when the learning rates have been chosen."""
        study = self.recipe.study
        first = list(self.first_cells)
        runs: list[tuple[Cell, Kind]] = [(cell, "tune" if self.two_stages else "run") for cell in first]
        if self.two_stages and (chosen := self.choices(states)) is not None:
            runs += [(cell, "run") for cell in self.chosen_cells(chosen)]
        shared = {task.name: task for cell, _ in runs for task in self._shared(cell)}
        cells = [
            Task(
                kind,
                f"{kind}.{cell.name}",
                cell.recipe,
                after=(_prepare_name(cell.recipe),),
                selects=study.select is not None and (kind == "tune" or not self.two_stages),
                tests=kind == "run" and bool(cell.recipe.evaluate.benchmarks),
            )
            for cell, kind in runs
        ]
        return [*shared.values(), *cells]

    @property
    def two_stages(self) -> bool:
        """Whether learning rates are chosen before the benchmarks are run."""
        return self.recipe.study.tunes and self.recipe.study.stages == "tune"

    @cached_property
    def first_cells(self) -> tuple[Cell, ...]:
        """Cells that do not depend on a choice."""
        study = self.recipe.study
        return tuple(self.grid(study.first_seeds if self.two_stages else study.seeds))

    def _shared(self, cell: Cell) -> Iterator[Task]:
        """Work that several cells need done once."""
        recipe = cell.recipe
        yield Task("prepare", _prepare_name(recipe), recipe)
        if recipe.evaluate.benchmarks and recipe.model.path is not None:
            yield Task("base", _base_name(cell, self._base_names), recipe)

    @cached_property
    def _base_names(self) -> dict[bytes, str]:
        """Name by what is evaluated and how: a second prompt format is a second evaluation of the base."""
        names: dict[bytes, str] = {}
        for cell in self.first_cells:
            model, condition, _ = cell.key
            name = "-".join(part for part in ("base", model) if part)
            unused = name if name not in names.values() else f"{name}-{condition}"
            names.setdefault(_base_identity(cell.recipe), unused)
        return names

    # --- the choice of the learning rate -------------------------------------------------------------

    def choices(self, states: Mapping[str, State]) -> list[Choice] | None:
        """The learning rate of every objective; None while a run that it depends on has not ended."""
        study, kind = self.recipe.study, "tune" if self.two_stages else "run"
        found: dict[Key, dict[float, list[float | None]]] = {}
        for cell in self.first_cells:
            state = states.get(f"{kind}.{cell.name}")
            if state is None:
                return None
            value = state.value if study.select is not None else 0.0
            found.setdefault(cell.key, {}).setdefault(cell.lr, []).append(value if state.status == "done" else None)
        if study.select is None:  # one rate each: it counts with the seeds that did not fail
            return [Choice(key, rate, ((rate, None),)) for key, rates in found.items() for rate in rates]
        return [choose(key, rates, higher=study.select.higher_is_better) for key, rates in found.items()]

    def chosen_cells(self, chosen: Sequence[Choice]) -> Iterator[Cell]:
        """The chosen learning rate of every objective with all seeds."""
        by_key = {choice.key: choice for choice in chosen}
        for key, objective in self.keys:
            lr = by_key[key].lr if key in by_key else None
            if lr is not None:
                for seed in self.recipe.study.seeds:
                    yield self.cell(key, objective, lr if self.recipe.study.rates(objective) else None, seed)


def _rate(value: Any) -> str:
    """``3e-4``."""
    if not isinstance(value, int | float):
        return "none"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def _prepare_name(recipe: Recipe) -> str:
    return f"prepare.{recipe.data.prepared.name}"


def _base_name(cell: Cell, names: Mapping[bytes, str]) -> str:
    return f"base.{names[_base_identity(cell.recipe)]}"


def base_settings(recipe: Recipe) -> EvaluateConfig:
    """How a base model is evaluated beside its runs: in the format that they are trained with."""
    return recipe.evaluate.model_copy(
        update={"prompt_format": recipe.evaluate.prompt_format or recipe.data.prompt_format}
    )


def _base_identity(recipe: Recipe) -> bytes:
    return canonical_json([recipe.model.path, base_settings(recipe).model_dump(mode="json")])


def _unequal(cells: Sequence[Cell], equal: Sequence[str]) -> Iterator[str]:
    """Reasons known beforehand why cells cannot be equal in what they must be."""
    from dftune.objectives import get_objective  # noqa: PLC0415

    grouped = {
        cell.key[2]: "groups" in get_objective(cell.recipe.objective.name, **cell.recipe.objective.options).needs
        for cell in cells
    }
    if "tokens" in equal and len(set(grouped.values())) > 1:
        names = ", ".join(name for name, is_grouped in grouped.items() if is_grouped)
        yield (
            f"study.equal: {names} also learns from negatives, and so sees more tokens than the others. Leave tokens "
            "out of study.equal ([examples, steps]), and say so where you report it"
        )
    for cell in cells:
        if (cell.recipe.distributed.world_size or 1) > 1:
            yield "distributed.world_size: a study trains every cell in one process; leave it out"
