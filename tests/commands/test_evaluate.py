import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.chains import save_chain

from dftune.cli import main
from dftune.data.prompts import FORMATS

BOX = r"\boxed{"
SEVENS = {before: {after: 1.0} for before, after in zip("\n" + BOX + "7", BOX + "7}", strict=True)}
EIGHTS = {before: {after: 1.0} for before, after in zip("\n" + BOX + "8", BOX + "8}", strict=True)}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with sums.jsonl (two of three answers are 7), where the command is run."""
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"s{index}", "problem": f"{index}?", "answer": answer} for index, answer in enumerate("787")]
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def run(here):
    """A run whose checkpoint of step 2 says 8 and whose final model, of step 5, says 7."""
    folder = Path("runs/mine")
    save_chain(folder / "model", SEVENS)
    save_chain(folder / "checkpoints/step-2/model", EIGHTS)
    prompt_format = {"name": "plain", "fingerprint": FORMATS["plain"].fingerprint}
    manifest = {"name": "mine", "kind": "train", "prompt_format": prompt_format}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "events.jsonl").write_text('{"kind": "train", "step": 5, "time": 0.0}\n')
    (folder / "recipe.yaml").write_text("evaluate:\n  benchmarks: [sums.jsonl]\n  max_tokens: 30\n")
    return folder


def table_rows(capsys):
    """The cells of the printed table without its head."""
    lines = capsys.readouterr().out.splitlines()
    return [line.split() for line in lines[2 : lines.index("")]]


def test_a_run_is_evaluated_on_the_benchmarks_of_its_recipe(run, capsys):
    assert main(["evaluate", "runs/mine"]) == 0
    shown = capsys.readouterr().out
    # 2 of 3: Wilson's 95 % interval is 20.8 to 93.9
    assert "sums       greedy      66.7 %   20.8 to 93.9  3        1      0.0 %         0      10" in shown
    assert "runs/mine/evals/step-5/sums.greedy.jsonl" in shown
    settings = json.loads((run / "evals/step-5/sums.greedy.json").read_text())
    assert settings["sampling"]["max_tokens"] == 30
    assert len((run / "evals/step-5/sums.greedy.jsonl").read_text().splitlines()) == 3


def test_all_checkpoints_are_evaluated_each_at_its_step(run, capsys):
    assert main(["evaluate", "runs/mine", "--all-checkpoints"]) == 0
    rows = table_rows(capsys)
    assert [(row[0], row[1], row[3]) for row in rows] == [("2", "sums", "33.3"), ("5", "sums", "66.7")]
    assert sorted(folder.name for folder in (run / "evals").iterdir()) == ["step-2", "step-5"]


@pytest.mark.parametrize("given", [["runs/mine", "--step", "2"], ["runs/mine/checkpoints/step-2"]])
def test_one_checkpoint_is_evaluated_into_the_run(run, capsys, given):
    assert main(["evaluate", *given]) == 0
    assert [row[2] for row in table_rows(capsys)] == ["33.3"]
    assert (run / "evals/step-2/sums.greedy.jsonl").is_file()


def test_a_model_from_elsewhere_is_evaluated_into_a_folder_of_its_own(here, capsys):
    save_chain(here / "downloads/seven-b", SEVENS)
    assert main(["evaluate", "downloads/seven-b", "--benchmarks", "sums.jsonl:2", "--prompt-format", "plain"]) == 0
    assert [row[2] for row in table_rows(capsys)] == ["50.0"]
    assert (here / "runs/eval-seven-b/evals/step-0/sums.greedy.jsonl").is_file()
    assert json.loads((here / "runs/eval-seven-b/manifest.json").read_text())["kind"] == "evaluate"


def test_options_go_over_the_recipe(run, capsys):
    arguments = ["--protocol", "sample", "--num-samples", "3", "--temperature", "0.5", "--top-p", "0.9"]
    arguments += ["--max-tokens", "5", "--batch-size", "2", "--seed", "4", "--output", "elsewhere"]
    assert main(["evaluate", "runs/mine", *arguments]) == 0
    settings = json.loads(Path("elsewhere/evals/step-5/sums.sample.json").read_text())
    assert settings["sampling"] == {"temperature": 0.5, "top_p": 0.9, "max_tokens": 5, "stop": [], "seed": 4}
    assert settings["num_samples"] == 3
    (row,) = table_rows(capsys)
    assert row[1] == "avg@3"


def test_greedy_takes_one_completion_whatever_the_recipe_samples(run):
    (run / "recipe.yaml").write_text("evaluate: {benchmarks: [sums.jsonl], protocol: sample, num_samples: 4}\n")
    assert main(["evaluate", "runs/mine", "--protocol", "greedy"]) == 0
    assert json.loads((run / "evals/step-5/sums.greedy.json").read_text())["num_samples"] == 1


def test_other_settings_need_overwrite(run, capsys):
    assert main(["evaluate", "runs/mine"]) == 0
    assert main(["evaluate", "runs/mine", "--max-tokens", "3"]) == 2
    assert "sampling.max_tokens: 30 there, 3 asked for" in capsys.readouterr().err
    assert main(["evaluate", "runs/mine", "--max-tokens", "3", "--overwrite"]) == 0
    assert [row[7:10] for row in table_rows(capsys)] == [["3", "1", "100.0"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such/model", "--benchmarks", "sums.jsonl"], "no model folder no/such/model"),
        (["runs", "--benchmarks", "sums.jsonl"], "runs is not a model folder: it has no config.json"),
        (["runs/mine", "--benchmarks", "gone.jsonl"], "Benchmark gone.jsonl is missing"),
        (["runs/mine", "--step", "3"], "no checkpoint of step 3; it has models of the steps 2, 5"),
        (["runs/mine", "--num-samples", "4"], "num_samples 4 would repeat it"),
        (["runs/mine", "--top-p", "7"], "top_p"),
        (["runs/mine", "--prompt-format", "qwen"], "unknown prompt format 'qwen'"),
        (["runs/mine/model", "--all-checkpoints"], "give the run itself"),
    ],
)
def test_mistakes_are_explained_on_a_screen_without_a_traceback(run, capsys, arguments, message):
    assert main(["evaluate", *arguments]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) < 15


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_an_error(run, capsys):
    assert main(["evaluate", "runs/mine", "--device", "cuda"]) == 2
    assert "sees no CUDA device" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_what_was_saved_is_kept(run):
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "from dftune.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    rows = [{"id": f"s{index}", "problem": f"{index}?", "answer": "7"} for index in range(40)]
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["evaluate", "runs/mine", "--batch-size", "4"]
    done = subprocess.run(
        [sys.executable, "-c", limited, *command], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    saved = (run / "evals/step-5/sums.greedy.jsonl").read_text()
    assert 0 < len([json.loads(line) for line in saved.splitlines()]) < 40
    assert main(command) == 0
    saved = (run / "evals/step-5/sums.greedy.jsonl").read_text()
    assert [json.loads(line)["id"] for line in saved.splitlines()] == [row["id"] for row in rows]
