"""``dftune prepare``."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from dftune.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dftune.data.dataset import Dropped, Manifest, PreparedDataset

_MOST_CHARACTERS = 1500

_EPILOG = """\
examples:
  dftune prepare recipes/examples/gsm8k-tiny.yaml
  dftune prepare my.yaml data.source=rows.csv data.columns.problem=question data.columns.solution=output
  dftune prepare pairs.yaml data.columns.problem=prompt data.columns.solution=chosen data.columns.negatives=rejected
  dftune prepare chat.yaml data.columns.messages=messages data.turns=all
  dftune prepare numina.yaml data.source=numinamath-cot 'data.sources=[synthetic_amc, synthetic_math]'
  dftune prepare my.yaml data.max_length=1024 data.truncation=left --force
  dftune prepare my.yaml --export chat-jsonl exported/my

The source (recipe key `data.source`) is a JSONL, JSON, CSV, parquet or Arrow file, a folder of such files, a dataset
saved with save_to_disk, a Hugging Face dataset id, or the name of a known training set (docs/data.md). Every row is
checked, filtered, rendered in the prompt format and tokenised with the model's tokenizer. The completion is trained on,
the prompt is not; of a conversation (`data.columns.messages`) every answer, or the last one (`data.turns=last`). With
`data.columns.negatives` the other completions of the same problem are prepared too. Every row and every negative that
is left out is counted with its reason.

Written to `data.prepared`: train.parquet, validation.parquet, manifest.json, quality.json (duplicates, sources, kinds
of answers, languages, answers that do not grade against their solution) and the tokenizer. A folder that already
holds exactly this is left as it is; one that was prepared otherwise is replaced only with --force. `dftune train`
prepares by itself where there is no such folder yet.

--export writes exactly the rows that are trained on, and the held-out ones, for other training code: chat-jsonl
(instruction, output), verl-parquet (prompt, reward_model, extra_info), generated (real, generated_0, ...).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("recipe", type=Path, help="YAML recipe; .yaml may be left out")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="recipe keys to override")
    parser.add_argument(
        "--export",
        nargs=2,
        action="append",
        default=[],
        metavar=("FORMAT", "FOLDER"),
        help="also write chat-jsonl, verl-parquet or generated into a new folder; may be given several times",
    )
    parser.add_argument("--report", action="store_true", help="show the whole quality report, with examples")
    parser.add_argument("--force", action="store_true", help="replace a dataset that was prepared with other settings")


def run(args: argparse.Namespace) -> int:
    """Prepare a dataset and show what is in it."""
    from dftune.data.export import KINDS, export  # noqa: PLC0415
    from dftune.recipe import load_recipe  # noqa: PLC0415

    unknown = [kind for kind, _ in args.export if kind not in KINDS]
    if unknown:
        raise ValueError(f"--export: there is no format {unknown[0]!r}; expected one of {', '.join(KINDS)}.")

    recipe = load_recipe(args.recipe, args.overrides)

    from dftune.data.dataset import PreparedDataset  # noqa: PLC0415
    from dftune.data.prepare import prepare  # noqa: PLC0415

    with _Stages() as stages:
        prepare(recipe, force=args.force, progress=stages)
    dataset = PreparedDataset.load(recipe.data.prepared)
    state = "already prepared" if stages.name == "already prepared" else "prepared"
    print(f"{recipe.name}: {state} in {recipe.data.prepared}\n")
    print(summarize(dataset.manifest))
    print()
    print(_quality(recipe.data.prepared, short=not args.report))
    if args.report:
        print(_packed(dataset, recipe.train.micro_batch_tokens * recipe.distributed.sequence_parallel))
    print()
    print(show_example(dataset))
    for kind, folder in args.export:
        counts = export(kind, dataset, recipe.data, Path(folder))
        listed = ", ".join(f"{name} ({count:,} rows)" for name, count in counts.items())
        print(f"\nexported as {kind} to {folder}: {listed}")
    return 0


def _quality(folder: Path, *, short: bool) -> str:
    from dftune.data.quality import QUALITY_NAME, describe_quality  # noqa: PLC0415
    from dftune.files import read_json  # noqa: PLC0415

    path = folder / QUALITY_NAME
    if not path.is_file():
        return f"There is no {path}; `dftune prepare RECIPE --force` writes it."
    return describe_quality(read_json(path), short=short)


def _packed(dataset: PreparedDataset, budget: int) -> str:
    from dftune.data.packing import unused_share  # noqa: PLC0415

    lengths = dataset.lengths("train")
    if len(lengths) == 0 or lengths.max() > budget:
        return f"packing: a training row is longer than train.micro_batch_tokens={budget:,}"
    shares = {
        "best fit": unused_share(lengths, budget, "best_fit"),
        "in order": unused_share(lengths, budget, "in_order"),
        "padded by length": unused_share(lengths, budget, "length_sorted"),
    }
    listed = ", ".join(f"{name} {share:.2%}" for name, share in shares.items())
    return f"packing: of rows of {budget:,} tokens stay unused: {listed}"


