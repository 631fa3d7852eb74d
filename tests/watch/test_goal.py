import pytest

from dftune.recipe import Recipe
from dftune.watch.check import check_watch
from dftune.watch.config import GoalConfig, KeepBestConfig, StopConfig
from dftune.watch.goal import best_steps, scores, stop_reason


def score(step, accuracy, benchmark="sums", source="watch"):
    row = {"kind": "evaluation", "step": step, "time": 0.0, "source": source, "benchmark": benchmark}
    return {**row, "protocol": "greedy", "accuracy": accuracy}


def test_accuracy_is_the_mean_over_the_watcher_s_benchmarks():
    rows = [score(5, 0.25), score(5, 0.75, "words"), score(10, None), score(5, 1.0, "extra", source="evaluate")]
    assert scores(rows, GoalConfig()) == {5: 0.5}


def test_a_metric_can_be_named_as_trackers_name_it():
    rows = [score(5, 0.25), score(5, 0.75, "words"), {"kind": "validation", "step": 5, "time": 0.0, "nll": 2.0}]
    assert scores(rows, GoalConfig(metric="eval/words/greedy/accuracy")) == {5: 0.75}
    assert scores(rows, GoalConfig(metric="validation/nll")) == {5: 2.0}
    assert scores(rows, GoalConfig(metric="eval/none/greedy/accuracy")) == {}


@pytest.mark.parametrize(
    ("metric", "mode", "best"),
    [("accuracy", None, [2, 3]), ("accuracy", "min", [1, 2]), ("validation/nll", None, [1, 2])],
)
def test_best_is_most_of_an_accuracy_and_least_of_a_loss(metric, mode, best):
    assert best_steps({1: 0.1, 2: 0.4, 3: 0.4}, GoalConfig(metric=metric, mode=mode), 2) == best


def test_training_stops_when_as_many_checkpoints_as_patience_says_were_no_better():
    goal = StopConfig(patience=2)
    assert stop_reason({}, goal) is None
    assert stop_reason({10: 0.5, 20: 0.4}, goal) is None
    assert stop_reason({10: 0.5, 20: 0.4, 30: 0.6, 40: 0.6}, goal) is None
    reason = stop_reason({10: 0.5, 20: 0.4, 30: 0.6, 40: 0.6, 50: 0.3}, goal)
    assert reason == "accuracy has not been better than 0.6 of step 30 in the 2 results since"


def test_better_by_less_than_min_delta_is_not_better():
    found = {1: 0.50, 2: 0.51, 3: 0.52}
    assert stop_reason(found, StopConfig(patience=2)) is None
    assert "0.5 of step 1" in stop_reason(found, StopConfig(patience=2, min_delta=0.05))
    assert stop_reason({1: 2.0, 2: 1.0, 3: 0.5}, StopConfig(metric="validation/nll", patience=2)) is None


def test_a_metric_that_is_none_is_refused():
    with pytest.raises(ValueError, match="expected accuracy, eval/BENCHMARK"):
        GoalConfig(metric="loss")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("watch.enabled=true", "train.checkpoint_every=null"), "wants checkpoints"),
        (("watch.enabled=true",), "wants something to evaluate"),
        (("watch.enabled=true", "evaluate.server=[http://127.0.0.1:1/v1]"), "keeps the weights it was started with"),
        (("watch.stop.patience=2",), "comes from a watcher"),
        (("train.keep_best.number=1",), "comes from a watcher"),
        (("train.keep_best.metric=validation/nll",), "wants train.validate_every"),
        (("train.keep_best.metric=validation/nll", "train.checkpoint_every=null"), "compares checkpoints"),
    ],
)
def test_what_could_do_nothing_is_refused_before_training(make_recipe, overrides, message):
    recipe, _ = make_recipe(overrides=overrides)
    assert isinstance(recipe, Recipe)
    with pytest.raises(ValueError, match=message):
        check_watch(recipe)


def test_checkpoints_can_be_kept_by_held_out_nll_without_a_watcher(make_recipe):
    recipe, _ = make_recipe(overrides=("train.keep_best.metric=validation/nll", "train.validate_every=3"))
    check_watch(recipe)
    assert recipe.train.keep_best == KeepBestConfig(metric="validation/nll")
