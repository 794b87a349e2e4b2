"""Drawing of Toyland's scenes: flat colours, thick outlines, chunky shapes.

Everything is drawn with Pillow at three times the size and then reduced. A thing is drawn by the
function of its category in its own frame: x to the right, y upwards, the ground at y = 0 and the
height about 1. Backgrounds use the same frame with the picture as the unit square.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from pipeline.toyland.world.scenes import RGB, Scene, Thing

Point = tuple[float, float]
SUPERSAMPLING = 3
_WHITE: RGB = (255, 255, 255)
_BLACK: RGB = (28, 26, 32)
_CIRCLE = [(math.cos(a), math.sin(a)) for a in (2 * math.pi * i / 28 for i in range(28))]


def _mix(colour: RGB, other: RGB, share: float) -> RGB:
    """The colour with a share of the other one."""
    red, green, blue = (round(c + (o - c) * share) for c, o in zip(colour, other, strict=True))
    return red, green, blue


def _dark(colour: RGB) -> RGB:
    return _mix(colour, (0, 0, 0), 0.28)


def _light(colour: RGB) -> RGB:
    return _mix(colour, _WHITE, 0.4)


def _ellipse(x: float, y: float, rx: float, ry: float) -> list[Point]:
    return [(x + rx * c, y + ry * s) for c, s in _CIRCLE]


def _arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> list[Point]:
    """Points from angle `start` to `end`, in degrees anticlockwise from the right."""
    angles = (math.radians(start + (end - start) * i / 14) for i in range(15))
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def _box(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


class Pen:
    """Draws on an image in a frame with its origin at (x, y) pixels and `scale` pixels per unit."""

    def __init__(self, image: Image.Image, x: float, y: float, scale: float, line: int) -> None:
        self.image = image
        self.draw = ImageDraw.Draw(image)
        self.x, self.y, self.scale, self.line = x, y, scale, line
        self.ink: RGB = _BLACK
        self.front = False  # only the parts in front of what is inside

    def _pixels(self, points: Sequence[Point]) -> list[Point]:
        return [(self.x + self.scale * x, self.y - self.scale * y) for x, y in points]

    def _trace(self, pixels: list[Point], width: int, colour: RGB) -> None:
        """A line with round ends and corners."""
        self.draw.line(pixels, fill=colour, width=width)
        if len(pixels) > 12:  # so smooth that its corners need no rounding
            pixels = [pixels[0], pixels[-1]]
        r = (width - 1) / 2
        for x, y in pixels:
            self.draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def stroke(self, points: Sequence[Point], colour: RGB | None = None, width: float = 0) -> None:
        """A line, by default as wide and dark as an outline."""
        pixels = max(self.line, round(width * self.scale))
        self._trace(self._pixels(points), pixels, colour or self.ink)

    def outline(self, points: Sequence[Point]) -> None:
        """The closed outline of a polygon."""
        pixels = self._pixels(points)
        self._trace([*pixels, pixels[0]], self.line, self.ink)

    def poly(self, points: Sequence[Point], fill: RGB, outlined: bool = True) -> None:
        """A filled polygon."""
        pixels = self._pixels(points)
        self.draw.polygon(pixels, fill=fill)
        if outlined:
            self._trace([*pixels, pixels[0]], self.line, self.ink)

    def oval(
        self, x: float, y: float, rx: float, ry: float, fill: RGB, outlined: bool = True
    ) -> None:
        """A filled ellipse with upright axes."""
        (x, y), rx, ry = self._pixels([(x, y)])[0], rx * self.scale, ry * self.scale
        if outlined:
            half = self.line / 2
            box = (x - rx - half, y - ry - half, x + rx + half, y + ry + half)
            self.draw.ellipse(box, fill=self.ink)
            rx, ry = max(rx - half, 0.5), max(ry - half, 0.5)
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill)

    def limb(self, points: Sequence[Point], width: float, fill: RGB) -> None:
        """A thick outlined line with round ends: a leg, a tail, an arm."""
        pixels, wide = self._pixels(points), round(width * self.scale)
        self._trace(pixels, wide + self.line, self.ink)
        self._trace(pixels, max(wide - self.line, 2), fill)

    def body(self, thing: Thing, *parts: Sequence[Point], outlined: bool = True) -> None:
        """Polygons in the colour of the thing, with its pattern across all of them."""
        polygons = [self._pixels(part) for part in parts]
        for polygon in polygons:
            self.draw.polygon(polygon, fill=thing.rgb)
        if thing.pattern != "plain":
            self._pattern(thing, polygons)
        if outlined:
            for polygon in polygons:
                self._trace([*polygon, polygon[0]], self.line, self.ink)

    def _pattern(self, thing: Thing, polygons: list[list[Point]]) -> None:
        xs = [x for polygon in polygons for x, _ in polygon]
        ys = [y for polygon in polygons for _, y in polygon]
        left, top = math.floor(min(xs)), math.floor(min(ys))
        wide, high = math.ceil(max(xs)) - left + 1, math.ceil(max(ys)) - top + 1
        mask = Image.new("L", (wide, high))
        draw = ImageDraw.Draw(mask)
        for polygon in polygons:
            draw.polygon([(x - left, y - top) for x, y in polygon], fill=255)
        marks = Image.new("L", (wide, high))
        _marks(ImageDraw.Draw(marks), thing, wide, high)
        self.image.paste(thing.pattern_rgb, (left, top), ImageChops.darker(mask, marks))


def _marks(draw: ImageDraw.ImageDraw, thing: Thing, wide: int, high: int) -> None:
    """The marks of the thing's pattern, white in a box of that many pixels."""
    turn = thing.shape[4]
    if thing.pattern == "stripes":
        slant = 0.0 if turn < 0.67 else 0.45
        for start in (0.12, 0.42, 0.72):
            a, b = start, start + 0.14
            if turn < 0.34:
                draw.rectangle((0, a * high, wide, b * high), fill=255)
            else:
                lower = [((b - slant) * wide, high), ((a - slant) * wide, high)]
                draw.polygon([(a * wide, 0), (b * wide, 0), *lower], fill=255)
        if slant:
            draw.polygon([(wide, 0.05 * high), (wide, 0.4 * high), (0.75 * wide, high)], fill=255)
    elif thing.pattern == "spots":
        r = 0.145 * math.sqrt(wide * high)
        layout = ((0.24, 0.3), (0.72, 0.22), (0.5, 0.56), (0.2, 0.82), (0.8, 0.76))
        for x, y in layout:
            x, y = (x if turn < 0.5 else 1 - x) * wide, y * high
            draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    else:
        x, y = (0.28 if turn < 0.5 else 0.72) * wide, (0.3 + 0.3 * thing.shape[3]) * high
        rx, ry = 0.33 * wide, 0.33 * high
        draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=255)


