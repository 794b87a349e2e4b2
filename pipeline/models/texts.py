"""How a base reads texts: by one text encoder, or by several whose features lie side by side.

The words are the same tokens for all encoders of a base, and a modifier token has one row: what
each of them embeds it as, one after the other. So nothing else knows how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pipeline.common.errors import BenchError
from pipeline.models.tokens import ModifierEmbedding


@dataclass(frozen=True)
class Condition:
    """What texts tell the UNet, in the dtype that weights are stored in."""

    # Features: [n, context, d], or [n, layers, context, d] if tokens differ by layer of
    # cross-attention.
    text: Tensor
    pooled: Tensor | None = None  # [n, p]: a vector for each text, of a base whose UNet reads it

    @cached_property
    def by_layer(self) -> list[Tensor]:
        """What each layer sees, [n, context, d]; always the same tensors, as caches go by that."""
        return [part.contiguous() for part in self.text.unbind(1)]

    def split(self) -> list[Condition]:
        """One for each text."""
        texts = self.text.split(1)
        pooled = [None] * len(texts) if self.pooled is None else self.pooled.split(1)
        return [Condition(text, vector) for text, vector in zip(texts, pooled)]

    @staticmethod
    def joined(parts: Sequence[Condition]) -> Condition:
        """Of the texts of all parts, in their order."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        text = torch.cat([part.text for part in parts])
        return Condition(text, torch.cat(pooled) if pooled else None)


@dataclass(frozen=True)
class TextEncoders:
    """The text encoders of a base, each with the tokenizer that it reads through.

    Tokenizers cut words alike, and may pad texts differently.
    """

    models: tuple[CLIPTextModel | CLIPTextModelWithProjection, ...]
    tokenizers: tuple[CLIPTokenizer, ...]
    # Features are the hidden states before the last layer, or else the last ones after the norm.
    penultimate: bool = False
    pooled: bool = False  # the last encoder also makes one vector of a text
    empty_is_zero: bool = False  # an empty text tells nothing: all its features are zeros

    def __post_init__(self) -> None:
        """Lets a text's one vector be that of its first end token, whatever tokens are added.

        Where a configuration has a wrong number for the end token, as the published ones do,
        transformers takes the largest token's place instead: that of a modifier token.
        """
        if self.pooled:
            self.models[-1].text_model.eos_token_id = self.tokenizers[-1].eos_token_id

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """What cuts words into tokens. Padding is that of the first encoder."""
        return self.tokenizers[0]

    @property
    def widths(self) -> list[int]:
        """The numbers of each encoder's embeddings and features."""
        return [int(model.config.hidden_size) for model in self.models]

    @property
    def width(self) -> int:
        """The numbers of a token's row and of its features, d."""
        return sum(self.widths)

    @property
    def context(self) -> int:
        """Tokens of an encoded text, begin, end and padding among them."""
        # A tokenizer that does not know its length says a huge number.
        lengths = [tokenizer.model_max_length for tokenizer in self.tokenizers]
        return int(min(*lengths, *(m.config.max_position_embeddings for m in self.models)))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 [n, context], padded and truncated."""
        return self._ids(self.tokenizer, texts)

    def _ids(self, tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
        return tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.context,
            return_tensors="pt",
        ).input_ids.to(self.models[0].device)

    def condition(self, texts: Sequence[str]) -> Condition:
        """What these texts tell the UNet; gradients reach modifier tokens through it.

        If tokens differ by layer, a text's one vector is the mean of those of all layers.
        """
        ids = [self._ids(tokenizer, texts) for tokenizer in self.tokenizers]
        empty = [not text for text in texts] if self.empty_is_zero else []
        embeddings = [
            embedding
            for model in self.models
            if isinstance(embedding := model.get_input_embeddings(), ModifierEmbedding)
        ]
        layers = embeddings[0].layers if embeddings else 0
        if not layers:
            return self._encoded(ids, empty)
        found = []
        for layer in range(layers):
            for embedding in embeddings:
                embedding.layer = layer
            found.append(self._encoded(ids, empty))
        pooled = [one.pooled for one in found if one.pooled is not None]
        text = torch.stack([one.text for one in found], 1)
        return Condition(text, torch.stack(pooled).mean(0) if pooled else None)

    def _encoded(self, ids: Sequence[Tensor], empty: Sequence[bool]) -> Condition:
        """What token ids [n, context] of each encoder tell; of empty texts nothing but zeros."""
        made = [m(i, output_hidden_states=self.penultimate) for m, i in zip(self.models, ids)]
        features = [m.hidden_states[-2] if self.penultimate else m.last_hidden_state for m in made]
        text, pooled = torch.cat(features, -1), made[-1].text_embeds if self.pooled else None
        if any(empty):
            nothing = torch.tensor(empty, device=text.device)
            text = text.masked_fill(nothing[:, None, None], 0)
            pooled = None if pooled is None else pooled.masked_fill(nothing[:, None], 0)
        return Condition(text, pooled)

    def embedding_row(self, token_id: int) -> Tensor:
        """A copy of the input embedding, float32 [d], of a token of the original vocabulary."""
        size = len(self._tables()[0])
        if not 0 <= token_id < size:
            raise BenchError(
                f"params.yaml: base.modifier_token_ids: {token_id} is not in the vocabulary of the "
                f"base, which has {size} tokens"
            )
        return torch.cat([table[token_id].float() for table in self._tables()])

    def embedding_table(self) -> Tensor:
        """The input embeddings, float32 [vocabulary, d], of the original vocabulary."""
        return torch.cat([table.float() for table in self._tables()], -1)

    def _tables(self) -> list[Tensor]:
        """The embeddings [vocabulary, d] of each encoder, without modifier tokens."""
        found = [model.get_input_embeddings() for model in self.models]
        return [(e.table if isinstance(e, ModifierEmbedding) else e).weight.detach() for e in found]

    @contextmanager
    def modifier_tokens(self, rows: Mapping[str, Tensor]) -> Iterator[nn.Parameter]:
        """In it, the encoders know these tokens; their tables stay as they are.

        Args:
            rows: the embedding [d] of each modifier token, or those [layers, d] of all of them.

        Yields:
            The rows in use, float32 [n, d] or [n, layers, d], which may train.
        """
        together = torch.stack(list(rows.values())).detach().float()
        ours = nn.Parameter(together.to(self.models[0].device), requires_grad=False)
        before = [model.get_input_embeddings() for model in self.models]
        start = 0
        for model, tokenizer, table, width in zip(
            self.models, self.tokenizers, before, self.widths
        ):
            tokenizer.add_tokens(list(rows))
            ids = tokenizer.convert_tokens_to_ids(list(rows))
            table = table.table if isinstance(table, ModifierEmbedding) else table
            own = slice(start, start + width)
            model.set_input_embeddings(ModifierEmbedding(table, ids, ours, own))
            start += width
        try:
            yield ours
        finally:
            for model, embedding in zip(self.models, before):
                model.set_input_embeddings(embedding)
