"""The ``study`` section of a recipe, and how it is read beside the sections that every cell shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from dftune import config
from dftune.config import Config
from dftune.files import check_name, write_text
from dftune.report.groups import flatten
from dftune.study.select import SelectConfig

Rate = Annotated[float, Field(gt=0)]
Equality = Literal["examples", "steps", "tokens"]
Overrides = dict[str, Any]

_OWN = ("objective", "seed", "optimizer.lr", "data.prepared")
"""Recipe keys that the study decides for each cell."""
_HOW_ALONE = ("train.inner_loop", "train.micro_batch_", "model.gradient_checkpointing", "scorer.")
"""What an objective may have of its own: how its steps are computed. Anything else would be a second difference."""


class ObjectiveChoice(Config):
    """One of the objectives that are compared."""

    name: str
    """Name of the objective (`dftune objectives`)."""
    options: dict[str, Any] = Field(default={})
    """Its options."""
    label: str | None = None
    """What its cells are called; null is the name. Two variants of one objective need two labels."""
    lrs: tuple[Rate, ...] | None = None
    """Learning rates of its own, as many as every other objective has; null takes study.lrs."""
    overrides: Overrides = Field(default={})
    """Recipe keys that this objective needs (train.inner_loop, scorer, model.gradient_checkpointing, micro-batches)."""

    @field_validator("overrides")
    @classmethod
    def _no_second_difference(cls, values: Overrides) -> Overrides:
        other = [key for key in flatten(values) if not key.startswith(_HOW_ALONE)]
        if other:
            raise ValueError(
                f"{', '.join(other)}: objectives are compared with everything else equal. Only {', '.join(_HOW_ALONE)} "
                "may differ; what all objectives are to be tried under goes into study.conditions"
            )
        return values

    @property
    def called(self) -> str:
        """The label, else the name."""
        return self.label or self.name.rpartition(":")[2]


class StudyConfig(Config):
    """What is varied, what must be equal, and how a learning rate is chosen."""

    objectives: Annotated[tuple[ObjectiveChoice, ...], Field(min_length=1)]
    """The objectives."""
    lrs: tuple[Rate, ...] = ()
    """Learning rates that each objective is tried with; empty: the recipe's own optimizer.lr, untuned."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    """Training seeds: order of the examples, dropout."""
    models: dict[str, Overrides] = Field(default={})
    """Models by name, each with its keys of the model section; empty: the recipe's own."""
    conditions: dict[str, Overrides] = Field(default={})
    """Data conditions by name, each with the recipe keys that it changes; empty: the recipe as it stands."""
    stages: Literal["tune", "grid"] = "tune"
    """tune: every learning rate with tune_seeds, scored on held-out problems; then the best of each objective with all
    seeds, scored on the benchmarks. grid: everything with all seeds, on both."""
    tune_seeds: tuple[int, ...] | None = None
    """Seeds of the first stage; null: the first of seeds."""
    select: SelectConfig | None = None
    """How the learning rate is chosen; required where there is more than one."""
    equal: tuple[Equality, ...] = ("examples", "steps", "tokens")
    """What must be the same for all objectives; checked in what the runs have logged."""

    @field_validator("seeds", "tune_seeds", "lrs")
    @classmethod
    def _each_once(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if values is not None and len(set(values)) < len(values):
            raise ValueError(f"{list(values)} names something twice; the same run twice is no second one")
        return values

    @field_validator("models", "conditions")
    @classmethod
    def _safe_names(cls, values: dict[str, Overrides]) -> dict[str, Overrides]:
        for name in values:
            check_name(name, "the name")
        return values

    @model_validator(mode="after")
    def _comparable(self) -> StudyConfig:
        names = [choice.called for choice in self.objectives]
        if len(set(names)) < len(names):
            raise ValueError(f"objectives: {', '.join(names)} are not all different; give variants a label each")
        sizes = {choice.called: len(self.rates(choice)) for choice in self.objectives}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(
                f"the grids of learning rates differ in size ({listed}): who is tuned more wins more. Give every "
                "objective as many rates"
            )
        if self.tunes and self.select is None:
            raise ValueError("several learning rates need study.select, which says how one of them is chosen")
        return self

    @property
    def tunes(self) -> bool:
        """Whether there is a learning rate to choose."""
        return any(len(self.rates(choice)) > 1 for choice in self.objectives)

    @property
    def first_seeds(self) -> tuple[int, ...]:
        """Seeds that the learning rate is chosen with."""
        return self.seeds if self.stages == "grid" else self.tune_seeds or self.seeds[:1]

    def rates(self, choice: ObjectiveChoice) -> tuple[float, ...]:
        """The grid of an objective; empty where the recipe's own rate is taken."""
        return self.lrs if choice.lrs is None else choice.lrs


class StudyRecipe(Config):
    """A recipe with a ``study`` section: what all cells share, and what they differ in."""

    name: str
    """Name of the study."""
    output: Path
    """Its folder; default studies/NAME."""
    study: StudyConfig
    """What is varied."""
    shared: dict[str, Any]
    """The other sections of the recipe, as they stand."""


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudyRecipe:
    """Read the recipe of a study.

    Args:
        path: YAML file; ``.yaml`` may be left out.
        overrides: ``a.b=c`` assignments.

    Raises:
        RecipeError: the study section, or what stands beside it, is not what it must be.
        FileNotFoundError: no such file.
    """
    values, where, problems = config.read_with("study", path, overrides)
    return make_study(values, where, problems)


def make_study(values: Mapping[str, Any], where: str, problems: Sequence[str] = ()) -> StudyRecipe:
    """The same from plain values.

    Raises:
        RecipeError: with every problem found.
    """
    found = list(problems)
    head = divided(values, "study", found)
    found += [f"{key}: {_OWN_REASON[key]}" for key in _given(head["shared"], values.get("study"))]
    for section in ("models", "conditions"):
        for name, changes in (at(values, f"study.{section}") or {}).items():
            whole = merged({}, {"model": changes} if section == "models" else changes)
            found += [f"study.{section}.{name}.{key}: {_OWN_REASON[key]}" for key in _given(whole, values["study"])]
    return config.validate(head, StudyRecipe, where, found)


def divided(values: Mapping[str, Any], section: str, problems: list[str]) -> dict[str, Any]:
    """A recipe of many runs: its name, folder and own section, and under ``shared`` what the runs have in common.

    Args:
        values: of the file.
        section: ``study`` or ``sweep``.
        problems: what is wrong with the name is added here.
    """
    own = ("name", "output", section)
    head = {key: values[key] for key in own if values.get(key) is not None}
    head.setdefault("output", f"{_FOLDERS[section]}/{head.get('name')}")
    try:
        check_name(str(head.get("name", section)), "name")
    except ValueError as error:
        problems.append(str(error))
    return {**head, "shared": {key: value for key, value in values.items() if key not in own}}


_FOLDERS = {"study": "studies", "sweep": "sweeps"}
_OWN_REASON = {
    "objective": "a study names its objectives in study.objectives; leave it out",
    "seed": "a study names its seeds in study.seeds; leave it out",
    "optimizer.lr": "the rates of a study are in study.lrs; leave it out, or leave study.lrs out",
    "data.prepared": "a study prepares its data in its own folder; leave it out",
}


def _given(shared: Mapping[str, Any], study: Any) -> list[str]:
    """Keys that stand in the recipe although the study decides them."""
    found = [key for key in _OWN if at(shared, key) is not None]
    return [key for key in found if key != "optimizer.lr" or (_has_rates(study))]


def _has_rates(study: Any) -> bool:
    choices = at(study, "objectives") if isinstance(study, Mapping) else None
    own = [choice.get("lrs") for choice in choices or () if isinstance(choice, Mapping)]
    return isinstance(study, Mapping) and any([study.get("lrs"), *own])


def at(values: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key, None where there is none."""
    value: Any = values
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with ``overrides`` put into it, section by section; a dotted key names a key of a section."""
    result = dict(values)
    for key, value in overrides.items():
        head, dot, rest = key.partition(".")
        inner = {rest: value} if dot else value
        there = result.get(head)
        mixes = isinstance(inner, Mapping) and (dot or isinstance(there, Mapping))
        result[head] = merged(there if isinstance(there, Mapping) else {}, inner) if mixes else inner
    return result


def kept_apart(values: Mapping[str, Any], select: SelectConfig | None) -> dict[str, Any]:
    """Values of a recipe that does not train on the problems that a choice goes by."""
    if select is None or select.benchmark is None:
        return dict(values)
    there = at(values, "data.decontaminate.benchmarks") or ()
    return merged(values, {"data.decontaminate.benchmarks": [*there, select.benchmark]})


def begin_folder(folder: Path, what: str, recipe: Config, *, may_change: tuple[str, ...], advice: str) -> None:
    """Write down a study or a sweep in its folder, or check that it is what was begun there.

    Args:
        folder: of the study or sweep.
        what: ``study`` or ``sweep``; names the file.
        recipe: to be kept.
        may_change: beginnings of keys that leave what is there as it is.
        advice: what may change, in words.

    Raises:
        ValueError: the folder holds something else.
    """
    path, now = folder / f"{what}.yaml", flatten(recipe.model_dump(mode="json"))
    if path.is_file():
        before = flatten(config.read_yaml(path, []))
        differing = sorted(key for key in before | now if before.get(key) != now.get(key))
        changed = [key for key in differing if not key.startswith(may_change)]
        if changed:
            listed = "\n".join(
                f"  {key.removeprefix('shared.')}: {before.get(key)!r} then, {now.get(key)!r} now" for key in changed
            )
            raise ValueError(
                f"{folder} holds a {what} with other settings:\n{listed}\n{advice}; for anything else give this one "
                "another name."
            )
    elif folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{folder} is there and holds no {what} (no {path.name}). Choose another output.")
    write_text(path, config.dump(recipe))