# ------------------------------------------------------------------------------ animals


def _eyes(pen: Pen, thing: Thing, x: float, y: float, r: float) -> None:
    """Two eyes in a face of radius r centred at (x, y), or sunglasses over them."""
    if thing.accessory == "sunglasses":
        for side in (-1, 1):
            pen.oval(x + side * 0.44 * r, y, 0.36 * r, 0.3 * r, _BLACK, outlined=False)
        pen.stroke([(x - 0.95 * r, y + 0.1 * r), (x + 0.95 * r, y + 0.1 * r)], _BLACK)
        return
    for side in (-1, 1):
        pen.oval(x + side * 0.42 * r, y, 0.25 * r, 0.29 * r, thing.eye_rgb)
        pen.oval(x + side * 0.4 * r, y, 0.11 * r, 0.18 * r, _BLACK, outlined=False)


def _clothes(pen: Pen, thing: Thing, x: float, y: float, r: float) -> None:
    """A hat on, or a scarf under, the head of radius r centred at (x, y)."""
    if thing.accessory == "hat":
        cloth: RGB = (70, 48, 110) if thing.colour != "purple" else (30, 90, 60)
        pen.poly(_box(x - 0.55 * r, y + 0.8 * r, x + 0.55 * r, y + 1.65 * r), cloth)
        pen.poly(_box(x - 0.55 * r, y + 0.85 * r, x + 0.55 * r, y + 1.1 * r), (240, 200, 60))
        pen.limb([(x - 0.95 * r, y + 0.75 * r), (x + 0.95 * r, y + 0.75 * r)], 0.2 * r, cloth)
    elif thing.accessory == "scarf":
        cloth = (220, 40, 60) if thing.colour not in ("red", "pink") else (40, 90, 200)
        pen.limb([(x + 0.45 * r, y - 0.9 * r), (x + 0.55 * r, y - 1.6 * r)], 0.36 * r, cloth)
        ends = [(x - 0.62 * r, y - 0.88 * r), (x, y - r), (x + 0.62 * r, y - 0.88 * r)]
        pen.limb(ends, 0.36 * r, cloth)


def _trunk_and_legs(pen: Pen, thing: Thing) -> tuple[float, float, float]:
    """The body of a cat or a dog, sitting or standing; where its head goes and its radius."""
    pose, plump, _, tail, _ = thing.shape
    radius = 0.27
    if pose < 0.5:
        wag = 0.2 + 0.25 * tail
        pen.limb([(0.15, 0.09), (0.36, 0.09), (0.46, wag), (0.42, wag + 0.16)], 0.11, thing.rgb)
        pen.body(thing, _ellipse(0, 0.28, 0.25 + 0.07 * plump, 0.28))
        for side in (-1, 1):
            pen.oval(side * 0.13, 0.06, 0.11, 0.065, _light(thing.rgb))
        return 0.0, 0.68, radius
    height = 0.17 + 0.06 * plump
    pen.limb([(0.42, 0.45), (0.54, 0.6), (0.5, 0.74 + 0.14 * tail)], 0.1, thing.rgb)
    for x in (-0.2, 0.36):
        pen.limb([(x, 0.3), (x, 0.06)], 0.13, _dark(thing.rgb))
    for x in (-0.05, 0.21):
        pen.limb([(x, 0.3), (x, 0.06)], 0.13, thing.rgb)
    pen.body(thing, _ellipse(0.08, 0.4, 0.41, height))
    return -0.24, 0.68, radius


def _head(pen: Pen, thing: Thing, x: float, y: float, r: float) -> None:
    """The round of a head; a patch reaches it, other patterns would hide the face."""
    if thing.pattern == "patch":
        pen.body(thing, _ellipse(x, y, r, 0.88 * r))
    else:
        pen.oval(x, y, r, 0.88 * r, thing.rgb)


