"""What the analyses share: scores of images in memory, files and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TypeVar

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from eval.encoders.clip import clip_extractor
from eval.encoders.distance import distance_extractor, kernel_features
from eval.metrics import SetValue
from eval.metrics.image_alignment import image_alignment
from eval.metrics.kid import kid
from eval.metrics.text_alignment import text_alignment
from eval.statistics import clustered_mean, mean_over
from eval.style import DPI, STYLE
from pipeline.clip.openclip import load_clip
from pipeline.common.errors import BenchError
from pipeline.common.failures import FailureError
from pipeline.common.files import RESULTS, atomic_folder, png_bytes
from pipeline.concepts.concept import Concept, Subject
from pipeline.concepts.shards import held_out_of, image_of, targets_of
from pipeline.models.adapter import Adapter, applied, load_adapter
from pipeline.models.base import Base
from pipeline.sample.requests import Request, prompt_requests
from pipeline.sample.sampler import sample_all
from pipeline.settings.profile import Params

ALIGNMENTS = ("text_alignment", "image_alignment")
Values = npt.NDArray[np.float64]
S = TypeVar("S")
T = TypeVar("T")


def folder_of(params: Params, name: str) -> Path:
    """Where an analysis writes to."""
    return params.reports() / "analyses" / name


def adapter_of(params: Params, method: str, subject: str) -> Adapter:
    """The adapter of a cell.

    Raises:
        BenchError: it is missing or damaged.
        FailureError: it could not be made.
    """
    return load_adapter(params.cell(method, subject) / "adapter.safetensors")


def made(items: Iterable[S], make: Callable[[S], T]) -> Iterator[tuple[S, T]]:
    """Each item with what could be made of it; those of which nothing could are told, and left out.

    Raises:
        FailureError: nothing could be made of any.
    """
    failures: list[FailureError] = []
    count = 0
    for item in items:
        try:
            found = make(item)
        except FailureError as error:
            failures.append(error)
            print(f"left out: {error}")
        else:
            count += 1
            yield item, found
    if failures and not count:
        raise failures[0]


def requests_of(
    params: Params, about: Subject, references: Sequence[str], count: int
) -> list[Request]:
    """The first `count` images of each of the subject's prompts, from the noise of its cells."""
    nouns = [concept.class_noun for concept in about.concepts]
    protocol = params.protocol.name
    return prompt_requests(protocol, about.name, about.prompts, references, nouns, count)


class Judge:
    """The models that measure, loaded once; what they give is what `eval.scores.stage` would."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.clip = load_clip(params.protocol.score.clip)
        self.extract = clip_extractor(self.clip)

    def text_alignment(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Values:
        """Text-alignment [n] of each image with its prompt (without modifier tokens)."""
        features = self.extract([png_bytes(image) for image in images])
        how = self.params.protocol.score
        texts = self.clip.encode_texts([how.text_prefix + prompt for prompt in prompts])
        return text_alignment(features, texts, how.text_scale)

    def image_alignment(self, images: Sequence[Image.Image], concept: str) -> Values:
        """Image-alignment [n] of each image with the concept's target images.

        Raises:
            BenchError: the concept's shard is missing or holds none.
        """
        targets = [image_of(s) for s in targets_of(self.params, concept)]
        features = self.extract([png_bytes(image) for image in images])
        return image_alignment(features, self.extract(targets))

    def kid(self, images: Sequence[Image.Image], concept: str) -> SetValue:
        """KID of images that are independent of each other and the concept's held-out real ones.

        Raises:
            BenchError: there are too few real images.
        """
        reals = held_out_of(self.params, concept)
        if len(reals) < 2:
            raise BenchError(
                f"{concept}: KID needs two held-out images, not {len(reals)}: raise "
                "retrieve.held_out_images"
            )
        extract = distance_extractor(self.params, self.extract)
        x = kernel_features(extract, [image_of(s) for s in reals])
        y = kernel_features(extract, [png_bytes(image) for image in images])
        return kid(x, y, [s["txt"] for s in reals], [f"image {i}" for i in range(len(y))])


def adapter_scores(
    judge: Judge, base: Base, adapter: Adapter, about: Subject, count: int
) -> pd.DataFrame:
    """Samples a subject's prompts with an adapter, as its cells are, and scores them.

    Args:
        judge: measures.
        base: the adapter is applied to it meanwhile.
        adapter: of the subject.
        about: the subject; image-alignment with several concepts is the mean of that with each.
        count: images of each prompt.

    Returns:
        Columns subject, prompt_index, metric and value, the mean of each prompt.
    """
    requests = requests_of(judge.params, about, adapter.provenance.references, count)
    with applied(base, adapter):
        images = sample_all(base, requests, judge.params.sampler(len(about.concepts)))
    return prompt_scores(judge, requests, images, about.name, about.concepts)


def prompt_scores(
    judge: Judge,
    requests: Sequence[Request],
    images: Sequence[Image.Image],
    subject: str,
    concepts: Sequence[Concept],
) -> pd.DataFrame:
    """Scores of images of a subject's prompts, as `adapter_scores` returns them."""
    alignments = [judge.image_alignment(images, concept.name) for concept in concepts]
    frame = pd.DataFrame(
        {
            "subject": subject,
            "prompt_index": [request.record["prompt_index"] for request in requests],
            "text_alignment": judge.text_alignment(
                images, [str(request.record["scored_prompt"]) for request in requests]
            ),
            "image_alignment": np.mean(alignments, axis=0),
        }
    )
    return by_prompt(frame)


