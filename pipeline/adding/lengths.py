"""How much of a text the text encoder sees: what is longer is cut, and nothing else tells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from pipeline.common.errors import BenchError
from pipeline.settings.profile import BaseParams, is_hub_id

TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = ("vocab.json", "merges.txt", TOKENIZER_CONFIG)


@dataclass(frozen=True)
class Window:
    """What a base model's text encoder sees at once."""

    tokenizer: Tokenizer  # without special tokens
    limit: int  # tokens, begin and end among them

    def prompt(self, template: str, nouns: Sequence[str]) -> int:
        """The tokens of a prompt: of its words, of modifiers, and of begin and end."""
        return len(self.tokenizer.encode(template.format(*nouns)).ids) + len(nouns) + 2

    def caption(self, template: str, noun: str) -> int:
        """The tokens of a training caption, with the longest words that a view puts before it."""
        from pipeline.train.augment import FAR_PREFIXES, NEAR_PREFIXES  # imports torch

        return max(
            self.prompt(prefix + template, [noun]) for prefix in FAR_PREFIXES + NEAR_PREFIXES
        )


def text_window(base: BaseParams) -> Window | None:
    """What the base model's text encoder sees at once, None if its tokenizer is not here.

    Raises:
        BenchError: the tokenizer is damaged.
    """
    folder = _tokenizer_folder(base)
    if folder is None:
        return None
    try:
        limit = json.loads((folder / TOKENIZER_CONFIG).read_text("utf-8"))["model_max_length"]
        return Window(clip_tokenizer(folder), limit)
    except Exception as error:  # tokenizers raises nothing more special
        raise BenchError(f"{folder}: not a CLIP tokenizer ({error}): restore the folder") from error


def clip_tokenizer(folder: Path) -> Tokenizer:
    """CLIP's tokenizer without its special tokens, from `vocab.json` and `merges.txt`.

    The same as transformers' `CLIPTokenizer`, which takes seconds to import.
    """
    vocabulary, merges = BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = Tokenizer(BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _tokenizer_folder(base: BaseParams) -> Path | None:
    """The folder of the base model's tokenizer, None if it is not here."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    files = [Path(base.path) / "tokenizer" / file for file in TOKENIZER_FILES]
    if is_hub_id(base.path):
        names = [f"tokenizer/{file}" for file in TOKENIZER_FILES]
        found = [
            try_to_load_from_cache(base.path, name, HF_HUB_CACHE, base.revision) for name in names
        ]
        files = [Path(path) for path in found if isinstance(path, str)]
    if len(files) < len(TOKENIZER_FILES) or not all(path.is_file() for path in files):
        return None
    return files[0].parent