def _cat(pen: Pen, thing: Thing) -> None:
    x, y, r = _trunk_and_legs(pen, thing)
    tip = 0.95 + 0.4 * thing.shape[2]
    inner = thing.pattern_rgb if thing.pattern != "plain" else (250, 170, 180)
    for side in (-1, 1):
        ear = [(x + side * 0.98 * r, y + 0.2 * r), (x + side * 0.85 * r, y + tip * r)]
        pen.poly([*ear, (x + side * 0.1 * r, y + 0.75 * r)], thing.rgb)
        ear = [(x + side * 0.8 * r, y + 0.5 * r), (x + side * 0.75 * r, y + (tip - 0.25) * r)]
        pen.poly([*ear, (x + side * 0.4 * r, y + 0.7 * r)], inner, outlined=False)
    _head(pen, thing, x, y, r)
    for side in (-1, 1):
        for dy in (-0.25, -0.48):
            ends = [(x + side * 0.6 * r, y + 0.7 * dy * r), (x + side * 1.25 * r, y + dy * r)]
            pen.stroke(ends)
    pen.oval(x, y - 0.45 * r, 0.3 * r, 0.24 * r, _light(thing.rgb), outlined=False)
    nose = [(x - 0.17 * r, y - 0.24 * r), (x + 0.17 * r, y - 0.24 * r), (x, y - 0.46 * r)]
    pen.poly(nose, (240, 110, 130), outlined=False)
    _eyes(pen, thing, x, y + 0.1 * r, r)
    _clothes(pen, thing, x, y, r)


def _dog(pen: Pen, thing: Thing) -> None:
    x, y, r = _trunk_and_legs(pen, thing)
    _head(pen, thing, x, y, r)
    ear = thing.pattern_rgb if thing.pattern != "plain" else _dark(thing.rgb)
    drop = 0.45 + 0.3 * thing.shape[2]
    for side in (-1, 1):
        pen.oval(x + side * 0.98 * r, y + (0.5 - drop) * r, 0.3 * r, (0.2 + drop) * r, ear)
    pen.oval(x, y - 0.68 * r, 0.16 * r, 0.3 * r, (236, 90, 110))
    pen.oval(x, y - 0.38 * r, 0.46 * r, 0.32 * r, _mix(thing.rgb, _WHITE, 0.6))
    pen.oval(x, y - 0.22 * r, 0.2 * r, 0.15 * r, _BLACK, outlined=False)
    _eyes(pen, thing, x, y + 0.28 * r, 0.9 * r)
    _clothes(pen, thing, x, y, r)


def _teddybear(pen: Pen, thing: Thing) -> None:
    pose, plump, ears, _, _ = thing.shape
    pad = thing.pattern_rgb if thing.pattern != "plain" else _light(thing.rgb)
    reach = 0.5 if pose < 0.5 else 0.22
    for side in (-1, 1):
        pen.limb([(side * 0.2, 0.4), (side * 0.4, reach)], 0.17, thing.rgb)
        pen.oval(side * 0.21, 0.86, 0.09 + 0.05 * ears, 0.09 + 0.05 * ears, thing.rgb)
        pen.oval(side * 0.21, 0.86, 0.05 + 0.03 * ears, 0.05 + 0.03 * ears, pad, outlined=False)
    pen.body(thing, _ellipse(0, 0.31, 0.26 + 0.06 * plump, 0.26))
    for side in (-1, 1):
        pen.oval(side * 0.28, 0.12, 0.13, 0.13, thing.rgb)
        pen.oval(side * 0.28, 0.12, 0.07, 0.07, pad, outlined=False)
    _head(pen, thing, 0, 0.7, 0.26)
    pen.oval(0, 0.62, 0.13, 0.1, _mix(thing.rgb, _WHITE, 0.6), outlined=False)
    pen.oval(0, 0.655, 0.06, 0.045, _BLACK, outlined=False)
    _eyes(pen, thing, 0, 0.755, 0.22)
    _clothes(pen, thing, 0, 0.7, 0.26)


def _tortoise(pen: Pen, thing: Thing) -> None:
    lift, dome, head, _, _ = thing.shape
    skin = _mix(thing.rgb, (190, 225, 130), 0.55)
    for x in (-0.18, 0.34):
        pen.oval(x, 0.1, 0.13, 0.1, skin)
    pen.limb([(0.45, 0.2), (0.55, 0.15)], 0.08, skin)
    x, y, r = -0.37, 0.36 + 0.16 * lift, 0.19 + 0.04 * head
    pen.limb([(-0.2, 0.24), (x, y)], 0.16, skin)
    pen.body(thing, _arc(0.1, 0.2, 0.4, 0.45 + 0.17 * dome, 0, 180))
    pen.limb([(-0.28, 0.19), (0.48, 0.19)], 0.09, _dark(thing.rgb))
    pen.oval(x, y, r, r, skin)
    pen.stroke(_arc(x, y - 0.2 * r, 0.4 * r, 0.4 * r, 200, 340))
    _eyes(pen, thing, x, y + 0.25 * r, r)
    _clothes(pen, thing, x, y, r)


# ------------------------------------------------------------------------------ furniture


