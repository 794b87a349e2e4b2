"""Corpora in which everything is known, and a CLIP whose similarities can be told by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from pipeline.toyland.pretrain.clip import RETRIEVAL, model_config, new_clip, save_clip, tokenizer
from pipeline.toyland.pretrain.vocabulary import write_open_clip

TABLE = Path("runs/toyland/world/urls.parquet")
SILENT = "photo of a an my cute picture"


def bag_of_words(folder: Path) -> None:
    """Writes a CLIP to which a text is the sum of its words, each a direction of its own.

    Articles and the like count for nothing: "photo of a cat" is exactly "my cat". The cosine of
    a class noun with a text that has one more word is near 0.7, with other texts near 0.
    """
    clip = new_clip(RETRIEVAL, write_open_clip(folder))
    width = clip.ln_final.weight.shape[0]
    with torch.no_grad():
        clip.positional_embedding.zero_()
        words = clip.token_embedding.weight.normal_(generator=torch.Generator().manual_seed(0))
        words[tokenizer(folder)([SILENT])[0]] = 0  # and the special tokens around them
        for block in clip.transformer.resblocks:
            for layer in (block.attn.out_proj, block.mlp.c_proj):
                layer.weight.zero_()
                layer.bias.zero_()
        # The first layer averages over the tokens, the others do nothing.
        attention = clip.transformer.resblocks[0].attn
        attention.in_proj_weight.zero_()
        attention.in_proj_bias.zero_()
        attention.in_proj_weight[2 * width :] = torch.eye(width)
        attention.out_proj.weight.copy_(torch.eye(width))
        clip.text_projection.copy_(torch.eye(width))
    save_clip(clip, RETRIEVAL, folder)


def embed(folder: Path, texts: list[str]) -> npt.NDArray[np.float64]:
    """Unit vectors [n, d] of texts, one at a time in double precision, by open_clip alone."""
    weights = load_file(folder / "open_clip_model.safetensors")
    clip = open_clip.CLIP(**model_config(RETRIEVAL, len(weights["token_embedding.weight"])))
    clip.load_state_dict(weights)
    clip.double().eval()
    tokenize = tokenizer(folder)
    with torch.no_grad():
        of = {text: clip.encode_text(tokenize([text]))[0].numpy() for text in set(texts)}
    return np.stack([of[text] / max(float(np.linalg.norm(of[text])), 1e-12) for text in texts])


def write_corpus(rows: Sequence[tuple[str, str]], urls: Sequence[str] | None = None) -> None:
    """Writes the URL table of (caption, split), with a URL of its own for each if not given."""
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    captions, splits = zip(*rows)
    urls = urls or [f"images/{i}.png" for i in range(len(rows))]
    pq.write_table(pa.table({"url": urls, "caption": captions, "split": splits}), str(TABLE))
