"""``dftune export``."""

from __future__ import annotations

import argparse
from pathlib import Path

_EPILOG = """\
examples:
  dftune export runs/my exported/my                        the final model
  dftune export runs/my exported/my-2000 --step 2000       a checkpoint, checked against its manifest first
  dftune export runs/lora exported/merged --step 500       a run with model.lora: the adapter merged into its base
  dftune export runs/lora exported/adapter --adapter       the adapter alone, for peft
  dftune export runs/my exported/my --push-to-hub me/my    and upload it; a new repository is private

The folder holds config.json, safetensors, tokenizer, chat template and generation defaults: from_pretrained, vLLM and
`dftune evaluate` take it. It is complete or absent. Merged models are in float32.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("output", type=Path, help="folder to write; not there yet, or empty")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step; default: the final model")
    parser.add_argument("--adapter", action="store_true", help="the adapter alone, of a run that trains one")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload the folder to this repository")
    parser.add_argument("--public", action="store_true", help="a repository that is made can be read by everybody")


def run(args: argparse.Namespace) -> int:
    """Export."""
    from dftune.train.export import check_push, export_run, push  # noqa: PLC0415

    if args.public and not args.push_to_hub:
        raise ValueError("--public is of --push-to-hub OWNER/NAME, which is not given.")
    if args.push_to_hub:
        check_push(args.push_to_hub)
    print(export_run(args.run, args.output, step=args.step, adapter=args.adapter))
    if args.push_to_hub:
        print(push(args.output, args.push_to_hub, public=args.public))
    return 0