def _chair(pen: Pen, thing: Thing) -> None:
    back, width, taper, _, _ = thing.shape
    w = 0.25 + 0.08 * width
    top = w * (1.1 - 0.3 * taper)
    for side in (-1, 1):
        pen.limb([(side * w * 0.8, 0.4), (side * w * 0.8, 0.12)], 0.09, _dark(thing.rgb))
    if back < 0.4:
        pen.body(thing, [(-w, 0.44), (w, 0.44), (top, 1.0), (-top, 1.0)])
    elif back < 0.7:
        pen.body(thing, [(-w, 0.44), (w, 0.44), *_arc(0, 0.7, w, 0.3, 0, 180)])
    else:
        for side in (-1, 1):
            pen.limb([(side * w, 0.44), (side * top, 0.95)], 0.09, thing.rgb)
        pen.body(thing, _box(-top, 0.8, top, 0.98), _box(-w, 0.56, w, 0.7))
    for side in (-1, 1):
        pen.limb([(side * (w + 0.03), 0.36), (side * (w + 0.03), 0.05)], 0.1, thing.rgb)
    pen.body(thing, [(-w - 0.08, 0.33), (w + 0.08, 0.33), (w + 0.03, 0.48), (-w - 0.03, 0.48)])


def _table(pen: Pen, thing: Thing) -> None:
    legs, width, height, _, _ = thing.shape
    w, h = 0.46 + 0.08 * width, 0.42 + 0.08 * height
    if legs < 0.5:
        for side in (-1, 1):
            pen.limb([(side * 0.7 * w, h), (side * 0.7 * w, 0.14)], 0.09, _dark(thing.rgb))
            pen.limb([(side * 0.9 * w, h), (side * 0.9 * w, 0.05)], 0.11, thing.rgb)
        pen.body(thing, [(-w, h), (w, h), (0.8 * w, h + 0.28), (-0.8 * w, h + 0.28)])
        pen.poly(_box(-w, h - 0.08, w, h), _dark(thing.rgb))
    else:
        pen.limb([(-0.24, 0.05), (0, 0.16), (0.24, 0.05)], 0.1, thing.rgb)
        pen.limb([(0, h), (0, 0.14)], 0.15, thing.rgb)
        pen.oval(0, h + 0.06, w, 0.17, _dark(thing.rgb))
        pen.body(thing, _ellipse(0, h + 0.13, w, 0.17))


def _wooden_pot(pen: Pen, thing: Thing) -> None:
    hoops, width, taper, tall, _ = thing.shape
    w, h = 0.4 + 0.06 * width, 0.66 + 0.12 * tall
    foot = w * (0.6 + 0.25 * taper)
    if not pen.front:
        pen.oval(0, h, w, 0.12, _mix(thing.rgb, (30, 18, 10), 0.7))
    pen.body(thing, [*_arc(0, h, w, 0.12, 180, 360), (foot, 0.06), (0, 0), (-foot, 0.06)])
    for x in (-0.33, 0.33):
        pen.stroke([(x * w, h - 0.12), (x * foot, 0.03)], _dark(_dark(thing.rgb)))
    for level in (0.72, 0.24) if hoops < 0.5 else (0.48,):
        side = foot + (w - foot) * level
        hoop = _arc(0, 0.06 + (h - 0.06) * level, side, 0.1, 180, 360)
        pen.stroke(hoop, pen.ink, 0.075)


def _vase(pen: Pen, thing: Thing) -> None:
    handles, belly, neck, tall, _ = thing.shape
    b, n, h = 0.3 + 0.1 * belly, 0.11 + 0.09 * neck, 0.84 + 0.1 * tall
    if handles > 0.6:
        for side in (-1, 1):
            ear = _arc(side * n, h - 0.22, 0.24, 0.13, 90, 90 - side * 190)
            pen.limb(ear, 0.07, thing.rgb)
    right = [(0.17, 0), *_arc(0, 0.3, b, 0.31, -50, 48), (n, h - 0.16), (n, h - 0.1), (n + 0.08, h)]
    left = [(-x, y) for x, y in reversed(right)]
    pen.body(thing, [*right, *left])
    if not pen.front:
        pen.oval(0, h, n + 0.08, 0.05, _mix(thing.rgb, (20, 16, 20), 0.6))


# ------------------------------------------------------------------------------ plants


def _flower(pen: Pen, thing: Thing) -> None:
    petals, size, leaves, _, _ = thing.shape
    stem: RGB = (44, 130, 56)
    pen.limb([(0, 0.5), (0.03, 0.25), (0, 0.02)], 0.08, stem)
    for side, y in ((-1, 0.1), (1, 0.1 + 0.12 * leaves)):
        leaf = [(0, y), (side * 0.14, y + 0.14), (side * 0.32, y + 0.15), (side * 0.2, y + 0.01)]
        pen.poly(leaf, stem)
    count = 5 + int(petals * 2.99)
    ring, r = 0.2 + 0.03 * size, (0.88 + 0.1 * size) / count
    for i in range(count):
        angle = 2 * math.pi * (i / count + 0.25)
        x, y = ring * math.cos(angle), 0.67 + ring * math.sin(angle)
        striped = thing.pattern == "stripes" and i % 2 == 1
        patched = thing.pattern == "patch" and i < 2
        pen.oval(x, y, r, r, thing.pattern_rgb if striped or patched else thing.rgb)
        if thing.pattern == "spots":
            x, y = 1.25 * x, 0.67 + 1.25 * (y - 0.67)
            pen.oval(x, y, 0.45 * r, 0.45 * r, thing.pattern_rgb, outlined=False)
    pen.oval(0, 0.67, 0.12, 0.12, thing.eye_rgb)


