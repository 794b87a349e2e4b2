from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.train.augment import View, draw_view, render_view, view_mask

DRAWS = 20000


@pytest.fixture(scope="module")
def views() -> list[tuple[View, str]]:
    rng = np.random.default_rng(0)
    return [draw_view(rng, 5, 512, resize=True) for _ in range(DRAWS)]


def test_branches_come_as_often_as_in_the_released_code(views):
    words = Counter(prefix for _, prefix in views)
    far = words["a far away "] + words["very small "]
    near = words["zoomed in "] + words["close up "]
    # Two thirds times the share of 170..512 below 0.6; one third.
    sigma = 4 * np.sqrt(0.25 / DRAWS)
    assert far / DRAWS == pytest.approx(0.266, abs=sigma)
    assert near / DRAWS == pytest.approx(1 / 3, abs=sigma)
    assert words["a far away "] / far == pytest.approx(0.5, abs=3 * sigma)
    assert words["close up "] / near == pytest.approx(0.5, abs=3 * sigma)


def test_words_say_what_the_size_is(views):
    for view, prefix in views:
        if prefix in ("a far away ", "very small "):
            assert 170 <= view.size < 308
            assert min(view.x, view.y) >= 0 and max(view.x, view.y) + view.size <= 512
        elif prefix:
            assert 614 <= view.size <= 716
            assert max(view.x, view.y) + 512 <= view.size
        else:
            assert view.size == 512
        assert view.size % 2 == 0
    assert {view.image for view, _ in views} == set(range(5))
    assert np.mean([view.flip for view, _ in views]) == pytest.approx(0.5, abs=0.02)


def test_mask_is_the_pasted_box_without_its_outer_latent_pixels(views):
    for view, prefix in views[:500]:
        mask = view_mask(view, 512, 8)
        if prefix not in ("a far away ", "very small "):
            assert mask.all()
            continue
        image = Image.new("RGB", (512, 512), (255, 0, 0))
        picture = np.asarray(render_view(view, [image] * 5, 512)).astype(int)
        pasted = torch.tensor(abs(picture - 127).sum(-1) > 0)
        inside = mask.bool().repeat_interleave(8, 0).repeat_interleave(8, 1)
        assert pasted[inside].all(), "the loss must not see the canvas"
        rows = mask.any(1).sum().item()
        assert rows in (view.size // 8 - 2, view.size // 8 - 1)


def test_mask_is_never_empty_on_small_latents():
    rng = np.random.default_rng(1)
    for _ in range(2000):
        view, _ = draw_view(rng, 1, 64, resize=True)
        assert view_mask(view, 64, 8).sum() >= 1


def test_canvas_is_grey_and_flip_mirrors():
    image = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
    flipped = np.asarray(render_view(View(0, True, 64, 0, 0), [image], 64))
    assert np.array_equal(flipped, np.asarray(image)[:, ::-1])
    small = np.asarray(render_view(View(0, False, 30, 20, 10), [image], 64))
    assert (small[:10] == 127).all() and (small[:, :20] == 127).all()


def test_without_resizing_only_image_and_mirroring_are_drawn():
    rng = np.random.default_rng(2)
    drawn = {draw_view(rng, 3, 64, resize=False) for _ in range(200)}
    assert drawn == {(View(i, f, 64, 0, 0), "") for i in range(3) for f in (False, True)}
