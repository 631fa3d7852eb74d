"""Which runs are replicates of one another, what the groups are called, and which group each is compared with."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from dftune.files import canonical_json
from dftune.report.load import Row, Run
from dftune.report.wording import setting

_NOT_A_CONDITION = frozenset({"name", "output", "seed", "data.prepared"})
"""Recipe keys that may differ between replicates."""
LEARNING_RATE = "optimizer.lr"
_DATA_FILES = frozenset({".jsonl", ".json", ".csv", ".parquet"})


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        label: the objective, and the recipe keys in which the groups of this report differ; an option of the objective
            only where groups with that objective do.
        objective: its name.
        details: those keys with their values, ``(("data.source", "source noisy"), ...)``.
        settings: the recipe as ``{"a.b": value}``, without what may differ between replicates.
        runs: by seed.
    """

    label: str
    objective: str
    settings: Row
    runs: tuple[Run, ...]
    details: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The label without the details."""
        return self.label.removesuffix(f" ({', '.join(shown for _, shown in self.details)})")

    @property
    def method(self) -> str:
        """Its objective with what of its options tells it from others: ``power (alpha 0.5)``."""
        return _label(self.name, [one for one in self.details if one[0].startswith("objective.")])


def group_runs(runs: Sequence[Run]) -> tuple[tuple[Group, ...], tuple[str, ...]]:
    """Sort trained runs into groups of replicates.

    Groups stand in the order in which their first run came, those of ``sft`` first, and each group behind the one it is
    compared with.

    Returns:
        The groups, and notes on what was left out: of two runs with one recipe and one seed the later started counts,
        since the same seed twice is no second seed.
    """
    members: dict[bytes, list[Run]] = defaultdict(list)
    for run in runs:
        members[canonical_json(condition(run))].append(run)
    notes: list[str] = []
    unique = [_one_per_seed(group, notes) for group in members.values()]
    unique.sort(key=lambda group: group[0].objective != "sft")  # stable: the order of appearance otherwise
    settings = [condition(group[0]) for group in unique]
    groups = tuple(
        Group(_label(group[0].objective or group[0].name, details), group[0].objective, values, tuple(group), details)
        for details, values, group in zip(_details(settings), settings, unique, strict=True)
    )
    return tuple(_beside_references(groups)), tuple(notes)


def _beside_references(groups: Sequence[Group]) -> Iterator[Group]:
    references = {id(group): reference_of(group, groups) for group in groups}
    for group in groups:
        if references[id(group)] is None:
            yield group
            yield from (other for other in groups if references[id(other)] is group)


def condition(run: Run) -> dict[str, Any]:
    """What replicates share: the recipe with dotted keys, less name, output, seed and the folder of prepared data.

    What was published for the recipe is no part of it either.

    A run without a recipe is known by its objective and model, as its manifest has them.
    """
    if not run.recipe:
        return {"objective.name": run.objective, "model.fingerprint": run.model_fingerprint, "run": run.name}
    recipe = {key: value for key, value in run.recipe.items() if key != "published"}
    return {key: value for key, value in flatten(recipe).items() if key not in _NOT_A_CONDITION}


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys; an empty section stands for itself."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _one_per_seed(runs: Sequence[Run], notes: list[str]) -> list[Run]:
    by_seed: dict[int | None, Run] = {}
    for run in sorted(runs, key=lambda run: str(run.manifest.get("started", ""))):
        if run.seed in by_seed:
            notes.append(
                f"{by_seed[run.seed].name} and {run.name} have the same recipe and the same seed {run.seed}; "
                "only the later one counts."
            )
        by_seed[run.seed] = run
    return [by_seed[seed] for seed in sorted(by_seed, key=lambda seed: -1 if seed is None else seed)]


def _label(name: str, details: Sequence[tuple[str, str]]) -> str:
    """``NAME (key value, ...)``."""
    return f"{name} ({', '.join(shown for _, shown in details)})" if details else name


def _details(settings: Sequence[Row]) -> list[tuple[tuple[str, str], ...]]:
    """The keys in which groups differ, each by the shortest ending that names it, with the value in each group."""
    keys = [key for key in dict.fromkeys(key for values in settings for key in values) if key != "objective.name"]
    differing = [key for key in keys if any(_differs(key, values, settings) for values in settings)]
    endings = Counter(key.rsplit(".", 1)[-1] for key in differing)
    short = {key: ending if endings[ending := key.rsplit(".", 1)[-1]] == 1 else key for key in differing}
    shown = {key: _shown([values.get(key) for values in settings]) for key in differing}
    return [
        tuple(
            (key, f"{short[key]} {shown[key][index]}")
            for key in differing
            if key in values and _differs(key, values, settings)
        )
        for index, values in enumerate(settings)
    ]


def _differs(key: str, one: Row, settings: Sequence[Row]) -> bool:
    """Whether groups differ in a key: in an option of the objective, those with the objective of ``one``."""
    option, name = key.startswith("objective."), "objective.name"
    others = [values for values in settings if not option or values.get(name) == one.get(name)]
    return len({canonical_json(values.get(key)) for values in others}) > 1


def _shown(values: Sequence[Any]) -> list[str]:
    """Values of one key for people: short numbers, and of paths the last part where that tells them apart."""
    texts = [
        setting(value) if isinstance(value, float) else "null" if value is None else str(value) for value in values
    ]
    last = [_last_part(text) for text in texts]
    return last if len(set(last)) == len(set(texts)) else texts


def _last_part(text: str) -> str:
    path = PurePosixPath(text)
    return (path.stem if path.suffix in _DATA_FILES else path.name) or text


def reference_of(group: Group, groups: Sequence[Group]) -> Group | None:
    """What ``group`` is compared with: of the groups of the first objective the one with the most similar recipe.

    Groups of ``sft`` come first where there are any, so the reference is then ``sft`` on the same data, where that
    was run. Learning rates, which each objective may have its own of, only choose between recipes that are equally
    similar in everything else. A group of the first objective has no reference.
    """
    first = groups[0].objective
    if group.objective == first:
        return None
    candidates = [other for other in groups if other.objective == first]
    return min(candidates, key=lambda other: _distance(group.settings, other.settings))


def _distance(left: Row, right: Row) -> tuple[int, bool]:
    differing = _differing(left, right)
    return len(differing - {LEARNING_RATE}), LEARNING_RATE in differing


def name_of_reference(group: Group, reference: Group) -> str:
    """The reference's objective where it differs from ``group`` in nothing else, its whole label otherwise."""
    return reference.label if _differing(group.settings, reference.settings) else reference.objective


def _differing(left: Row, right: Row) -> set[str]:
    """Keys beside those of the objective."""
    keys = {key for key in (*left, *right) if not key.startswith("objective.")}
    return {key for key in keys if canonical_json(left.get(key)) != canonical_json(right.get(key))}
