"""What fails of the data fails alone: from the stage that finds out to the printed table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from ruamel.yaml import YAML

from eval.analyses.common import made
from eval.report.printing import print_table
from pipeline.bench import cli
from pipeline.common.failures import Failure, FailureError, failure_of
from pipeline.common.files import png_bytes, read_tar, write_failure, write_tar
from pipeline.models.adapter import save_adapter
from pipeline.models.base import Base
from tests.eval.analyses.conftest import Adapt, Configure
from tests.pipeline.tiny import RESOLUTION

RUNS = Path("runs/toyland")
RECORDS = Path("reports/cells")
FILES = ("scores.csv", "samples.jpg")
DIVERGED = (
    r"dreambooth on cat: the training diverged: the loss is not finite at step \d of 9 "
    r"\(learning rate 9\): lower methods.dreambooth.learning_rate in the profile's params.yaml"
)
TOO_FEW = Failure("too few images", "cat: only 3 regularization images have a caption like that")


@pytest.fixture
def ready(configure: Configure, base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scored profile before the cells of a method whose learning rate is too high."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # which the command line may set
    configure(weights={"methods": ["custom_diffusion"]}, truth={"scenes": 3, "sets": 3})
    yaml = YAML()
    params, grid = yaml.load(Path("params.yaml")), yaml.load(Path("grid.yaml"))
    params["methods"]["dreambooth"] |= {"learning_rate": 9, "steps": 9}
    params["corpus"]["resolution"] = RESOLUTION
    grid["methods"].append("dreambooth")
    yaml.dump(params, Path("params.yaml"))
    yaml.dump(grid, Path("grid.yaml"))
    rng = np.random.default_rng(0)
    generated = [
        {
            "__key__": f"generated-{i:04d}",
            "png": png_bytes(Image.fromarray(rng.integers(0, 256, (RESOLUTION,) * 2 + (3,), "u1"))),
            "txt": "a cat",
            "json": {"part": "generated"},
        }
        for i in range(6)
    ]
    write_tar(RUNS / "generated" / "cat.tar", generated)


def bench(*arguments: str) -> None:
    """`bench` in this process."""
    cli.app(arguments, standalone_mode=False)


def test_a_diverged_training_is_one_error_and_leaves_nothing(ready: None) -> None:
    bench("shard", "cat")
    with pytest.raises(FailureError, match=f"^{DIVERGED}$"):
        bench("train", "dreambooth", "cat")
    assert not [path for path in RUNS.rglob("cells/dreambooth/cat/*") if path.name != "samples.tar"]


def test_a_diverged_training_becomes_a_cell_of_the_table(
    ready: None, capsys: pytest.CaptureFixture[str]
) -> None:
    bench("shard", "cat", "--record-failure")
    assert read_tar(RUNS / "shards" / "cat.tar")
    for stage in ("train", "sample", "score"):
        bench(stage, "dreambooth", "cat", "--record-failure")
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("failed: dreambooth on cat: the training diverged")
        assert "dreambooth/cat" in last.split("recorded in")[1]
    folders = RUNS / "cells" / "dreambooth" / "cat", RECORDS / "dreambooth" / "cat"
    found = {path.name: failure_of(path) for folder in folders for path in folder.iterdir()}
    made, recorded = {"adapter.safetensors", "samples.tar"}, {"cost.json", *FILES}
    assert found.keys() == made | recorded
    assert len(set(found.values())) == 1 and None not in found.values()

    print_table()
    table = capsys.readouterr().out
    row = next(line for line in table.splitlines() if line.startswith("dreambooth"))
    assert row.split("  ")[0] == "dreambooth" and "0/2, 1 diverged" in row
    assert table.splitlines()[-1].startswith("diverged: dreambooth/cat: dreambooth on cat: the tra")
    assert "not run: dreambooth: chair, cat+chair" in table


def test_images_that_are_not_finite_are_not_written(ready: None, adapt: Adapt) -> None:
    adapter = adapt("custom_diffusion", "chair")
    adapter.tokens["<new1>"].fill_(3e38)  # finite, but not what comes of it
    folder = RUNS / "cells" / "custom_diffusion" / "chair"
    save_adapter(adapter, folder / "adapter.safetensors")
    before = (folder / "samples.tar").read_bytes()
    whose = "^custom_diffusion on chair: the image of '.*<new1> chair.*' has values that are not"
    with pytest.raises(FailureError, match=whose) as error:
        bench("sample", "custom_diffusion", "chair")
    assert (folder / "samples.tar").read_bytes() == before
    bench("sample", "custom_diffusion", "chair", "--record-failure")
    assert failure_of(folder / "samples.tar") == error.value.failure


def test_a_concept_without_a_corpus_fails_alone(
    ready: None, adapt: Adapt, capsys: pytest.CaptureFixture[str]
) -> None:
    """What retrieval recorded is handed on to all that needs the concept, and to nothing else."""
    adapt("custom_diffusion", "chair")
    write_failure(RUNS / "regularization" / "cat.tar", TOO_FEW)
    for stage in (
        ("shard", "cat"),
        ("oracle", "cat"),
        ("train", "custom_diffusion", "cat"),
        ("train", "custom_diffusion_merge", "cat+chair"),
        ("train", "dreambooth", "cat+chair"),
        ("sample", "custom_diffusion", "cat"),
        ("score", "pretrained", "cat"),
        ("score", "pretrained", "cat+chair"),
    ):
        bench(*stage, "--record-failure")
        assert f"failed: {TOO_FEW.message} (recorded in " in capsys.readouterr().err
    for path in ("oracle/cat/scores.csv", *(f"pretrained/cat+chair/{name}" for name in FILES)):
        assert failure_of(RECORDS / path) == TOO_FEW
    # Analyses are about the others.
    for name, file in (("weights", "groups"), ("truth", "ranks")):
        bench("analyse", name, "--record-failure")
        assert f"left out: {TOO_FEW.message}" in capsys.readouterr().out
        subjects = set(pd.read_csv(f"reports/analyses/{name}/{file}.csv")["subject"])
        assert "chair" in subjects and "cat" not in subjects


def test_an_analysis_of_which_nothing_is_left_fails(ready: None, adapt: Adapt) -> None:
    for concept in ("cat", "chair"):
        write_failure(
            RUNS / "cells" / "custom_diffusion" / concept / "adapter.safetensors", TOO_FEW
        )
    with pytest.raises(FailureError, match="^cat: only 3"):
        bench("analyse", "weights")
    assert not Path("reports/analyses/weights").exists()
    bench("analyse", "weights", "--record-failure")
    assert failure_of(Path("reports/analyses/weights")) == TOO_FEW
    adapt("custom_diffusion", "cat")
    bench("analyse", "weights", "--record-failure")
    names = {path.name for path in Path("reports/analyses/weights").iterdir()}
    assert names == {"tensors.csv", "groups.csv", "weights.png"}


def test_other_mistakes_are_not_recorded(ready: None, profile: Path) -> None:
    (RUNS / "regularization" / "cat.tar").unlink()
    with pytest.raises(Exception, match="the shard is missing"):
        bench("shard", "cat", "--record-failure")


def test_what_was_made_goes_on_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    def half(number: int) -> int:
        if number % 2:
            raise FailureError("odd", f"{number} is odd")
        return number // 2

    assert list(made([1, 4, 3, 6], half)) == [(4, 2), (6, 3)]
    assert capsys.readouterr().out == "left out: 1 is odd\nleft out: 3 is odd\n"
    with pytest.raises(FailureError, match="^3 is odd$"):
        list(made([3, 1], half))
    assert list(made([], half)) == []