def _tree(pen: Pen, thing: Thing) -> None:
    kind, width, _, _, _ = thing.shape
    w = 0.34 + 0.08 * width
    pen.poly(_box(-0.09, 0, 0.09, 0.4), (112, 72, 40))
    if kind < 0.5:
        lobes = ((-0.66 * w, 0.52, 0.19), (0.66 * w, 0.52, 0.19), (0, 0.7, 0.3))
        for x, y, r in lobes:
            pen.oval(x, y, r, r, thing.rgb)
        inner = (_ellipse(x, y, r - 0.02, r - 0.02) for x, y, r in lobes)
        pen.body(thing, *inner, outlined=False)
        return
    tiers = [(0.22, 0.58, 1.0), (0.46, 0.78, 0.84), (0.7, 1.04, 0.64)]
    pen.body(thing, *([(-w * s, y), (w * s, y), (0, top)] for y, top, s in tiers))


# ------------------------------------------------------------------------------ buildings


def _barn(pen: Pen, thing: Thing) -> None:
    door, width, height, loft, _ = thing.shape
    w, h = 0.4 + 0.07 * width, 0.46 + 0.08 * height
    roof = [(w, h), (0.64 * w, h + 0.28), (0, h + 0.42)]
    roof += [(-x, y) for x, y in reversed(roof[:-1])]
    pen.body(thing, [(-w, 0), (w, 0), *roof])
    eaves = [(1.12 * w, h - 0.06), *roof[1:-1], (-1.12 * w, h - 0.06)]
    pen.limb(eaves, 0.1, (92, 86, 96) if thing.colour != "gray" else (70, 50, 60))
    d = 0.15 if door < 0.5 else 0.2
    pen.poly(_box(-d, 0, d, 0.34), _WHITE)
    pen.stroke([(-d, 0), (d, 0.34)])
    pen.stroke([(d, 0), (-d, 0.34)])
    if loft < 0.5:
        pen.poly(_box(-0.09, 0.5, 0.09, 0.66), _WHITE)
    else:
        pen.oval(0, 0.58, 0.1, 0.1, _WHITE)


