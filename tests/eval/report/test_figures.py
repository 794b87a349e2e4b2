"""Charts: what they draw is what was scored."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import Ellipse

from eval.report.figures import bars, frontier, scatter, write_figures
from eval.report.winners import winners
from eval.results import REFERENCES, load_results
from eval.style import COLOURS, GREY, method_style


def test_points_are_means_and_ellipses_their_errors(profile: Path) -> None:
    results = load_results()
    figure = scatter(results, "single")
    assert figure is not None
    (ax,) = figure.axes
    lines = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    assert set(lines) == {"pretrained", "custom diffusion"}
    ellipses = {tuple(patch.center): patch for patch in ax.patches if isinstance(patch, Ellipse)}
    for method, label in (("pretrained", "pretrained"), ("custom_diffusion", "custom diffusion")):
        x = results.mean(method, "single", "text_alignment")
        y = results.mean(method, "single", "image_alignment")
        assert x is not None
        assert y is not None
        ((at, of),) = zip(*lines[label].get_data())
        assert (at, of) == pytest.approx((x.mean, y.mean))
        shown = ellipses[x.mean, y.mean]
        assert (shown.width, shown.height) == pytest.approx((2 * x.std_error, 2 * y.std_error))


def test_bars_are_as_long_as_the_means(profile: Path) -> None:
    results = load_results()
    figure = bars(results, "kid")
    assert figure is not None
    (ax,) = figure.axes
    widths = [patch.get_width() for patch in ax.patches]
    means = [results.mean(m, "single", "kid") for m in ("oracle", "pretrained", "custom_diffusion")]
    assert widths == pytest.approx([mean.mean for mean in means if mean])


def test_styles_tell_fifteen_methods_apart(profile: Path) -> None:
    grid = load_results().grid.model_copy(update={"rows": [f"m{i}" for i in range(15)]})
    styles = [method_style(grid, method) for method in grid.methods]
    assert len(set(styles)) == 15
    assert {colour for colour, _ in styles} == set(COLOURS)


def test_charts_are_the_same_bytes_again(profile: Path, tmp_path: Path) -> None:
    results = load_results()
    names = ["scatter_single.svg", "scatter_compositions.svg", "kid.svg"]
    first, second = (write_figures(results, tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in first] == names
    for a, b in zip(first, second):
        assert a.read_bytes() == b.read_bytes()
        assert ET.parse(a).getroot().tag.endswith("svg")


def test_a_mean_over_fewer_subjects_says_so(profile: Path) -> None:
    Path("reports/cells/pretrained/chair/scores.csv").unlink()
    figure = scatter(load_results(), "single")
    assert figure is not None
    labels = {line.get_label() for line in figure.axes[0].lines}
    assert {"pretrained (1 of 2 subjects)", "custom diffusion"} <= labels


def test_the_frontier_is_of_those_that_no_other_beats() -> None:
    rng = np.random.default_rng(1)
    points = {str(i): tuple(rng.uniform(size=2)) for i in range(40)}
    expected = {
        a
        for a, (x, y) in points.items()
        if not any(u >= x and v >= y for b, (u, v) in points.items() if b != a)
    }
    assert {*frontier(points)} == expected
    assert 1 < len(expected) < 40
    assert [points[name][0] for name in frontier(points)] == sorted(
        points[name][0] for name in expected
    )
    assert frontier({"a": (1.0, 2.0), "b": (1.0, 3.0), "c": (0.0, 3.0)}) == ["b"]
    assert frontier({}) == []


def test_not_to_learn_is_no_way_to_win(profile: Path) -> None:
    """The pretrained model, which nothing made forget anything, is best by text and KID."""
    results = load_results()
    assert {*REFERENCES} & {*results.grid.methods} == {"pretrained"}
    for kind in results.kinds():
        for winner in winners(results, kind):
            assert not {winner.method, winner.second} & {*REFERENCES}
    figure = scatter(results, "compositions")
    assert figure is not None
    (line,) = [line for line in figure.axes[0].lines if line.get_color() == GREY]
    learned = [
        tuple(
            results.mean(method, "compositions", metric).mean
            for metric in ("text_alignment", "image_alignment")
        )
        for method in ("custom_diffusion", "custom_diffusion_merge")
    ]
    assert {*zip(*line.get_data())} <= {*learned}
    assert len(line.get_xdata()) > 0
