"""How well each metric ranks images whose content is known, as they are drawn from parameters.

Four series of drawn images move away from something step by step, and a good metric follows:

- *identity*: from the concept's own thing to another individual of its category, in one and the
  same scene. Proportions and colours change steadily, the pattern in the middle;
- *pair*: the same with another thing beside it, as in a composition;
- *prompt*: from all that a caption says (FACTS) to nothing of it, one fact at a time in an order
  that is drawn for each scene;
- *class*: sets of images, from all of the concept's category to all of another one.

The order is measured by Spearman's rank correlation, with the sign that makes high ones right (as
several images share a distance, even a faultless order stays a little below 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from eval.analyses.common import (
    Judge,
    folder_of,
    made,
    picture_table,
    write_results,
)
from eval.analyses.truth import Parameters
from eval.encoders.dino import dino_extractor
from eval.encoders.distance import distance_extractor, kernel_features
from eval.encoders.extractor import Extractor
from eval.encoders.windows import MIDDLE, by_window, windows_extractor
from eval.metrics import Values
from eval.metrics.catalogue import LEAST_LOOKALIKES, METRICS, OfGallery
from eval.metrics.fid import fid
from eval.metrics.identity import Gallery
from eval.metrics.image_alignment import image_alignment
from eval.metrics.kid import kid
from eval.statistics import interval, mean_over, rank_correlation
from eval.style import COLOURS, STYLE, words
from pipeline.common.errors import BenchError
from pipeline.common.files import png_bytes
from pipeline.common.places import DEFAULT_PROFILE
from pipeline.common.seeds import seed_of
from pipeline.concepts.shards import Sample, gallery_of, image_of, targets_of
from pipeline.settings.profile import Params, load_grid, load_params, profile_folder
from pipeline.toyland.world.drawing import draw
from pipeline.toyland.world.personal import PERSONAL
from pipeline.toyland.world.scenes import (
    BACKGROUNDS,
    CATEGORIES,
    COLOURED_STYLES,
    RGB,
    SIZES,
    Scene,
    Thing,
    full_caption,
    random_scene,
    random_thing,
)
from pipeline.toyland.world.scenes import (
    COLOURS as BODY_COLOURS,
)

IDENTITY, PAIR, PROMPT, CLASS = "identity", "pair", "prompt", "class"
FACTS = ("category", "colour", "background", "size", "style")
ALL = "all"
SHOWN = 3  # scenes on the sheet


def between(first: Thing, second: Thing, share: float) -> Thing:
    """A thing on the way from one individual to another of its category, at 0 to 1.

    Numbers are interpolated; the pattern, which has no numbers, changes in the middle.
    """

    def colour(a: RGB, b: RGB) -> RGB:
        red, green, blue = (round((1 - share) * x + share * y) for x, y in zip(a, b))
        return red, green, blue

    return replace(
        first,
        rgb=colour(first.rgb, second.rgb),
        shape=tuple((1 - share) * x + share * y for x, y in zip(first.shape, second.shape)),
        pattern=first.pattern if share < 0.5 else second.pattern,
        pattern_rgb=colour(first.pattern_rgb, second.pattern_rgb),
        eye_rgb=colour(first.eye_rgb, second.eye_rgb),
    )


def identity_series(rng: np.random.Generator, thing: Thing, grades: int) -> list[Scene]:
    """A scene of the thing, and the same one with less and less of it: [grades]."""
    return _away(rng, random_scene(rng, things=(thing,), size="normal", style="photo"), grades)


def pair_series(rng: np.random.Generator, thing: Thing, grades: int) -> list[Scene]:
    """The same with a thing of another category beside it, which stays."""
    noun = str(rng.choice([name for name in CATEGORIES if name != thing.category]))
    both = thing, random_thing(rng, noun)
    return _away(rng, random_scene(rng, things=both, size="normal", style="photo"), grades)


def _away(rng: np.random.Generator, scene: Scene, grades: int) -> list[Scene]:
    """The scene with less and less of its first thing, and more of another individual."""
    thing, *beside = scene.things
    other = random_thing(rng, thing.category)
    steps = np.linspace(0, 1, grades)
    return [replace(scene, things=(between(thing, other, float(s)), *beside)) for s in steps]


def prompt_series(rng: np.random.Generator, thing: Thing) -> list[Scene]:
    """A scene of the thing, and the same one with one more fact changed each time: [FACTS + 1]."""

    def another(options: Sequence[str], *known: str) -> str:
        left = [option for option in options if option not in known]
        return left[int(rng.integers(len(left)))]

    # Captions do not mention the normal size, so that there is one fact less to see.
    size, style = another(tuple(SIZES), "normal"), another(COLOURED_STYLES)
    scene = random_scene(rng, things=(thing,), size=size, style=style)
    series = [scene]
    for i in rng.permutation(len(FACTS)):
        fact, (shown,) = FACTS[i], scene.things
        if fact == "category":
            category = another(CATEGORIES, shown.category)
            scene = replace(scene, things=(replace(shown, category=category),))
        elif fact == "colour":
            colour = another(tuple(BODY_COLOURS), shown.colour)
            changed = replace(shown, colour=colour, rgb=BODY_COLOURS[colour])
            scene = replace(scene, things=(changed,))
        elif fact == "background":
            scene = replace(scene, background=another(tuple(BACKGROUNDS), scene.background))
        elif fact == "size":
            scene = replace(scene, size=another(tuple(SIZES), scene.size))
        else:
            scene = replace(scene, style=another(COLOURED_STYLES, scene.style))
        series.append(scene)
    return series


def class_set(
    rng: np.random.Generator, noun: str, other: str, count: int, share: float
) -> list[Scene]:
    """Scenes of a category, of which a share is of another one; the rest does not depend on it."""
    changed = round(share * count)
    seeds = rng.integers(2**63, size=count)
    nouns = [other if i < changed else noun for i in range(count)]
    return [
        random_scene(own, things=(random_thing(own, name),))
        for name, own in zip(nouns, map(np.random.default_rng, seeds))
    ]


def analyse_truth(profile: str = DEFAULT_PROFILE) -> Path:
    """Stage: `values.csv` (each image or set), `ranks.csv`, a chart and a sheet of what is drawn.

    Raises:
        BenchError: the profile does not run it, a concept is not a drawn thing, or shards or
            models that measure are missing.
    """
    params = load_params(profile)
    about = Parameters.of(params)
    concepts = about.concepts or [name for name in load_grid(profile).concepts if name in PERSONAL]
    for name in concepts:
        if name not in PERSONAL:
            raise BenchError(
                f"{profile_folder(profile) / 'params.yaml'}: analyses.truth.concepts: {name!r} is "
                f"not a drawn thing: choose from {', '.join(PERSONAL)}"
            )
    judge = Judge(params)
    likeness = _likeness(judge, params)
    found = made(concepts, lambda name: measured(judge, likeness, name, about))
    parts = [part for _, part in found]
    values = pd.concat(parts, ignore_index=True)
    table = ranks(values)
    for row in table[table["subject"] == ALL].to_dict("records"):
        print(
            f"truth: {row['metric']} by {row['truth']}: rank correlation {row['rho']:.2f} "
            f"[{row['low']:.2f}, {row['high']:.2f}]"
        )
    figures = {"truth": chart(values, table), "series": sheet(concepts, about)}
    return write_results(folder_of(params, "truth"), {"values": values, "ranks": table}, figures)


def measured(
    judge: Judge, likeness: Mapping[str, Extractor], concept: str, about: Parameters
) -> pd.DataFrame:
    """What each metric of the protocol says of a concept's series.

    Returns:
        Columns subject, truth, scene (which series), distance (0 to 1), metric and value.
    """
    thing, asked = PERSONAL[concept], judge.params.protocol.score.metrics
    series: dict[str, list[list[Scene]]] = {IDENTITY: [], PAIR: [], PROMPT: []}
    for i in range(about.scenes):
        series[IDENTITY].append(identity_series(_rng(concept, IDENTITY, i), thing, about.grades))
        series[PAIR].append(pair_series(_rng(concept, PAIR, i), thing, about.grades))
        series[PROMPT].append(prompt_series(_rng(concept, PROMPT, i), thing))
    parts = []
    for truth, found in series.items():
        scenes = [scene for one in found for scene in one]
        images = [Image.fromarray(draw(scene)) for scene in scenes]
        index = pd.DataFrame(
            [(i, step / (len(one) - 1)) for i, one in enumerate(found) for step in range(len(one))],
            columns=["scene", "distance"],
        ).assign(subject=concept, truth=truth)
        if "text_alignment" in asked:
            captions = [full_caption(one[0]) for one in found for _ in one]
            text = judge.text_alignment(images, captions)
            parts.append(index.assign(metric="text_alignment", value=text))
        encoded = [png_bytes(image) for image in images]
        targets = [image_of(s) for s in targets_of(judge.params, concept)]
        for metric, extract in likeness.items():
            near = image_alignment(extract(encoded), extract(targets))
            parts.append(index.assign(metric=metric, value=near))
        for metric, ranked in _ranked(judge, concept, encoded).items():
            parts.append(index.assign(metric=metric, value=ranked))
    if {"kid", "fid"} & set(asked):
        parts.append(_class_values(judge, concept, about).assign(subject=concept, truth=CLASS))
    return pd.concat(parts, ignore_index=True)


def ranks(values: pd.DataFrame) -> pd.DataFrame:
    """How each metric ranks each kind of series: for each concept, and in the mean over them.

    Returns:
        Columns truth, metric, subject (ALL for the mean), rho, low and high (a 95 % interval, of
        scenes for a concept and of concepts for the mean), n and clusters.
    """
    rows = []
    for (truth, metric), group in values.groupby(["truth", "metric"], sort=False):
        # Alignments should fall with the distance, KID and FID should grow.
        sign, found = (-1 if METRICS[str(metric)].higher_is_better else 1), []
        for subject, part in group.groupby("subject", sort=False):
            one = rank_correlation(sign * part["distance"], part["value"], part["scene"])
            found.append(one.rho)
            rows.append({"truth": truth, "metric": metric, "subject": subject, **one._asdict()})
        mean = mean_over(found)
        low, high = interval(mean)
        low, high = max(low, -1), min(high, 1)  # NaN stays
        all_of = {"truth": truth, "metric": metric, "subject": ALL, "rho": mean.mean}
        rows.append({**all_of, "low": low, "high": high, "n": len(group), "clusters": mean.n})
    return pd.DataFrame(rows)


def chart(values: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """A panel for each kind of series and metric: a thin line for each concept, and their mean."""
    panels = list(table[table["subject"] == ALL].itertuples(index=False))
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * across, 2.9 * down), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False).ravel()
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        for ax, panel in zip(axes, panels):
            colour = COLOURS[(IDENTITY, PROMPT, CLASS, PAIR).index(panel.truth)]
            part = values[(values["truth"] == panel.truth) & (values["metric"] == panel.metric)]
            for _, one in part.groupby("subject", sort=False):
                line = one.groupby("distance")["value"].mean()
                ax.plot(line.index, line, color=colour, alpha=0.3, lw=1)
            line = part.groupby("distance")["value"].mean()
            ax.plot(line.index, line, color=colour, marker="o")
            title = METRICS[str(panel.metric)].title
            ax.set_title(f"{title}\nrank correlation {panel.rho:.2f}", fontsize=10)
            ax.set(xlabel=f"distance in {panel.truth}")
    return figure


def sheet(concepts: Sequence[str], about: Parameters) -> Figure:
    """The first series of the first concepts."""
    rows = {}
    for concept in concepts[:SHOWN]:
        thing = PERSONAL[concept]
        identity = identity_series(_rng(concept, IDENTITY, 0), thing, about.grades)
        prompt = prompt_series(_rng(concept, PROMPT, 0), thing)
        for truth, scenes in ((IDENTITY, identity), (PROMPT, prompt)):
            pictures = [Image.fromarray(draw(scene)) for scene in scenes]
            rows[f"{words(concept)}, {truth}"] = pictures
    return picture_table(rows)


def _class_values(judge: Judge, concept: str, about: Parameters) -> pd.DataFrame:
    noun = PERSONAL[concept].category
    extract = distance_extractor(judge.params, judge.extract)
    metrics = {"kid": kid, "fid": fid}
    rows = []
    for i in range(about.sets):
        rng = _rng(concept, CLASS, i)
        other = str(rng.choice([name for name in CATEGORIES if name != noun]))
        labels = range(about.set_images)
        reals = _features(extract, class_set(rng, noun, other, about.set_images, 0))
        seed = int(rng.integers(2**63))
        for share in np.linspace(0, 1, about.grades):
            same = np.random.default_rng(seed)
            scenes = class_set(same, noun, other, about.set_images, float(share))
            found = _features(extract, scenes)
            own = [about.set_images + label for label in labels]
            rows += [
                (i, share, name, metric(reals, found, labels, own).value)
                for name, metric in metrics.items()
                if name in judge.params.protocol.score.metrics
            ]
    return pd.DataFrame(rows, columns=["scene", "distance", "metric", "value"])


def _features(extract: Extractor, scenes: Sequence[Scene]) -> npt.NDArray[np.float32]:
    images = [png_bytes(Image.fromarray(draw(scene))) for scene in scenes]
    return kernel_features(extract, images)


def _likeness(judge: Judge, params: Params) -> dict[str, Extractor]:
    """What image-alignments of the protocol see images with."""
    asked = params.protocol.score.metrics
    found = {"image_alignment": judge.extract} if "image_alignment" in asked else {}
    if "dino_image_alignment" in asked:
        found["dino_image_alignment"] = dino_extractor(params.score.dino)
    return found


def _ranked(judge: Judge, concept: str, images: Sequence[bytes]) -> dict[str, Values]:
    """The protocol's metrics that rank the concept's gallery, if it has look-alikes enough."""
    names = judge.params.protocol.score.metrics
    asked = {n: metric for n in names if isinstance(metric := METRICS[n], OfGallery)}
    pictures = gallery_of(judge.params, concept) if asked else None
    if pictures is None or pictures.lookalikes() < LEAST_LOOKALIKES:
        return {}
    extract = windows_extractor(judge.extract)

    def middles(samples: Sequence[Sample]) -> npt.NDArray[np.float32]:
        return by_window(extract([image_of(sample) for sample in samples]))[:, MIDDLE]

    seen, gallery = by_window(extract(images)), Gallery(*map(middles, pictures))
    return {name: metric.measure(seen, gallery) for name, metric in asked.items()}


def _rng(*purpose: object) -> np.random.Generator:
    return np.random.default_rng(seed_of("truth", *purpose))