def by_prompt(images: pd.DataFrame) -> pd.DataFrame:
    """Scores of images, a column each, as rows of the mean of each prompt and metric."""
    known = [name for name in images.columns if name not in ALIGNMENTS]
    long = images.melt(known, list(ALIGNMENTS), "metric", "value")
    return long.groupby([*known, "metric"], sort=False)["value"].mean().reset_index()


def summary(prompts: pd.DataFrame, by: Sequence[str], step: str) -> pd.DataFrame:
    """Means over subjects with their errors; those over prompts where there is one subject.

    Args:
        prompts: columns subject, metric, prompt_index, value, those of `by` and that of `step`.
        by: columns that tell lines of a chart apart, such as the method.
        step: the column along which a line runs.

    Returns:
        A row for each of `by` and `step`: text_alignment, text_alignment_se and so on.
    """
    rows = []
    for key, part in prompts.groupby([*by, step], sort=False):
        row = dict(zip([*by, step], key))
        for metric in ALIGNMENTS:
            values = part[part["metric"] == metric]
            means = values.groupby("subject")["value"].mean()
            mean = (
                mean_over(means)
                if len(means) > 1
                else clustered_mean(values["value"], values["prompt_index"])
            )
            row |= {metric: mean.mean, f"{metric}_se": mean.std_error}
        rows.append(row)
    return pd.DataFrame(rows)


def write_results(
    folder: Path, tables: Mapping[str, pd.DataFrame], figures: Mapping[str, Figure]
) -> Path:
    """Replaces the folder by `<name>.csv` of each table and `<name>.png` of each figure."""
    with atomic_folder(folder, RESULTS) as temporary:
        for name, table in tables.items():
            path = temporary / f"{name}.csv"
            table.to_csv(path, index=False, float_format="%.8g", lineterminator="\n")
        with mpl.rc_context(STYLE):
            for name, figure in figures.items():
                path = temporary / f"{name}.png"
                figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return folder


def picture_table(
    rows: Mapping[str, Sequence[Image.Image | npt.NDArray[np.float64]]],
    titles: Sequence[str] = (),
    size: float = 1.3,
) -> Figure:
    """Pictures, and maps [h, w] in colours of their own scale, in rows that have a label each.

    Args:
        rows: of equal length, by label.
        titles: of the columns.
        size: inches of a picture.
    """
    across = max(len(pictures) for pictures in rows.values())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(size * across + 1.6, size * len(rows) + 0.4), layout="constrained")
        axes = figure.subplots(len(rows), across, squeeze=False)
        for line, (label, pictures) in zip(axes, rows.items()):
            for ax in line:
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
            for ax, picture in zip(line, pictures):
                ax.imshow(np.asarray(picture), cmap="magma", interpolation="nearest")
            line[0].set_ylabel(fill(label, 22), rotation=0, ha="right", va="center")
        for ax, title in zip(axes[0], titles):
            ax.set_title(title, fontsize=9, loc="center", fontweight="normal")
    return figure
