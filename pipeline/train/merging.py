"""Adapters of single concepts become one: by constrained optimization, or as their mean.

The closed-form merge of fine-tuned K and V matrices (paper, section 3.2 and appendix B):

    minimise || W C_reg^T - W0 C_reg^T ||_F   subject to   W C^T = V

with the solution W = W0 + (V^T - W0 C^T) (D C^T)^-1 D, where D = C (C_reg^T C_reg)^-1.
The rows of C are the text features of the concepts' captions; V holds what each row's own
fine-tuned matrix makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.common.errors import BenchError
from pipeline.concepts.concept import Concept, Subject
from pipeline.models.adapter import Adapter, Delta, LowRank, Provenance, dense
from pipeline.models.base import Base


class MergedMatrix(NamedTuple):
    """A merged matrix [out, d] and how well it meets its constraint."""

    weight: Tensor
    residual: float  # || W C^T - V || / || V ||


@dataclass(frozen=True)
class Merger:
    """What all matrices of one merge share; the factorisation is done once.

    Made by `merger`. All in float64.
    """

    constraints: Tensor  # C: [s, d]
    directions: Tensor  # (D C^T)^-1 D: [s, d]
    condition: float  # condition number of the regularized C_reg^T C_reg

    def merge(self, pretrained: Tensor, values: Tensor) -> MergedMatrix:
        """The matrix nearest to `pretrained` [out, d] on C_reg that maps C to `values` [s, out]."""
        weight = pretrained.double()
        goal = values.double().T
        weight = weight + (goal - weight @ self.constraints.T) @ self.directions
        error = torch.linalg.norm(weight @ self.constraints.T - goal)
        return MergedMatrix(weight, float(error / torch.linalg.norm(goal)))


def merger(constraints: Tensor, regularization: Tensor, ridge: float) -> Merger:
    """Prepares a merge.

    Args:
        constraints: C [s, d], rows linearly independent.
        regularization: C_reg [n, d].
        ridge: added to the diagonal of C_reg^T C_reg, relative to its mean eigenvalue. Zero is
            the paper's formula; text features lie so near a hyperplane that rounding then
            decides the result. The constraint holds exactly with any ridge.
    """
    c, c_reg = constraints.double(), regularization.double()
    gram = c_reg.T @ c_reg
    gram += (
        ridge
        * gram.trace()
        / len(gram)
        * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    )
    d = (
        torch.linalg.solve(gram, c.T).T
        if ridge == 0
        else torch.cholesky_solve(c.T, torch.linalg.cholesky(gram)).T
    )
    directions = torch.linalg.solve(d @ c.T, d)
    return Merger(c, directions, float(torch.linalg.cond(gram)))


def distinct_rows(features: Sequence[Tensor]) -> list[Tensor]:
    """For each set of rows [n_i, d], the indices of those that no earlier row repeats.

    Words before the first modifier token have equal features in all captions, because the text
    encoder is causal; a constraint may stand only once, and the first concept's counts.
    """
    seen: list[Tensor] = []
    kept: list[Tensor] = []
    for rows in features:
        indices = []
        for i, row in enumerate(rows):
            if not any(torch.allclose(row, other, rtol=1e-4, atol=1e-5) for other in seen):
                seen.append(row)
                indices.append(i)
        kept.append(torch.tensor(indices, dtype=torch.long))
    return kept


def weighted(
    parts: Sequence[Adapter],
    weights: Sequence[float],
    tokens: dict[str, Tensor],
    provenance: Provenance,
) -> Adapter:
    """The weighted sum of the parts' changes, with the modifier tokens of all of them.

    Changes of low rank stay so: the factors side by side are exactly their sum.
    """
    names = dict.fromkeys(name for part in parts for name in part.deltas)
    deltas: dict[str, Delta] = {}
    for name in names:
        there = [(w, part.deltas[name]) for w, part in zip(weights, parts) if name in part.deltas]
        factors = [(w, delta) for w, delta in there if isinstance(delta, LowRank)]
        if len(factors) == len(there):
            up = torch.cat([w * delta.up for w, delta in factors], 1)
            deltas[name] = LowRank(up, torch.cat([delta.down for _, delta in factors]))
        else:
            deltas[name] = torch.stack([w * dense(delta) for w, delta in there]).sum(0)
    return Adapter(tokens, deltas, provenance)


def constrained(
    base: Base,
    parts: Sequence[Adapter],
    tokens: dict[str, Tensor],
    subject: Subject,
    captions: Sequence[str],
    ridge: float,
    template_words: bool,
    provenance: Provenance,
) -> Adapter:
    """The constrained optimization of the parts (paper, section 3.2), through the text encoder.

    The captions of a concept are its name alone, "<new1> cat", and its training caption, "photo
    of a <new1> cat"; their words and the first end token are the rows of C.

    Args:
        parts: adapters of K and V, one for each concept of the subject.
        tokens: the modifier tokens of the subject and their rows [d], in the order of the parts.
        captions: of C_reg, what the merged model should treat as the pretrained one does.
        template_words: whether the words before the modifier token are rows too (they are in the
            code that made the paper's results, and not in its later version).

    Raises:
        BenchError: the parts do not change the same weights.
    """
    names = list(parts[0].deltas)
    if any(list(part.deltas) != names for part in parts) or not names:
        raise BenchError(
            f"{subject.name}: constrained optimization needs adapters that change the same "
            "weights: merge adapters of one method that trains K and V"
        )
    # Text features of equal words have to be equal, and those of different ones told apart.
    with base.precise():
        features, regularization = _features(
            base, tokens, subject.concepts, captions, template_words
        )
    kept = distinct_rows(features)
    constraints = torch.cat([rows[k] for rows, k in zip(features, kept)])
    prepared = merger(constraints, regularization, ridge)

    weights = dict(base.unet.named_parameters())
    deltas: dict[str, Delta] = {}
    residuals = []
    for name in names:
        pretrained = weights[name].detach().double().cpu()
        values = [
            rows[k].double() @ (pretrained + dense(part.deltas[name]).double()).T
            for part, rows, k in zip(parts, features, kept)
        ]
        merged = prepared.merge(pretrained, torch.cat(values))
        deltas[name] = (merged.weight - pretrained).float()
        residuals.append(merged.residual)
    notes = {
        "constraints": float(len(constraints)),
        "condition": prepared.condition,
        "residual": max(residuals),
    }
    return Adapter(tokens, deltas, replace(provenance, notes=notes))


def _features(
    base: Base,
    tokens: dict[str, Tensor],
    concepts: Sequence[Concept],
    captions: Sequence[str],
    template_words: bool,
) -> tuple[list[Tensor], Tensor]:
    """The rows [s, d] of C of each concept, and C_reg [n, d]."""
    with base.texts.modifier_tokens(tokens):
        features = []
        for token, concept in zip(tokens, concepts):
            reference = f"{token} {concept.class_noun}"
            before = len(base.texts.tokenizer(concept.caption.split("{}")[0]).input_ids) - 2
            named = _word_features(base, [reference])
            captioned = _word_features(base, [concept.caption.format(reference)])
            features.append(torch.cat([named, captioned[0 if template_words else before :]]))
        return features, _word_features(base, captions)


@torch.no_grad()
def _word_features(base: Base, texts: Sequence[str]) -> Tensor:
    """Text features [n, d] of all words and the first end token of the texts, on the CPU."""
    end = base.texts.tokenizer.eos_token_id
    rows = []
    for start in range(0, len(texts), 64):
        part = texts[start : start + 64]
        ids = base.texts.tokenize(part)
        for features, words in zip(base.condition(part).text, ids):
            length = int((words == end).nonzero()[0]) if bool((words == end).any()) else len(words)
            rows.append(features[1 : length + 1].cpu())
    return torch.cat(rows)
