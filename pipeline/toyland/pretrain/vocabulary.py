"""The byte-pair vocabulary that Toyland's text models share.

One list of merges serves open_clip's `SimpleTokenizer` and transformers' `CLIPTokenizer`; both
give the same ids. Each word that captions use becomes one token; any other word falls apart into
smaller ones, so every text can be encoded.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path

from open_clip.tokenizer import bytes_to_unicode
from transformers import CLIPTokenizer

from pipeline.toyland.world.scenes import all_words

CONTEXT_LENGTH = 32
MERGES_FILE = "bpe_simple_vocab.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
# Each is a token that no word of the world needs: they stand for the rare tokens that methods
# name their concepts by.
LETTERS: tuple[str, ...] = tuple("bcdfghjklmnpqrstvwxyz")


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until each of the words is a single token."""
    spellings = [(*word[:-1], word[-1] + "</w>") for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(parts) > 1 for parts in spellings):
        counts: dict[tuple[str, str], int] = {}
        for parts in spellings:
            for pair in zip(parts, parts[1:]):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(sorted(counts), key=counts.__getitem__)
        merges.append(best)
        spellings = [_merged(parts, best) for parts in spellings]
    return merges


def _merged(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for part in parts:
        # Left to right: a part is joined to the one before it if the two are the pair.
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return tuple(out)


def vocabulary(merges: list[tuple[str, str]]) -> list[str]:
    """The tokens in the order of their ids: bytes, bytes that end a word, merges, start, end."""
    letters = list(bytes_to_unicode().values())
    return [
        *letters,
        *(letter + "</w>" for letter in letters),
        *("".join(pair) for pair in merges),
        START,
        END,
    ]


def write_open_clip(folder: Path) -> int:
    """Writes the merges as open_clip reads them; returns the size of the vocabulary.

    The file must not end in a newline: open_clip would read an empty merge behind it and shift
    the ids of the special tokens by one.
    """
    merges = learn_merges(all_words())
    text = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)])
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(folder / MERGES_FILE, "wb", mtime=0) as file:
        file.write(text.encode())
    return len(vocabulary(merges))


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """The same vocabulary as transformers' tokenizer, by way of its two files in `folder`."""
    merges = learn_merges(all_words())
    ids = _ids()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        model_max_length=CONTEXT_LENGTH,
        pad_token=END,
        unk_token=END,
        bos_token=START,
        eos_token=END,
    )


@cache
def _ids() -> dict[str, int]:
    return {token: i for i, token in enumerate(vocabulary(learn_merges(all_words())))}


def token_ids(words: str) -> list[int]:
    """What `clip_tokenizer` makes of a text, padded to CONTEXT_LENGTH; quick, for captions only.

    Args:
        words: words of the world and LETTERS, with single blanks between them.
    """
    ids = _ids()
    inner = [ids[f"{word}</w>"] for word in words.split()][: CONTEXT_LENGTH - 2]
    return [ids[START], *inner, *[ids[END]] * (CONTEXT_LENGTH - 1 - len(inner))]
