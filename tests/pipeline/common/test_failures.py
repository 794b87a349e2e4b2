"""Failures in place of results: no reader takes one for a result, and no result for one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from eval.analyses.cost.file import read_cost
from eval.scores.file import COLUMNS
from pipeline.common.errors import BenchError
from pipeline.common.failures import Failure, FailureError, about, failure_of
from pipeline.common.files import read_tar, write_failure, write_json, write_tar
from pipeline.concepts.shards import held_out_of, targets_of
from pipeline.models.adapter import Adapter, Provenance, load_adapter, save_adapter
from pipeline.settings.profile import load_params

FAILURE = Failure("diverged", "dreambooth on cat: the “loss” is\tnot finite: lower it")


@pytest.mark.parametrize(
    ("name", "read"), [("adapter.safetensors", load_adapter), ("samples.tar", read_tar)]
)
def test_readers_refuse_a_failure_with_its_own_message(
    tmp_path: Path, name: str, read: Callable[[Path], object]
) -> None:
    write_failure(tmp_path / name, FAILURE)
    with pytest.raises(FailureError) as error:
        read(tmp_path / name)
    assert error.value.failure == FAILURE
    assert str(error.value) == FAILURE.message


def test_readers_of_a_concepts_images_refuse_it_too(project: Path) -> None:
    params = load_params()
    write_failure(params.runs() / "shards" / "cat.tar", FAILURE)
    write_failure(params.runs() / "regularization" / "cat.tar", FAILURE)
    for read in (targets_of, held_out_of):
        with pytest.raises(FailureError, match="dreambooth on cat"):
            read(params, "cat")


def test_a_cell_that_failed_has_no_cost(tmp_path: Path) -> None:
    write_failure(tmp_path / "cost.json", FAILURE)
    assert read_cost(tmp_path / "cost.json") is None


def test_a_folder_holds_a_failure_alone(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "groups.csv").write_text("of an earlier run")
    assert failure_of(folder) is None
    write_failure(folder, FAILURE)
    assert failure_of(folder) == FAILURE
    assert len(list(folder.iterdir())) == 1
    assert list(tmp_path.iterdir()) == [folder]


def test_results_and_missing_files_are_no_failures(tmp_path: Path) -> None:
    made = Provenance("m", "s", "base", "hash", ("<new1> cat",))
    save_adapter(Adapter({"<new1>": torch.ones(4)}, {}, made), tmp_path / "a.safetensors")
    write_tar(tmp_path / "a.tar", [{"__key__": "failed", "json": {"failed": "no"}}])
    write_json(tmp_path / "a.json", {"seconds": 1.0, "failed": "no"})
    (tmp_path / "a.csv").write_text(",".join(COLUMNS) + "\n")
    (tmp_path / "empty.csv").touch()
    for path in (*tmp_path.iterdir(), tmp_path / "none.tar", tmp_path / "a.csv" / "none.tar"):
        assert failure_of(path) is None
    assert read_tar(tmp_path / "a.tar") == [{"__key__": "failed", "json": {"failed": "no"}}]


def test_half_a_failure_is_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_failure(path, FAILURE)
    path.write_bytes(path.read_bytes()[:-5])
    assert failure_of(path) is None
    with pytest.raises(BenchError, match="truncated or not a tar") as error:
        read_tar(path)
    assert not isinstance(error.value, FailureError)


def test_failures_say_whose_they_are_and_other_errors_stay() -> None:
    with pytest.raises(FailureError) as error, about("lora on dog"):
        raise FailureError(*FAILURE)
    assert error.value.failure == Failure("diverged", f"lora on dog: {FAILURE.message}")
    with pytest.raises(BenchError, match="^the disk is full$"), about("lora on dog"):
        raise BenchError("the disk is full")