def summarize(manifest: Manifest) -> str:
    """Counts by reason, sizes of the splits and statistics of the tokens, as an aligned text."""
    counts = manifest["counts"]
    lines = [("rows read", counts["rows_read"], ""), *_left_out(counts["dropped"])]
    lines += [(f"cut: {what}", cut["count"], _where(cut)) for what, cut in manifest["truncated"].items()]
    lines += [("training rows", manifest["num_train"], ""), ("held-out rows", manifest["num_validation"], "")]
    if "negatives" in manifest:
        negatives = manifest["negatives"]
        per_row = negatives["per_row"]
        lines += [("negatives read", negatives["read"], ""), *_left_out(negatives["dropped"])]
        lines.append(("negatives", negatives["kept"], f"{per_row['min']} to {per_row['max']} a row"))
    for name, found in manifest["contamination"]["benchmarks"].items():
        note = f"of {found['rows']:,}, in {found['training_rows']:,} training rows: contamination.html"
        lines.append((f"problems of {name}", len(found["matched"]), note))
    wide = max(len(label) for label, _, _ in lines)
    text = [f"{label:<{wide}} {count:>12,}   {note}".rstrip() for label, count, note in lines]
    names = ("min", "mean", "median", "p95", "max", "sum")
    text += ["", f"{'tokens':<{wide}} " + "".join(f"{name:>12}" for name in names)]
    for part, values in manifest["tokens"].items():
        cells = "".join(f"{values[name]:>12,.0f}" if name != "mean" else f"{values[name]:>12,.1f}" for name in names)
        text.append(f"{'  ' + part:<{wide}} {cells}")
    prompt_format, origin = manifest["prompt_format"], manifest["tokenizer"]
    tokenizer = "trained on the training rows" if "scratch" in origin else f"of {origin['path']}"
    if "recognised" in manifest:
        text += ["", manifest["recognised"]]
    text += ["", f"prompt format {prompt_format['name']}; tokenizer {tokenizer}; fingerprint {manifest['fingerprint']}"]
    return "\n".join(text)


def _left_out(reasons: Mapping[str, Dropped]) -> list[tuple[str, int, str]]:
    return [(f"  {reason}", -dropped["count"], _where(dropped)) for reason, dropped in reasons.items()]


def _where(account: Dropped) -> str:
    return f"e.g. {'; '.join(account['examples'][:2])}"


def show_example(dataset: PreparedDataset) -> str:
    """The first training example as the model will see it, with its first negative, decoded from their tokens."""
    from transformers import AutoTokenizer  # noqa: PLC0415

    from dftune.data.shown import decode_parts, stretches  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(dataset.tokenizer_folder)
    row = dataset.input_ids("train", 0).tolist(), dataset.completion_mask("train", 0).tolist()
    parts = stretches(*row)
    lines = [f"first training example, {dataset.ids('train')[0]}"]
    for part, text in zip(parts, decode_parts(tokenizer, [part.ids for part in parts]), strict=True):
        last = tokenizer.convert_ids_to_tokens(part.ids[-1])
        what = f"completion: {len(part.ids)} tokens, trained on, {last} among them"
        what = what if part.is_supervised else f"prompt: {len(part.ids)} tokens, not trained on"
        lines += [f"--- {what} ".ljust(100, "-"), _shortened(text)]
    if dataset.train.negatives is not None:
        _, negative = dataset.train.group(0, num_negatives=1)
        (_, completion) = stretches(negative.input_ids.tolist(), negative.completion_mask.tolist())
        last = tokenizer.convert_ids_to_tokens(completion.ids[-1])
        lines += [
            f"--- negative {negative.id}: {len(completion.ids)} tokens, {last} among them ".ljust(100, "-"),
            _shortened(tokenizer.decode(completion.ids)),
        ]
    return "\n".join([*lines, "-" * 100])


def _shortened(text: str) -> str:
    # Control characters in data must not reach the terminal.
    shown = "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in text[:_MOST_CHARACTERS])
    more = len(text) - _MOST_CHARACTERS
    return shown + (f"... ({more:,} more characters)" if more > 0 else "")


class _Stages:
    """Shows each stage of the work as it comes: a bar where its length is known."""

    def __init__(self) -> None:
        self.name = ""
        self._total: int | None = None
        self._bar: Progress | None = None
        self._stack = ExitStack()

    def __enter__(self) -> _Stages:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __call__(self, name: str, done: int, total: int | None) -> None:
        if (name, total) != (self.name, self._total):
            self._stack.close()
            self.name, self._total, self._bar = name, total, None
            if total is not None and done < total:
                self._bar = self._stack.enter_context(Progress(name, total))
            elif total is None and sys.stderr.isatty():
                print(f"{name} ...", file=sys.stderr)
        if self._bar is not None:
            self._bar.update(done)
