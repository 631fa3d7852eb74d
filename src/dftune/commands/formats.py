"""``dftune formats``."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dftune.data.messages import Message
    from dftune.data.prompts import PromptFormat

_PROBLEM, _SOLUTION = "What is 1 + 1?", "It is \\boxed{2}."
_LATER = ("And twice that?", "\\boxed{4}")

_EPILOG = """\
A prompt format says how a problem becomes a prompt, which token ends a completion, and at which strings generation
stops. Training and evaluation use the same one. A recipe names it under `data.prompt_format`.

Besides the names below there are
  chat                       the tokenizer's own chat template
  few-shot:FORMAT:FILE:K     the first K examples of a JSONL file, then the question
  path/to/format.yaml        one of your own; its keys are those listed by --keys

examples:
  dftune formats                                          # all of them, rendered
  dftune formats qwen-boxed few-shot:cot:examples.jsonl:4
  dftune formats --show chat --tokenizer models/my-model  # token by token: what is trained on and what is not
  dftune formats --show chat --tokenizer models/my-model --turns 2 --tokens
  dftune formats --show my.yaml --tokenizer models/my-model --problem 'Solve x^2 = 4.' --solution 'x = 2 or x = -2.'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("names", nargs="*", metavar="NAME", help="list these alone")
    parser.add_argument("--show", metavar="NAME", help="show what a tokenizer makes of this format; needs --tokenizer")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="folder or hub id of a model or tokenizer")
    parser.add_argument("--problem", default=_PROBLEM, help=f"what is asked; default {_PROBLEM!r}")
    parser.add_argument("--solution", default=_SOLUTION, help=f"what is answered; default {_SOLUTION!r}")
    parser.add_argument("--turns", type=int, choices=(1, 2), default=1, help="2: a conversation of two questions")
    parser.add_argument("--system", help="a system message before it")
    parser.add_argument("--tokens", action="store_true", help="also list the tokens one by one")
    parser.add_argument("--keys", action="store_true", help="list the keys of a format file")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """List the formats, or show one at work."""
    if args.keys:
        from dftune.config import describe  # noqa: PLC0415
        from dftune.data.own_format import FormatConfig  # noqa: PLC0415

        print("\n".join(describe(FormatConfig)))
        return 0
    tokenizer = None if args.tokenizer is None else _load(args.tokenizer)
    if args.show is not None:
        if tokenizer is None:
            raise ValueError("--show needs --tokenizer FOLDER: the folder or hub id of a model or a tokenizer.")
        found = show(args.show, tokenizer, _conversation(args))
        print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else picture(found, tokens=args.tokens))
        return 0
    rows = [describe_format(name, tokenizer, args.problem) for name in args.names or _known(tokenizer)]
    print(json.dumps(rows, indent=2, ensure_ascii=False) if args.json else table(rows))
    return 0


def _load(path: str) -> Any:
    from dftune.data.hub import from_pretrained  # noqa: PLC0415

    if Path(path).is_dir() and not any((Path(path) / name).exists() for name in _TOKENIZER_FILES):
        raise ValueError(f"{path} holds no tokenizer: none of {', '.join(_TOKENIZER_FILES)} is there.")
    from transformers import AutoTokenizer  # noqa: PLC0415

    return from_pretrained(AutoTokenizer, path, None, "--tokenizer")


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def _known(tokenizer: Any) -> list[str]:
    from dftune.data.prompts import FORMATS  # noqa: PLC0415

    return [*(["chat"] if tokenizer is not None and tokenizer.chat_template else []), *FORMATS]


def _conversation(args: argparse.Namespace) -> list[Message]:
    from dftune.data.messages import Message  # noqa: PLC0415

    messages = [Message("system", args.system)] if args.system else []
    messages += [Message("user", args.problem), Message("assistant", args.solution)]
    later = [Message("user", _LATER[0]), Message("assistant", _LATER[1])]
    return messages + (later if args.turns == 2 else [])


