from __future__ import annotations

import pytest
import torch

from pipeline.common.errors import BenchError
from pipeline.methods import load_method
from pipeline.settings.profile import MethodParams
from pipeline.train.merging import constrained, distinct_rows, merger
from pipeline.train.stage import check_hyper
from tests.pipeline.sample.test_sampler import random_adapter
from tests.pipeline.tiny import new_base, subject, training_set


def problem(seed: int = 0, concepts: int = 2):
    g = torch.Generator().manual_seed(seed)
    c = torch.randn(4 * concepts, 24, generator=g, dtype=torch.float64)
    c_reg = torch.randn(60, 24, generator=g, dtype=torch.float64)
    w0 = torch.randn(16, 24, generator=g, dtype=torch.float64)
    values = torch.randn(len(c), 16, generator=g, dtype=torch.float64)
    return c, c_reg, w0, values


def test_constraint_and_optimality_hold_in_float64():
    for concepts in (2, 3):
        c, c_reg, w0, values = problem(concepts=concepts)
        merged = merger(c, c_reg, ridge=0.0).merge(w0, values)
        assert merged.residual < 1e-12
        torch.testing.assert_close(merged.weight @ c.T, values.T, rtol=0, atol=1e-10)
        # Lagrange: the gradient of the objective lies in the span of the constraints' rows.
        gradient = (merged.weight - w0) @ c_reg.T @ c_reg
        inside = gradient @ torch.linalg.pinv(c) @ c
        torch.testing.assert_close(gradient, inside, rtol=0, atol=1e-8)


def test_no_feasible_matrix_is_nearer_on_the_regularization_captions():
    c, c_reg, w0, values = problem()
    merged = merger(c, c_reg, ridge=0.0).merge(w0, values).weight
    objective = torch.linalg.norm((merged - w0) @ c_reg.T)
    null = torch.eye(24, dtype=torch.float64) - torch.linalg.pinv(c) @ c
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        step = 1e-3 * torch.randn(16, 24, generator=g, dtype=torch.float64) @ null
        assert torch.linalg.norm((merged + step - w0) @ c_reg.T) > objective


def test_ridge_keeps_the_constraint_and_tames_the_update():
    c, c_reg, w0, values = problem()
    # Features near a hyperplane, as text features are.
    thin = c_reg.clone()
    thin[:, :6] *= 1e-4  # as thin as float64 can still solve without a ridge
    plain = merger(c, thin, ridge=0.0).merge(w0, values)
    ridged = merger(c, thin, ridge=1e-6).merge(w0, values)
    assert plain.residual < 1e-6 and ridged.residual < 1e-9
    assert torch.linalg.norm(ridged.weight - w0) <= torch.linalg.norm(plain.weight - w0)


def test_the_pretrained_matrix_is_kept_if_it_already_meets_the_constraint():
    c, c_reg, w0, _ = problem()
    merged = merger(c, c_reg, ridge=1e-6).merge(w0, c @ w0.T)
    torch.testing.assert_close(merged.weight, w0, rtol=0, atol=1e-10)


def test_repeated_rows_count_once_and_for_the_first():
    shared = torch.randn(3, 8)
    first, second = torch.cat([shared, torch.randn(2, 8)]), torch.cat([torch.randn(1, 8), shared])
    assert [k.tolist() for k in distinct_rows([first, second])] == [[0, 1, 2, 3, 4], [0]]


def test_a_merge_without_a_ridge_is_refused_and_zero_is_a_ridge():
    method = load_method("custom_diffusion_merge")
    for how in (method.composition, method.sequence):
        needs = how.needs(["cat", "chair"]) if how else None
        if needs:
            with pytest.raises(BenchError, match=r"methods\.m: needs ridge"):
                check_hyper("m", needs, MethodParams())
            check_hyper("m", needs, MethodParams(ridge=0.0))


def test_a_base_in_bfloat16_merges_in_float32():
    """Rounded features of equal words would differ, and contradict each other as constraints."""
    base, sets = new_base(), [training_set(noun, noun) for noun in ("cat", "chair")]
    base.store(torch.bfloat16)
    whole = random_adapter(base)
    parts = [whole, whole]
    captions = [f"photo of a {a} {b}" for a in ("red", "blue") for b in ("dog", "house", "tree")]
    arguments = (parts, whole.tokens, subject(*sets), captions, 1e-3, True, whole.provenance)
    stored = constrained(base, *arguments)
    assert base.stored is torch.bfloat16
    base.store(torch.float32)
    exact = constrained(base, *arguments)
    assert stored.provenance.notes == exact.provenance.notes
    assert stored.provenance.notes["residual"] < 1e-6
    # "photo of a" once, then twice "<new1> cat" and the end for each concept.
    assert stored.provenance.notes["constraints"] == 3 + 2 * 6
    for name, delta in exact.deltas.items():
        assert torch.equal(stored.deltas[name], delta)
