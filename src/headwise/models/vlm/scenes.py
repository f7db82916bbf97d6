"""Synthetic pictures: shapes in a grid of cells, with habits that a model learns and is misled by.

Two habits hold in most pictures. A shape has its usual colour, and shapes come in company: where one of a pair is, the
other is too. A picture against habit breaks one of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHAPES = ("square", "ring", "triangle", "cross", "diamond", "bar", "corner", "stairs")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
RGB = np.array([[1, 0, 0], [0, 0.8, 0], [0.1, 0.2, 1], [1, 1, 0], [0.7, 0, 0.9], [0, 0.9, 0.9]], dtype=np.float32)
CELLS, CELL, SPRITE, PATCH = 4, 8, 6, 4  # cells a side; pixels of a side of a cell, of a shape, of a patch
SIDE = CELLS * CELL  # pixels of a side of a picture
PATCHES = (SIDE // PATCH) ** 2
MOST = 5  # most shapes in a picture
HABIT = 0.85  # how often a habit holds in pictures that a model is trained on


def _sprites() -> np.ndarray:
    """The shapes as masks [shape, SPRITE, SPRITE]."""
    drawn = """
        ###### .####. ..##.. ..##.. ..##.. ###### ##.... #.....
        ###### #....# ..##.. ..##.. .####. ...... ##.... ##....
        ###### #....# .####. ###### ###### ###### ##.... ###...
        ###### #....# .####. ###### ###### ...... ##.... ####..
        ###### #....# ###### ..##.. .####. ###### ###### #####.
        ###### .####. ###### ..##.. ..##.. ...... ###### ######
    """
    rows = [line.split() for line in drawn.split("\n") if line.strip()]
    return np.array([[[one == "#" for one in row[shape]] for row in rows] for shape in range(len(SHAPES))])


SPRITES = _sprites()


@dataclass(frozen=True)
class Thing:
    """A shape in a picture. cell: 0 to 15, in reading order. dotted: one shape of a picture has a white dot."""

    shape: int
    colour: int
    cell: int
    dotted: bool = False

    @property
    def quarter(self) -> int:
        """The quarter of the picture it is in: 0 top left, 1 top right, 2 bottom left, 3 bottom right."""
        return self.cell // CELLS // 2 * 2 + self.cell % CELLS // 2


@dataclass(frozen=True)
class Scene:
    """A picture's things, in reading order. noise: how strong its pixel noise is. seed: of noise and clutter."""

    things: tuple[Thing, ...]
    noise: float
    seed: int

    def of(self, shape: int) -> Thing | None:
        """The thing of this shape; a picture has one of each at most."""
        return next((one for one in self.things if one.shape == shape), None)

    def pixels(self) -> np.ndarray:
        """The picture, float32 [3, SIDE, SIDE], about 0 to 1."""
        rng = np.random.default_rng([self.seed, 1])
        canvas = np.full((SIDE, SIDE, 3), 0.15, dtype=np.float32)
        free = sorted(set(range(CELLS**2)) - {one.cell for one in self.things})
        for cell in rng.choice(free, size=min(3, len(free)), replace=False):  # clutter that nobody asks about
            y, x = divmod(int(cell), CELLS)
            speckle = rng.random((CELL, CELL, 1)) < 0.4
            canvas[y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL] += 0.4 * speckle
        for one in self.things:
            y, x = (place * CELL + int(rng.integers(0, CELL - SPRITE + 1)) for place in divmod(one.cell, CELLS))
            part = canvas[y : y + SPRITE, x : x + SPRITE]
            part[SPRITES[one.shape]] = RGB[one.colour]
            if one.dotted:
                part[SPRITE // 2 - 1 : SPRITE // 2 + 1, SPRITE // 2 - 1 : SPRITE // 2 + 1] = 1.0
        canvas += self.noise * rng.standard_normal(canvas.shape).astype(np.float32)
        return np.ascontiguousarray(canvas.transpose(2, 0, 1))


def usual_colour(shape: int) -> int:
    """The colour that a shape has by habit."""
    return shape % len(COLOURS)


def partner(shape: int) -> int:
    """The shape that comes with it by habit."""
    return shape ^ 1


def scene(seed: int, noise: tuple[float, float] = (0.05, 0.35), habit: float = HABIT) -> Scene:
    """The picture of a seed. noise: least and most. habit: how often each habit holds; 0 breaks both throughout."""
    rng = np.random.default_rng([seed, 0])
    count = int(rng.integers(2, MOST + 1))
    shapes: list[int] = []
    for shape in rng.permutation(len(SHAPES)).tolist():
        if len(shapes) < count and shape not in shapes:
            shapes.append(shape)
            if len(shapes) < count and partner(shape) not in shapes and rng.random() < habit:
                shapes.append(partner(shape))
    if habit == 0:  # no two partners in one picture
        shapes = [one for place, one in enumerate(shapes) if partner(one) not in shapes[:place]]
    cells = sorted(rng.choice(CELLS**2, size=len(shapes), replace=False).tolist())
    dotted = int(rng.integers(len(shapes)))
    things = tuple(
        Thing(shape, _colour(rng, shape, habit), cell, place == dotted)
        for place, (shape, cell) in enumerate(zip(shapes, cells, strict=True))
    )
    return Scene(things, float(rng.uniform(*noise)), seed)


def _colour(rng: np.random.Generator, shape: int, habit: float) -> int:
    """The usual colour of a shape, or one of the others."""
    usual = usual_colour(shape)
    return usual if rng.random() < habit else (usual + int(rng.integers(1, len(COLOURS)))) % len(COLOURS)
