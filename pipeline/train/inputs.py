"""What a method is made of, as its needs say: images, adapters, captions of the corpus."""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import Image

from pipeline.common.errors import BenchError
from pipeline.common.files import read_tar
from pipeline.common.places import repro_command, repro_command_for
from pipeline.concepts.concept import Concept, Subject
from pipeline.methods import Needs, TrainingSet
from pipeline.models.adapter import Adapter, load_adapter
from pipeline.settings.profile import Params, task_name


def load_training_sets(subject: Subject, runs: Path, needs: Needs) -> tuple[TrainingSet, ...]:
    """The images of those concepts of the subject that are needed.

    Raises:
        BenchError: a file is missing or truncated, or there are no targets.
    """
    concepts = {concept.name: concept for concept in subject.concepts}
    return tuple(load_training_set(concepts[name], runs, needs) for name in needs.shards)


def load_parts(params: Params, needs: Needs, seed: int | None) -> tuple[Adapter, ...]:
    """The adapters of other methods that are needed, from trainings with the same seed.

    Raises:
        BenchError: one is missing or damaged.
        FailureError: one could not be made.
    """
    paths = [params.cell(method, concept, seed) for method, concept in needs.adapters]
    return tuple(load_adapter(path / "adapter.safetensors") for path in paths)


def load_previous(params: Params, method: str, task: Subject) -> Adapter:
    """The method's own adapter of the task before.

    Raises:
        BenchError: it is missing, damaged or of another task.
        FailureError: it could not be made.
    """
    sequence = task.name.partition("/")[0]
    before = task_name(sequence, len(task.concepts) - 1)
    path = params.cell(method, before) / "adapter.safetensors"
    adapter = load_adapter(path)
    made = adapter.provenance
    told = (made.method, made.subject, len(made.references))
    if told != (method, before, len(task.concepts) - 1):
        raise BenchError(
            f"{path}: is of {made.method} on {made.subject}, not of {method} on {before}: delete "
            f"it and run `{repro_command_for(path)}`"
        )
    return adapter


def load_training_set(concept: Concept, runs: Path, needs: Needs) -> TrainingSet:
    """Reads the concept's shard, and the generated images instead of the retrieved ones if those
    are needed.

    Raises:
        BenchError: a file is missing or truncated, or there are no targets.
    """
    path = runs / "shards" / f"{concept.name}.tar"
    shard = _read_images(path)
    targets = [image for key, image, _ in shard if key.startswith("target-")]
    if not targets:
        raise BenchError(
            f"{path}: holds no target images: delete the shard and run `{repro_command_for(path)}`"
        )
    if concept.name in needs.generated:
        shard = _read_images(runs / "generated" / f"{concept.name}.tar")
    others = [(image, text) for key, image, text in shard if not key.startswith("target-")]
    return TrainingSet(concept, targets, [i for i, _ in others], [text for _, text in others])


def _read_images(path: Path) -> list[tuple[str, Image.Image, str]]:
    """Key, image and caption of each sample of a shard."""
    found = []
    for sample in read_tar(path):
        try:
            image = Image.open(io.BytesIO(sample["png"])).convert("RGB")
        except (KeyError, OSError) as error:
            raise BenchError(
                f"{path}: sample {sample['__key__']} has no readable image: delete the shard and "
                f"run `{repro_command_for(path)}`"
            ) from error
        found.append((sample["__key__"], image, sample.get("txt", "")))
    return found


def regularization_captions(params: Params) -> list[str]:
    """The captions of C_reg: a random, repeatable choice from the URL table, for all trainings.

    Raises:
        BenchError: stage `captions` did not run, or its file is damaged.
    """
    path = params.runs() / "captions.json"
    again = f"run `{repro_command(params.profile)}`"
    try:
        return [str(caption) for caption in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        raise BenchError(f"{path}: the captions of C_reg are missing: {again} to make it") from None
    except (OSError, ValueError, TypeError) as error:
        raise BenchError(f"{path}: cannot be read ({error}): delete it and {again}") from error
