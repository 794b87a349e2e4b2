from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from eval.analyses.editing.stage import Replacement, analyse_editing, edit, token_mapping
from pipeline.models.base import Base
from pipeline.sample.sampler import sample
from pipeline.settings.profile import SamplerParams, load_params
from tests.eval.analyses.conftest import Adapt, Configure

CAT, DOG = "a cat in the snow", "a dog in the snow"


@pytest.fixture
def params(base: Base) -> SamplerParams:
    return load_params().sampler().model_copy(update={"steps": 5, "eta": 0.0})


def pixels(images: list) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


def columns(matrix: Tensor) -> list[dict[int, float]]:
    """What each target token takes: by source token."""
    return [{int(i): float(c[i]) for i in c.nonzero()[:, 0]} for c in matrix.T]


def test_replaced_words_take_the_attention_of_those_they_replace() -> None:
    source, target = (
        [("a", [1]), ("cat", [2]), ("sat", [3])],
        [("a", [1]), ("dog", [2]), ("sat", [3])],
    )
    assert columns(token_mapping(source, target, 6)) == [{i: 1} for i in range(6)]


def test_words_of_several_tokens_share_the_attention() -> None:
    source = [("a", [1]), ("cat", [2]), ("sat", [3])]
    target = [("a", [1]), ("tortoise", [2, 3]), ("sat", [4])]
    found = columns(token_mapping(source, target, 8))
    assert found == [{0: 1}, {1: 1}, {2: 0.5}, {2: 0.5}, {3: 1}, {4: 1}, {5: 1}, {6: 1}]
    back = columns(token_mapping(target, source, 8))
    assert back == [{0: 1}, {1: 1}, {2: 1, 3: 1}, {4: 1}, {5: 1}, {6: 1}, {7: 1}, {7: 1}]


def test_added_words_keep_their_own_attention() -> None:
    source = [("a", [1]), ("cat", [2])]
    target = [("a", [1]), ("watercolor", [2]), ("of", [3]), ("a", [4]), ("cat", [5])]
    found = columns(token_mapping(source, target, 8))
    assert found[3] == {}
    assert found[5] == {2: 1}
    assert found[6:] == [{3: 1}, {4: 1}]
    assert sum(column == {1: 1} for column in found) == 1


def test_attention_is_replaced_by_einsum() -> None:
    """The formula of the released code: the source's attention times the mapper."""
    rng = np.random.default_rng(0)
    attention = torch.tensor(rng.uniform(size=(8, 2, 5, 6)))
    source = [("a", [1]), ("cat", [2])]
    target = [("a", [1]), ("red", [2]), ("cat", [3])]
    mapping = token_mapping(source, target, 6)
    replacement = Replacement(mapping, 2, 1)
    replacement.step = 1
    found = replacement("x.attn2", attention)
    assert torch.equal(found[:6], attention[:6])
    expected = np.einsum("nhqs,st->nhqt", attention[4:6].numpy(), mapping.numpy())
    expected[..., 2] = attention[6:, ..., 2]
    assert found[6:].numpy() == pytest.approx(expected)
    assert torch.equal(replacement("x.attn1", attention), attention)
    replacement.step = 2
    assert torch.equal(replacement("x.attn2", attention), attention)


def test_self_attention_is_that_of_the_source_where_it_is_coarse() -> None:
    for queries, replaced in ((256, True), (257, False)):
        attention = torch.rand(4, 1, queries, queries)
        replacement = Replacement(torch.eye(4), 0, 1)
        replacement.step = 0
        found = replacement("x.attn1", attention)
        assert torch.equal(found[3], attention[2 if replaced else 3])


def test_a_word_replaced_by_itself_changes_nothing(base: Base, params: SamplerParams) -> None:
    before, after = edit(base, CAT, CAT, [1, 2], params, 0.8, 0.4)
    assert np.abs(pixels(before) - pixels(after)).max() <= 1
    plain = sample(base, [CAT, CAT], [1, 2], params)
    assert np.abs(pixels(before) - pixels(plain)).max() <= 1


def test_without_replacement_it_is_plain_sampling(base: Base, params: SamplerParams) -> None:
    before, after = edit(base, CAT, DOG, [1, 2], params, 0, 0)
    plain = pixels(sample(base, [CAT, CAT, DOG, DOG], [1, 2, 1, 2], params))
    assert np.abs(pixels(before + after) - plain).max() <= 1


def test_replacement_changes_the_edited_image_alone(base: Base, params: SamplerParams) -> None:
    with torch.no_grad():
        for name, weight in base.unet.named_parameters():
            if "attn2" in name:
                weight.mul_(4)  # random weights hardly attend to words
    before, after = edit(base, CAT, DOG, [1], params, 1, 1)
    plain = pixels(sample(base, [CAT, DOG], [1, 1], params))
    assert np.abs(pixels(before) - plain[:1]).max() <= 1
    assert np.abs(pixels(after) - plain[1:]).max() > 1


def test_stage(configure: Configure, adapt: Adapt, base: Base) -> None:
    edits = [
        {"source": "a {} in the snow", "target": "a {} in the city"},
        {"source": "photo of a {}", "target": "a watercolor painting of a {}"},
    ]
    configure(editing={"concept": "cat", "edits": edits, "images": 2})
    adapt("custom_diffusion", "cat")
    folder = analyse_editing()
    table = pd.read_csv(folder / "editing.csv")
    assert len(table) == 2 * 2 * 2
    assert (table.loc[table["when"] == "before", "change"] == 0).all()
    assert (table.loc[table["when"] == "after", "change"] > 0).all()
    assert (folder / "editing.png").is_file()