def describe_format(name: str, tokenizer: Any, problem: str) -> dict[str, Any]:
    """What there is to know of a format without looking at tokens."""
    from dftune.data.prompts import get_format  # noqa: PLC0415

    if name == "chat" and tokenizer is None:
        raise ValueError("chat is read off a tokenizer's chat template; give --tokenizer FOLDER.")
    found = get_format(name, tokenizer)
    return {
        "name": found.name,
        "prompt": found.render(problem),
        "completion_prefix": found.completion_prefix,
        "completion_suffix": found.completion_suffix,
        "end_of_turn": found.end_of_turn,
        "stop": list(found.stop),
        "conversations": found.uses_chat_template or found.later_template is not None,
        "source": found.source,
        "fingerprint": found.fingerprint,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The formats one below the other, each with its prompt."""
    from dftune.data.shown import visible  # noqa: PLC0415

    found = []
    for row in rows:
        ends = row["end_of_turn"] or "the tokenizer's end-of-sequence token"
        stops = ", ".join(repr(stop) for stop in row["stop"]) or "nothing else"
        turns = "single questions and conversations" if row["conversations"] else "single questions"
        begins = f"; the completion begins with {row['completion_prefix']!r}" if row["completion_prefix"] else ""
        found += [
            f"{row['name']}   {row['source']}".rstrip(),
            *(
                f"  \u2502 {part}"
                for line in row["prompt"].splitlines(keepends=True)
                for part in textwrap.wrap(visible(line), 110, drop_whitespace=False)
            ),
            f"  ends with {ends}; stops at {stops}{begins}",
            f"  {turns}; fingerprint {row['fingerprint']}",
            "",
        ]
    return "\n".join(found[:-1])


def show(name: str, tokenizer: Any, messages: Sequence[Message]) -> dict[str, Any]:
    """What a tokenizer makes of a conversation in a format."""
    from dftune.data.prompts import get_format  # noqa: PLC0415
    from dftune.data.shown import lines, pieces  # noqa: PLC0415
    from dftune.data.tokenizer import BatchEncoder  # noqa: PLC0415
    from dftune.data.tokens import adds_bos  # noqa: PLC0415

    found: PromptFormat = get_format(name, tokenizer)
    encoder = BatchEncoder(found, tokenizer)
    (row,) = encoder.rows([messages], "all")
    mask = [any(start <= place < end for start, end in row.spans) for place in range(len(row.ids))]
    return {
        "name": found.name,
        "fingerprint": found.fingerprint,
        "tokenizer": type(tokenizer).__name__,
        "adds_bos": adds_bos(tokenizer),
        "end_token": str(tokenizer.convert_ids_to_tokens(encoder.end)),
        "end_token_id": encoder.end,
        "stop": list(found.stop),
        "input_ids": row.ids,
        "completion_mask": mask,
        "tokens": pieces(tokenizer, row.ids),
        "lines": [{"trained_on": trained, "text": text} for trained, text in lines(tokenizer, row.ids, mask)],
    }


def picture(found: dict[str, Any], *, tokens: bool = False) -> str:
    """The rendered conversation with what is trained on marked, and every special token and line break visible."""
    num_trained = sum(found["completion_mask"])
    colour = sys.stdout.isatty()
    bos = "begins with the tokenizer's beginning-of-sequence token; " if found["adds_bos"] else ""
    text = [
        f"{found['name']} with a {found['tokenizer']}: {len(found['input_ids'])} tokens, {num_trained} trained on",
        f"{bos}ends with {found['end_token']} ({found['end_token_id']}); stops at "
        + (", ".join(map(repr, found["stop"])) or "nothing else"),
        "",
    ]
    label = None
    for line in found["lines"]:
        trained = line["trained_on"]
        name = "" if label == trained else "trained on" if trained else "prompt"
        label = trained
        gutter = "\u2503" if trained else "\u2506"
        shown = f"{name:>12} {gutter} {line['text']}"
        text.append(f"\033[1;32m{shown}\033[0m" if trained and colour else shown)
    if tokens:
        text += ["", "   place       id  token"]
        rows = zip(found["input_ids"], found["completion_mask"], found["tokens"], strict=True)
        for place, (token, trained, piece) in enumerate(rows):
            text.append(f"{place:>8} {token:>8}  {piece:<24}{'trained on' if trained else ''}".rstrip())
    return "\n".join(text)
