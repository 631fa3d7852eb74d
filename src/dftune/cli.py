"""The command line: ``dftune VERB ...``. A verb's module is imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Sequence

from dftune.generate.base import IncompleteError
from dftune.stopped import STATUS as STOPPED
from dftune.stopped import Stopped

_OVERRIDE = re.compile(r"[\w.-]+=")

COMMANDS = {
    "demo": "fine-tune, evaluate and compare a tiny model, with no network, in under five minutes",
    "prepare": "turn a source into a prepared dataset: filtered, split, formatted, tokenised",
    "generate": "sample negatives or rollouts for the training problems, and make training sets from them",
    "train": "train a model as a recipe says",
    "evaluate": "generate completions for benchmarks, grade them, print accuracy with an interval",
    "watch": "evaluate the checkpoints of a run as they appear, beside training",
    "top": "what runs are doing, live in the terminal: progress, loss, accuracy so far, time left",
    "track": "bring the metrics of runs into TensorBoard, Weights & Biases, trackio or MLflow",
    "serve": "serve a model over the OpenAI-compatible protocol, with vLLM or transformers",
    "export": "copy a model out of a run as a Hugging Face folder, at any saved step, and push it to the hub",
    "grade": "grade saved completions again, without a model",
    "study": "train objectives x learning rates x seeds on equal terms, and report with error bars",
    "sweep": "search for the best learning rate, batch size or any other key of a recipe, with Optuna",
    "report": "one HTML file and a Markdown table that compare runs",
    "audit": "check published result tables: averages, gains, possible scores, claims, bold cells, noise",
    "objectives": "every objective with its formula, unit, needs, options and paper",
    "formats": "every prompt format, and what a tokenizer makes of it: which tokens are trained on",
    "doctor": "what is installed, which devices there are, and how to add what is missing",
}


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser, with the arguments of one command; the others are only listed."""
    parser = argparse.ArgumentParser(
        prog="dftune",
        description="Fine-tune language models with objectives beyond SFT, and find out whether they helped.",
        epilog="`dftune VERB --help` explains a verb. Recipes are YAML files; `a.b=c` after one overrides a key.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    verbs = parser.add_subparsers(dest="command", metavar="VERB")
    for name, summary in COMMANDS.items():
        sub = verbs.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == command:
            importlib.import_module(f"dftune.commands.{name}").add_arguments(sub)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; what a user can mend is said on one screen, without a traceback.

    Returns:
        0 on success, 1 when the work failed, 2 when the input was wrong, 75 when a signal stopped a run that
        `--resume` continues, 130 when interrupted from the keyboard.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser(next((argument for argument in arguments if not argument.startswith("-")), None))
    parsed, rest = parser.parse_known_args(arguments)
    # argparse cannot take overrides on both sides of an option
    overrides = [argument for argument in rest if _OVERRIDE.match(argument)] if hasattr(parsed, "overrides") else []
    if unknown := [argument for argument in rest if argument not in overrides]:
        parser.error(f"unknown argument {unknown[0]}; `dftune {parsed.command or ''} --help` lists what there is")
    if overrides:
        parsed.overrides = [*parsed.overrides, *overrides]
    if parsed.version:
        from importlib.metadata import version  # noqa: PLC0415

        print(f"dftune {version('dftune')}")
        return 0
    if parsed.command is None:
        parser.print_help()
        return 2
    _quiet_libraries()
    return _run(parsed)


def _run(parsed: argparse.Namespace) -> int:
    status: int
    try:
        status = importlib.import_module(f"dftune.commands.{parsed.command}").run(parsed)
    except BrokenPipeError:  # the reader of a pipe has gone, as with `dftune ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except KeyboardInterrupt:
        _complain("\nInterrupted. `--resume` continues a training run; anything else goes on by the same command.")
        status = 130
    except Stopped as stopped:
        _complain(f"dftune {parsed.command}: {stopped}")
        status = STOPPED
    except (ArithmeticError, OSError, IncompleteError) as error:
        _complain(f"dftune {parsed.command}: {_message(error)}")
        status = 1
    except ValueError as error:
        _complain(f"dftune {parsed.command}: {error}")
        status = 2
    return status


def _complain(message: str) -> None:
    """Say it on standard error; of several processes launched together the first that has this to say does."""
    if "RANK" in os.environ:
        from dftune.launch import first_to_say  # noqa: PLC0415  (imports torch)

        if not first_to_say(message):
            return
    print(message, file=sys.stderr, flush=True)


def _message(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return f"no such file or folder: {error.filename}"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _quiet_libraries() -> None:
    """Defaults for libraries that are imported later; whoever sets these variables keeps their values."""
    # Threads that spin while they wait make two contended OpenMP threads far slower than one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


if __name__ == "__main__":
    sys.exit(main())
