"""Several trainings of each cell: what differs between them, and what does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from pipeline.bench.cli import app
from pipeline.bench.pipelines import pipelines
from pipeline.common.errors import BenchError
from pipeline.common.files import png_bytes, write_tar
from pipeline.concepts.shards import samples_of
from pipeline.corpus.captions import choose_captions
from pipeline.methods import training_seeds
from pipeline.models.adapter import Adapter, load_adapter
from pipeline.settings.profile import load_grid, load_params
from pipeline.train.inputs import regularization_captions
from tests.pipeline.corpora import write_corpus
from tests.pipeline.tiny import RARE_TOKENS, RESOLUTION, training_set, write_base

CELLS = Path("runs/toyland/cells")
PAIR = "cat+chair"


@pytest.fixture
def seeds(project: Path) -> None:
    """The default profile with a small base, three seeds, and one of them for Dreambooth."""
    write_base(project / "models/tiny")
    yaml, params, grid = YAML(), project / "params.yaml", project / "grid.yaml"
    content = yaml.load(params)
    content["base"] |= {"path": "models/tiny", "resolution": RESOLUTION}
    content["base"]["modifier_token_ids"] = RARE_TOKENS
    content["train"] |= {"seeds": [42, 43, 44], "regularization_captions": 5}
    content["methods"]["custom_diffusion"] |= {"steps": 2, "seeds": 2}
    content["methods"]["custom_diffusion_merge"] |= {"seeds": 2}
    content["methods"]["custom_diffusion_average"] = {"seeds": 2}
    content["methods"]["dreambooth"] |= {"seeds": 1}
    content["protocol"] = "smoke-v1"
    content["analyses"] = {}
    yaml.dump(content, params)
    content = yaml.load(grid)
    content["concepts"] = {name: {"class_noun": name} for name in ("cat", "chair")}
    content["compositions"] = {PAIR: {"first": "cat", "second": "chair"}}
    content["methods"].append("custom_diffusion_average")
    content["sequences"], content["sequence_concepts"] = {}, {}
    yaml.dump(content, grid)


def bench(*arguments: str) -> Result:
    result = CliRunner().invoke(app, [*arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def rename(old: str, new: str) -> None:
    path = Path("params.yaml")
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def adapter(method: str, subject: str, *folder: str) -> Adapter:
    return load_adapter(CELLS.joinpath(method, subject, *folder, "adapter.safetensors"))


def test_a_method_has_the_seeds_that_it_is_given_and_one_cell_if_nothing_is_random(seeds) -> None:
    params, grid = load_params(), load_grid()
    found = {m: training_seeds(m, params, grid, 1) for m in grid.methods}
    assert found == {
        "pretrained": [None],
        "textual_inversion": [42, 43, 44],
        "dreambooth": [42],
        "custom_diffusion": [42, 43],
        "custom_diffusion_merge": [],
        "custom_diffusion_average": [],
    }
    assert training_seeds("custom_diffusion_merge", params, grid, 2) == [42, 43]


def test_a_merge_of_more_trainings_than_there_are_is_refused(seeds) -> None:
    rename("    seeds: 2\n  custom_diffusion_merge:", "    seeds: 1\n  custom_diffusion_merge:")
    message = (
        r"^params.yaml: methods.custom_diffusion_merge.seeds: it is made of adapters of "
        r"custom_diffusion, which is trained with 1 of the 3 seeds: write 1$"
    )
    with pytest.raises(BenchError, match=message):
        pipelines("toyland")
    with pytest.raises(BenchError, match=message):
        bench("train", "custom_diffusion_merge", PAIR)


@pytest.mark.parametrize(
    ("method", "seed", "message"),
    [
        ("dreambooth", "43", "^seed 43 is unknown: dreambooth is trained with 42$"),
        ("custom_diffusion", "7", "^seed 7 is unknown: custom_diffusion is trained with 42, 43$"),
        ("pretrained", "42", "^seed 42: nothing in pretrained is random: leave --seed out$"),
    ],
)
@pytest.mark.parametrize("command", ["train", "sample", "score"])
def test_seeds_of_no_cell_are_refused(seeds, command, method, seed, message) -> None:
    with pytest.raises(BenchError, match=message):
        bench(command, method, "cat", "--seed", seed)


def write_shard(concept: str, number: int) -> None:
    drawn = training_set(concept, concept, number)
    samples = [("target", image, "") for image in drawn.targets]
    samples += list(zip(["regularization"] * 5, drawn.regularization, drawn.captions))
    samples += [("held_out", drawn.targets[0], f"a {concept}")]
    for folder in ("shards", "regularization"):
        write_tar(
            Path("runs/toyland", folder, f"{concept}.tar"),
            [
                {
                    "__key__": f"{part}-{i:04d}",
                    "png": png_bytes(image),
                    "txt": text,
                    "json": {"part": part},
                }
                for i, (part, image, text) in enumerate(samples)
            ],
        )


def test_stages_make_the_cells_of_each_seed(seeds) -> None:
    """Merges are of the same seed, and images of one prompt start from the same noise."""
    for number, name in enumerate(("cat", "chair")):
        write_shard(name, number)
        for option in ([], ["--seed", "43"]):
            bench("train", "custom_diffusion", name, *option)
    for option in ([], ["--seed", "43"]):
        bench("train", "custom_diffusion_average", PAIR, *option)
        bench("sample", "custom_diffusion", "cat", *option)

    for folder in ((), ("seed-43",)):
        mean = adapter("custom_diffusion_average", PAIR, *folder)
        parts = [adapter("custom_diffusion", name, *folder) for name in ("cat", "chair")]
        assert {made.provenance.seed for made in (mean, *parts)} == {43 if folder else 42}
        for name, delta in mean.deltas.items():
            expected = (parts[0].deltas[name] + parts[1].deltas[name]) / 2
            torch.testing.assert_close(delta, expected)
    first, second = (
        adapter("custom_diffusion", "cat"),
        adapter("custom_diffusion", "cat", "seed-43"),
    )
    assert not torch.equal(first.tokens["<new1>"], second.tokens["<new1>"])

    params = load_params()
    one, other = (samples_of(params, "custom_diffusion", "cat", seed=s) for s in (None, 43))
    assert [s["json"]["seed"] for s in one] == [s["json"]["seed"] for s in other]
    assert all("training_seed" not in s["json"] for s in one)
    # A tar in the place of another training's is found out.
    cell = params.cell("custom_diffusion", "cat")
    (cell / "seed-43/samples.tar").replace(cell / "samples.tar")
    with pytest.raises(BenchError, match=r"is of training_seed 43, not \(none\): delete the file"):
        samples_of(params, "custom_diffusion", "cat")


def test_captions_that_merges_keep_are_those_of_the_main_seed(seeds) -> None:
    write_corpus([(f"photo {i}", "train") for i in range(200)])

    def chosen_captions() -> list[str]:
        choose_captions("toyland")
        return regularization_captions(load_params())

    chosen = chosen_captions()
    rename("- 44", "- 45")
    assert chosen_captions() == chosen
    rename("- 42", "- 41")
    assert chosen_captions() != chosen
    assert len(chosen) == len(np.unique(chosen)) == 5
