"""What a method makes an adapter with: the one training loop and the merges, for its subject."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import torch
from torch import Tensor

from pipeline.common.errors import BenchError
from pipeline.common.failures import DIVERGED, FailureError
from pipeline.common.seeds import seed_of
from pipeline.common.unfinished import Unfinished
from pipeline.concepts.concept import Concept, Subject
from pipeline.methods import Context, Rule, Trained, TrainingSet
from pipeline.models.adapter import Adapter, Provenance, not_finite
from pipeline.models.base import Base
from pipeline.models.bundle import bundled
from pipeline.models.crossattn import cross_attention_layers
from pipeline.settings.profile import MethodParams, Params
from pipeline.train.fisher import fisher
from pipeline.train.loop import train_through
from pipeline.train.merging import constrained, weighted
from pipeline.train.state import State


@dataclass(frozen=True)
class Making(Context):
    """The making of one adapter."""

    unfinished: Unfinished | None = None  # where long trainings keep their state
    trainings: Iterator[int] = field(default_factory=count)  # that have begun

    @classmethod
    def of(
        cls,
        base: Base,
        method: str,
        subject: Subject,
        params: Params,
        hyper: MethodParams,
        sets: Sequence[TrainingSet] = (),
        parts: Sequence[Adapter] = (),
        captions: Sequence[str] = (),
        seed: int | None = None,
        previous: Adapter | None = None,
        unfinished: Unfinished | None = None,
    ) -> Making:
        """As the method's needs for the subject say; the references are class nouns at first.

        Args:
            seed: of the training; the main one if absent.
        """
        seed = params.train.seeds[0] if seed is None else seed
        target = provenance_of(base, method, subject, seed)
        return cls(
            base, subject, params, hyper, target, tuple(sets), tuple(parts), tuple(captions),
            previous, unfinished,
        )  # fmt: skip

    def train(self, how: Trained, sets: Sequence[TrainingSet], first: int = 0) -> Adapter:
        """See `Context`."""
        concepts = sets if self.subject.task else self.subject.concepts
        steps = self.hyper.steps if len(concepts) == 1 else self.hyper.composition_steps
        state = None
        if self.unfinished:
            state = State(self.unfinished, f"training-{next(self.trainings) + 1}")
        return self.train_through(how, sets, [steps or 0], first, state)[-1]

    def train_through(
        self,
        how: Trained,
        sets: Sequence[TrainingSet],
        checkpoints: Sequence[int],
        first: int = 0,
        state: State | None = None,
    ) -> list[Adapter]:
        """As `train`, but the adapters after so many steps each; see `loop.train_through`."""
        concepts = [part.concept for part in sets]
        rows, ids = first_rows(self.base, how, concepts, first, self.params, self.provenance.seed)
        references = tuple(
            how.reference.format(token=" ".join(pieces(rows, place)), noun=concept.class_noun)
            for place, concept in enumerate(concepts, first)
        )
        provenance = replace(
            self.provenance,
            references=references,
            initial_ids=ids,
            learning_rate=self.hyper.learning_rate or 0.0,
        )
        own = "+".join(concept.name for concept in concepts)
        return train_through(
            self.base, how, sets, references, rows, self.params.train, self.hyper, checkpoints,
            provenance, own if self.subject.task else self.subject.name, state,
        )  # fmt: skip

    def fisher(self, how: Trained, adapter: Adapter, rows: int) -> dict[str, Tensor]:
        """See `Context`."""
        return fisher(self.base, how, self.sets[-1], adapter, rows, self.provenance.seed)

    def merge(self, parts: Sequence[Adapter], rule: Rule) -> Adapter:
        """See `Context`; tokens are renamed by the places of their concepts."""
        tokens: dict[str, Tensor] = {}
        ids: dict[str, int] = {}
        references = []
        for place, part in enumerate(parts):
            made = part.provenance
            new = {old: modifier_token(place, piece) for piece, old in enumerate(part.tokens)}
            tokens |= {new[old]: row for old, row in part.tokens.items()}
            ids |= {new[old]: made.initial_ids[old] for old in new if old in made.initial_ids}
            references.append(" ".join(new.get(w, w) for w in made.references[0].split()))
        provenance = replace(self.provenance, references=tuple(references), initial_ids=ids)
        match rule:
            case "average":
                return weighted(parts, [1 / len(parts)] * len(parts), tokens, provenance)
            case "sum":
                scales = [self.number("merge_scale")] * len(parts)
                return weighted(parts, scales, tokens, provenance)
            case "bundle":
                return bundled(parts, tokens, provenance)
            case "constrained":
                return self._constrained(parts, tokens, provenance)

    def _constrained(
        self, parts: Sequence[Adapter], tokens: dict[str, Tensor], provenance: Provenance
    ) -> Adapter:
        ridge = self.hyper.ridge
        assert ridge is not None  # `Merged.needs` asks for it
        try:
            adapter = constrained(
                self.base, parts, tokens, self.subject, self.captions, ridge,
                self.hyper.template_words, provenance,
            )  # fmt: skip
            why = not_finite(adapter)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            why = str(error)
        if why:
            method = provenance.method
            raise FailureError(
                DIVERGED,
                f"{method} on {self.subject.name}: the merge has no finite solution ({why}; ridge "
                f"{ridge:g}): raise methods.{method}.ridge in the profile's params.yaml",
            )
        return adapter


def provenance_of(base: Base, method: str, subject: Subject, seed: int) -> Provenance:
    """That of an adapter to be made; the class nouns are its references until it has tokens."""
    return Provenance(
        method=method,
        subject=subject.name,
        base=base.path,
        base_hash=base.hash,
        references=tuple(concept.class_noun for concept in subject.concepts),
        seed=seed,
    )


def first_rows(
    base: Base,
    method: Trained,
    concepts: Sequence[Concept],
    first: int,
    params: Params,
    seed: int,
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The rows [d] that the modifier tokens of these concepts start from, by token.

    "rare" takes the embeddings of the profile's rare tokens in their order, "noun" that of the
    class noun's last word, "normal" random numbers with the mean and the deviation of the whole
    table in each dimension (Table 5). "pair" draws one so, and has a further token for each word
    of the class noun, which starts as that word (ED-LoRA). Each layer of cross-attention has rows
    of its own if the method says so; they start alike.

    Args:
        first: the place of the first of these concepts in its subject.
        params: have the rare tokens.
        seed: of the training, for numbers that are drawn.

    Returns:
        The rows, and the ids of the tokens they were copied from (none if they were drawn).

    Raises:
        BenchError: more concepts than rare tokens, or an id outside the vocabulary.
    """
    rare = params.base.modifier_token_ids
    if len(rare) < first + len(concepts):
        raise BenchError(
            f"params.yaml: base.modifier_token_ids: {len(rare)} given, {first + len(concepts)} "
            "are needed"
        )
    rows: dict[str, Tensor] = {}
    words: dict[str, Tensor] = {}
    ids: dict[str, int] = {}
    for place, concept in enumerate(concepts, first):
        token = modifier_token(place)
        if method.token == "pair":
            for piece, word in enumerate(concept.class_noun.split(), 1):
                part = modifier_token(place, piece)
                ids[part] = base.texts.tokenizer(word, add_special_tokens=False).input_ids[-1]
                words[part] = base.texts.embedding_row(ids[part])
        if method.token in ("normal", "pair"):
            table = base.texts.embedding_table()
            generator = torch.Generator().manual_seed(seed_of(seed, "token", concept.name))
            drawn = torch.randn(table.shape[1], generator=generator)
            rows[token] = table.mean(0).cpu() + table.std(0).cpu() * drawn
            rows |= {part: words[part] for part in words if part not in rows}
            continue
        if method.token == "rare":
            ids[token] = rare[place]
        else:
            # The last piece of a word that the vocabulary does not have as a whole.
            word = concept.class_noun.split()[-1]
            ids[token] = base.texts.tokenizer(word, add_special_tokens=False).input_ids[-1]
        rows[token] = base.texts.embedding_row(ids[token])
    if method.layered:
        layers = len(cross_attention_layers(base.unet))
        rows = {token: row.expand(layers, -1).clone() for token, row in rows.items()}
    return rows, ids


def modifier_token(place: int, piece: int = 0) -> str:
    """The modifier token of a subject's concept at that place, counted from zero: `<new1>`.

    Further pieces of a concept's name are `<new1_2>` and so on.
    """
    return f"<new{place + 1}_{piece + 1}>" if piece else f"<new{place + 1}>"


def pieces(tokens: Iterable[str], place: int) -> list[str]:
    """Those of the modifier tokens that are of the concept at that place."""
    return [t for t in tokens if t == modifier_token(place) or t.startswith(f"<new{place + 1}_")]