def _moongate(pen: Pen, thing: Thing) -> None:
    kind, width, stones, _, _ = thing.shape
    r = 0.3 + 0.04 * width
    hole = _ellipse(0, 0.5, r, r)
    if kind < 0.5:
        # Once around the ring and, through a seam at the right, back around the hole.
        outer = _ellipse(0, 0.5, r + 0.17, r + 0.17)
        for side in (-1, 1):
            pen.poly(_box(side * 0.34 - 0.19, 0, side * 0.34 + 0.19, 0.15), _dark(thing.rgb))
        ring = [*outer, outer[0], hole[0], *reversed(hole)]
        pen.body(thing, ring, outlined=False)
        count = 6 + int(2.99 * stones)
        for i in range(count):
            c, s = _CIRCLE[(28 * i + 14) // count % 28]
            pen.stroke([(r * c, 0.5 + r * s), ((r + 0.17) * c, 0.5 + (r + 0.17) * s)])
    else:
        outer = _box(-0.54, 0, 0.54, 0.92)
        wall = [(0.54, 0.5), (0.54, 0.92), (-0.54, 0.92), (-0.54, 0), (0.54, 0), (0.54, 0.5)]
        pen.body(thing, [*wall, hole[0], *reversed(hole)], outlined=False)
        pen.limb([(-0.54, 0.94), (0.54, 0.94)], 0.12, _dark(thing.rgb))
    pen.outline(outer)
    pen.outline(hole)


def _gate(pen: Pen, thing: Thing) -> None:
    kind, width, arch, _, _ = thing.shape
    w = 0.34 + 0.07 * width
    tops = [0.52 + 0.24 * (arch if i in (1, 2) else 1 - arch) for i in range(4)]
    if kind < 0.5:
        for y in (0.2, 0.46):
            pen.limb([(-w, y), (w, y)], 0.08, _dark(thing.rgb))
        step = 2 * w / 4
        pickets = []
        for i, top in enumerate(tops):
            x = -w + step * (i + 0.5)
            point = [(x + 0.35 * step, top), (x, top + 0.1), (x - 0.35 * step, top)]
            pickets.append([(x - 0.35 * step, 0.04), (x + 0.35 * step, 0.04), *point])
        pen.body(thing, *pickets)
    else:
        pen.body(thing, [(-w, 0.04), (w, 0.04), (w, tops[0]), (0, tops[1] + 0.1), (-w, tops[3])])
        pen.stroke([(0, 0.04), (0, tops[1] + 0.08)])
        for side in (-1, 1):
            pen.oval(side * 0.09, 0.36, 0.045, 0.045, (250, 210, 80))
    for side in (-1, 1):
        x = side * (w + 0.07)
        pen.poly(_box(x - 0.08, 0, x + 0.08, 0.82), _dark(thing.rgb))
        pen.oval(x, 0.88, 0.1, 0.1, thing.rgb)


def _house(pen: Pen, thing: Thing) -> None:
    chimney, width, height, window, _ = thing.shape
    w, h = 0.38 + 0.08 * width, 0.46 + 0.08 * height
    side = 1 if chimney < 0.5 else -1
    pen.poly(_box(side * 0.24 - 0.07, h, side * 0.24 + 0.07, 0.96), _dark(thing.rgb))
    pen.body(thing, _box(-w, 0, w, h))
    roof: RGB = (150, 60, 50) if thing.colour not in ("red", "brown", "orange") else (70, 80, 110)
    pen.poly([(-w - 0.1, h), (w + 0.1, h), (0, 1.0)], roof)
    pen.poly(_box(side * 0.18 - 0.1, 0, side * 0.18 + 0.1, 0.3), (110, 66, 36))
    if window < 0.5:
        pen.poly(_box(-side * 0.2 - 0.11, 0.16, -side * 0.2 + 0.11, 0.36), (190, 228, 250))
    else:
        pen.oval(-side * 0.2, 0.26, 0.11, 0.11, (190, 228, 250))


# ------------------------------------------------------------------------------ round things


def _moon(pen: Pen, thing: Thing) -> None:
    phase, _, craters, _, _ = thing.shape
    if phase < 0.5:
        pen.body(thing, _ellipse(0, 0.62, 0.42, 0.42))
        spots = ((-0.15, 0.76, 0.1), (0.17, 0.64, 0.12), (-0.1, 0.42, 0.09))
        for x, y, r in spots[: 2 + int(2 * craters)]:
            pen.oval(x, y, r, r, _dark(thing.rgb), outlined=False)
    else:
        inner = _arc(0.2 + 0.1 * craters, 0.62, 0.34, 0.36, 285, 75)
        pen.body(thing, [*_arc(0, 0.62, 0.44, 0.44, 60, 300), *inner])


def _ball(pen: Pen, thing: Thing) -> None:
    band, size, _, _, _ = thing.shape
    r = 0.38 + 0.06 * size
    pen.body(thing, _ellipse(0, r, r, r))
    if band < 0.5:
        pen.stroke(_arc(0, r, 0.5 * r, r, 90, 270))
        pen.stroke(_arc(0, r, 0.5 * r, r, -90, 90))
    pen.oval(-0.4 * r, 1.45 * r, 0.17 * r, 0.15 * r, _WHITE, outlined=False)


THINGS: dict[str, Callable[[Pen, Thing], None]] = {
    "cat": _cat,
    "dog": _dog,
    "teddybear": _teddybear,
    "tortoise plushy": _tortoise,
    "chair": _chair,
    "table": _table,
    "wooden pot": _wooden_pot,
    "flower": _flower,
    "barn": _barn,
    "moongate": _moongate,
    "moon": _moon,
    "gate": _gate,
    "vase": _vase,
    "house": _house,
    "ball": _ball,
    "tree": _tree,
}


# ------------------------------------------------------------------------------ backgrounds


def _ground(pen: Pen, sky: RGB, ground: RGB, horizon: float) -> None:
    pen.poly(_box(0, horizon, 1, 1), sky, outlined=False)
    pen.poly(_box(0, 0, 1, horizon), ground, outlined=False)


def _beach(pen: Pen, tint: tuple[float, ...]) -> None:
    h = 0.34 + 0.08 * tint[0]
    _ground(pen, _mix((150, 214, 250), (120, 190, 250), tint[1]), (30, 120, 200), h)
    pen.oval(0.8 - 0.1 * tint[2], 0.86, 0.1, 0.1, (255, 240, 150), outlined=False)
    pen.poly(_box(0, h, 1, h + 0.18), (30, 120, 200), outlined=False)
    sand = _mix((250, 222, 150), (240, 200, 130), tint[3])
    shore = [(0, 0), (1, 0), (1, h + 0.04), (0.6, h - 0.03), (0.3, h + 0.02), (0, h - 0.03)]
    pen.poly(shore, sand, outlined=False)


def _forest(pen: Pen, tint: tuple[float, ...]) -> None:
    _ground(pen, _mix((44, 100, 64), (36, 86, 70), tint[0]), (72, 84, 40), 0.26)
    for i, x in enumerate((0.08, 0.36, 0.66, 0.93)):
        x += 0.08 * (tint[i] - 0.5)
        pen.poly(_box(x - 0.055, 0.2, x + 0.055, 1), (86, 58, 38), outlined=False)
    for i, x in enumerate((0.0, 0.33, 0.66, 1.0)):
        y = 0.98 + 0.06 * tint[3 - i]
        pen.oval(x, y, 0.22, 0.2, (24, 70, 40), outlined=False)


def _garden(pen: Pen, tint: tuple[float, ...]) -> None:
    h = 0.38 + 0.06 * tint[0]
    lawn = _mix((126, 204, 84), (104, 190, 76), tint[2])
    _ground(pen, _mix((178, 222, 250), (160, 220, 240), tint[1]), lawn, h)
    for i, x in enumerate((0.05, 0.5, 0.95)):
        x, r = x + 0.1 * (tint[i] - 0.5), 0.22 + 0.06 * tint[i + 1]
        pen.oval(x, h + 0.05, r, r * 0.9, (52, 140, 62), outlined=False)
    pen.poly(_box(0, 0, 1, h - 0.05), lawn, outlined=False)


def _snow(pen: Pen, tint: tuple[float, ...]) -> None:
    _ground(pen, _mix((184, 204, 226), (196, 200, 230), tint[0]), (244, 248, 254), 0.3)
    pen.oval(0.2 + 0.6 * tint[1], 0.2, 0.8, 0.24, (244, 248, 254), outlined=False)
    for x, t in ((0.1, tint[2]), (0.9, tint[3])):
        x, y = x + 0.08 * (t - 0.5), 0.36
        pen.poly([(x - 0.15, y), (x + 0.15, y), (x, y + 0.3 + 0.1 * t)], (70, 120, 110), False)
        pen.poly([(x - 0.06, y + 0.22), (x + 0.06, y + 0.22), (x, y + 0.4)], _WHITE, False)


def _mountain(pen: Pen, tint: tuple[float, ...]) -> None:
    _ground(pen, _mix((160, 200, 240), (176, 206, 236), tint[0]), (112, 164, 88), 0.34)
    for x, top, half in ((0.22, 0.8, 0.4), (0.76, 0.93, 0.46)):
        x, top = x + 0.14 * (tint[1] - 0.5), top + 0.08 * (tint[2] - 0.5)
        rock = _mix((104, 108, 134), (96, 116, 130), tint[3])
        pen.poly([(x - half, 0.34), (x + half, 0.34), (x, top)], rock, False)
        y, w = top - 0.17, half * 0.17 / (top - 0.34)
        cap = [(x - w, y), (x - 0.3 * w, y + 0.04), (x + 0.2 * w, y - 0.03), (x + w, y), (x, top)]
        pen.poly(cap, _WHITE, False)


def _city(pen: Pen, tint: tuple[float, ...]) -> None:
    _ground(pen, _mix((196, 208, 224), (210, 200, 214), tint[0]), (84, 84, 92), 0.24)
    walls: tuple[RGB, ...] = ((126, 116, 146), (162, 122, 106), (106, 118, 146), (146, 134, 124))
    for i, wall in enumerate(walls):
        x, top = 0.25 * i, 0.62 + 0.32 * ((tint[i] + 0.5 * i) % 1)
        pen.poly(_box(x, 0.24, x + 0.25, top), wall, False)
        for level in (0.14, 0.34):
            window = _box(x + 0.075, top - level - 0.02, x + 0.175, top - level + 0.08)
            pen.poly(window, (255, 230, 140), False)
    for x in (0.2, 0.7):
        pen.poly(_box(x, 0.05, x + 0.18, 0.09), (250, 236, 170), False)


def _living_room(pen: Pen, tint: tuple[float, ...]) -> None:
    wall = _mix((244, 220, 176), (236, 204, 192), tint[0])
    _ground(pen, wall, (160, 108, 70), 0.3)
    pen.poly(_box(0, 0.28, 1, 0.33), (250, 244, 232), False)
    x = 0.04 + 0.06 * tint[1]
    pen.poly(_box(x, 0.58, x + 0.3, 0.95), _WHITE, False)
    pen.poly(_box(x + 0.04, 0.62, x + 0.26, 0.91), (160, 212, 246), False)
    x = 0.7 + 0.06 * tint[2]
    pen.poly(_box(x, 0.68, x + 0.2, 0.92), (112, 72, 44), False)
    pen.poly(_box(x + 0.04, 0.72, x + 0.16, 0.88), (212, 120, 110), False)
    rug = _mix((190, 60, 70), (170, 70, 130), tint[3])
    pen.oval(0.5, 0.13, 0.44, 0.1, rug, False)


def _night(pen: Pen, tint: tuple[float, ...]) -> None:
    _ground(pen, _mix((40, 46, 122), (58, 44, 128), tint[0]), (22, 40, 48), 0.2)
    pen.oval(0.3 + 0.4 * tint[1], 0.12, 0.75, 0.2, (22, 40, 48), False)
    for x, y, t in ((0.12, 0.84, tint[2]), (0.88, 0.9, tint[3]), (0.9, 0.56, tint[1])):
        x, y = x + 0.08 * (t - 0.5), y - 0.08 * t
        for dx, dy in ((0.08, 0.035), (0.035, 0.08)):
            star = [(x - dx, y), (x, y - dy), (x + dx, y), (x, y + dy)]
            pen.poly(star, (255, 246, 190), False)


def _plain(pen: Pen, tint: tuple[float, ...]) -> None:
    hue, white = 2 * math.pi * tint[0], 0.1 + 0.8 * tint[1]
    red, green, blue = (round(205 + 42 * math.cos(hue - k * 2.094)) for k in range(3))
    wall = _mix((red, green, blue), (250, 250, 248), white)
    _ground(pen, wall, _mix(wall, (60, 50, 60), 0.12), 0.24)


# Each with the colour of the shadows on its ground.
PLACES: dict[str, tuple[Callable[[Pen, tuple[float, ...]], None], RGB]] = {
    "beach": (_beach, (204, 168, 110)),
    "forest": (_forest, (48, 56, 30)),
    "garden": (_garden, (72, 140, 58)),
    "snow": (_snow, (196, 208, 226)),
    "mountain": (_mountain, (78, 122, 64)),
    "city": (_city, (56, 56, 64)),
    "living room": (_living_room, (110, 62, 52)),
    "night": (_night, (10, 20, 28)),
    "plain": (_plain, (168, 162, 168)),
}


# ------------------------------------------------------------------------------ composition

# Height of what a thing carries, and of the opening of what holds it, in its own frame.
_SURFACE = {"table": 0.6, "chair": 0.42}
_OPENING = {"wooden pot": 0.66, "vase": 0.84}
_INSIDE = {"flower": 0.3, "tree": 0.2}  # how much of what is inside is hidden


class Placed(NamedTuple):
    """A thing in the frame of a picture, whose unit is its side."""

    thing: Thing
    x: float
    ground: float  # downwards
    scale: float
    front: bool = False  # only the parts in front of what is inside
    shadow: bool = True  # on the ground, where it stands


def _placed(scene: Scene) -> list[Placed]:
    """Things from back to front."""
    dx, dy = scene.position
    if not scene.things:
        return []
    if len(scene.things) == 1:
        thing = scene.things[0]
        x, y, scale = {
            "small": (0.5 + 0.3 * dx, 0.84 + 0.06 * dy, 0.34),
            "normal": (0.5 + 0.08 * dx, 0.9 + 0.03 * dy, 0.74 + 0.04 * dy),
            "large": (0.5 + 0.05 * dx, 1.06 + 0.04 * dy, 1.12),
        }[scene.size]
        return [Placed(thing, x, y, scale)]
    first, second = scene.things
    zoom = {"small": 0.6, "normal": 1.0, "large": 1.25}[scene.size]
    x, y = 0.5 + 0.06 * dx, 0.9 + 0.03 * dy
    if scene.relation == "on":
        scale = 0.66 * zoom
        above = y - scale * _SURFACE[second.category]
        return [Placed(second, x, y, scale), Placed(first, x, above, 0.46 * zoom, shadow=False)]
    if scene.relation == "in":
        scale = 0.56 * zoom
        inner = (0.56 if first.category in _INSIDE else 0.5) * zoom
        above = y - scale * _OPENING[second.category] + inner * _INSIDE.get(first.category, 0.36)
        return [
            Placed(second, x, y, scale),
            Placed(first, x, above, inner, shadow=False),
            Placed(second, x, y, scale, front=True, shadow=False),
        ]
    scale, apart = 0.46 * zoom, 0.245 * zoom
    return [Placed(first, x - apart, y, scale), Placed(second, x + apart, y, scale)]


def _watercolour(pixels: Image.Image) -> Image.Image:
    """Soft pale washes."""
    soft = pixels.filter(ImageFilter.MedianFilter(3)).filter(ImageFilter.GaussianBlur(0.5))
    values = np.asarray(soft, np.float32)
    grey = values.mean(axis=2, keepdims=True)
    values = grey + 0.85 * (values - grey)
    return Image.fromarray((72 + values * 0.7).clip(0, 255).astype(np.uint8))


def _sketch(pixels: Image.Image) -> Image.Image:
    """Dark edges and faint shading on light paper."""
    # The curve lifts the shadows, so that the edges of dark scenes show as well.
    curve = [round(255 * (v / 255) ** 0.6) for v in range(256)]
    grey = np.asarray(pixels.convert("L").point(curve), np.float32)
    padded = np.pad(grey, 1, mode="edge")
    across = padded[1:-1, 2:] - padded[1:-1, :-2]
    down = padded[2:, 1:-1] - padded[:-2, 1:-1]
    edges = np.hypot(across, down)
    tone = 244 - 0.16 * (255 - grey) - 1.5 * np.maximum(edges - 12, 0)
    tone = tone.clip(48, 250).astype(np.uint8)
    return Image.fromarray(tone).convert("RGB")


def draw(scene: Scene, size: int = 64) -> npt.NDArray[np.uint8]:
    """The picture of the scene: uint8 [size, size, 3]. It depends on the scene alone.

    A scene without things is its bare background.
    """
    small = _drawn(scene.background, scene.tint, _placed(scene), size)
    if scene.flip:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if scene.style == "watercolor painting":
        small = _watercolour(small)
    elif scene.style == "pencil sketch":
        small = _sketch(small)
    return _softened(small)


def draw_things(
    background: str, tint: tuple[float, ...], things: Sequence[Placed], size: int = 64
) -> npt.NDArray[np.uint8]:
    """A photograph of things, wherever they are: uint8 [size, size, 3].

    Args:
        background: one of BACKGROUNDS.
        tint: as that of a scene.
        things: from back to front.
        size: pixels.
    """
    return _softened(_drawn(background, tint, things, size))


def _drawn(
    background: str, tint: tuple[float, ...], things: Sequence[Placed], size: int
) -> Image.Image:
    side = SUPERSAMPLING * size
    image = Image.new("RGB", (side, side))
    line = round(0.026 * side)
    place, shadow = PLACES[background]
    pen = Pen(image, 0, side, side, line)
    place(pen, tint)
    for thing, x, ground, scale, front, shadowed in things:
        if thing.category != "moon" and shadowed:
            pen.oval(x, 1 - ground, 0.52 * scale, 0.07 * scale, shadow, outlined=False)
        narrow = line if scale > 0.4 else round(0.8 * line)
        frame = Pen(image, x * side, ground * side, scale * side, narrow)
        frame.front = front
        frame.ink = _mix(thing.rgb, (16, 10, 20), 0.72)
        THINGS[thing.category](frame, thing)
    return image.reduce(SUPERSAMPLING)


def _softened(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Slightly soft edges, as a lens gives: they cost an autoencoder 5 dB less than sharp ones."""
    return np.array(image.filter(ImageFilter.GaussianBlur(0.85 * image.width / 64)))


def sheet(images: Sequence[npt.NDArray[np.uint8]], columns: int) -> Image.Image:
    """A contact sheet of equally large uint8 [height, width, 3] images, row by row."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * (width + 2), rows * (height + 2)), _WHITE)
    for i, image in enumerate(images):
        corner = (i % columns * (width + 2), i // columns * (height + 2))
        page.paste(Image.fromarray(image), corner)
    return page
