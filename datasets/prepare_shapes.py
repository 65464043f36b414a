"""Draw a data set of shapes: discs, squares and triangles over two kinds of ground, with occlusion, blur and noise.

It needs no download and is large enough to compare models on a CPU. The things differ in size by a factor of eight, and
their colours say nothing of their classes. Writes shapes/{train,val}/{images,instances,classes}; the same pictures
always.
"""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mask2former.data.prepare import Job, run_script, write_image

CLASSES = ("disc", "square", "triangle", "plain", "striped")  # the first three are things
SPLITS = {"train": 1000, "val": 200}
SIZE = 128
Image = NDArray[np.uint8]


def draw_scene(rng: np.random.Generator) -> tuple[Image, Image, Image]:
    """Draw one picture.

    Returns:
        (SIZE, SIZE, 3) RGB, its (SIZE, SIZE) instance ids (0 none), and its (SIZE, SIZE) places in ``CLASSES``.
    """
    image, classes = _draw_ground(rng)
    instances = np.zeros((SIZE, SIZE), np.uint8)
    for number in range(1, int(rng.integers(3, 9)) + 1):
        kind = int(rng.integers(3))
        mask = _draw_shape(kind, rng)
        image[mask] = _texture(rng, rng.integers(0, 256, 3), strength=12)[mask]
        instances[mask] = number
        classes[mask] = kind
    blurred = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.3, 1.0)))
    noisy = blurred + rng.normal(0, 6, image.shape)
    return noisy.clip(0, 255).astype(np.uint8), instances, classes


def _draw_ground(rng: np.random.Generator) -> tuple[Image, Image]:
    """Plain ground, and striped ground beyond a wavy border, of similar colours."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    angle, phase = rng.uniform(0, 2 * np.pi, 2)
    across = (rows - SIZE / 2) * np.sin(angle) + (columns - SIZE / 2) * np.cos(angle)
    along = (rows - SIZE / 2) * np.cos(angle) - (columns - SIZE / 2) * np.sin(angle)
    striped = across + 8 * np.sin(along / 15 + phase) > rng.uniform(-SIZE / 3, SIZE / 3)
    image = _texture(rng, rng.integers(40, 216, 3), strength=20)
    stripes = np.sin((rows + columns * rng.uniform(-2, 2)) * rng.uniform(0.5, 1.2)) > 0
    image[striped & stripes] = (image[striped & stripes] * 0.75).astype(np.uint8)
    return image, np.where(striped, CLASSES.index("striped"), CLASSES.index("plain")).astype(np.uint8)


def _draw_shape(kind: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """The (SIZE, SIZE) mask of one shape, anywhere, turned anyhow."""
    radius = 4 * 2 ** rng.uniform(0, 3)  # pixels: 4 to 32
    centre = rng.uniform(0, SIZE, 2)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    if kind == 0:
        cv2.circle(mask, (int(centre[0]), int(centre[1])), int(radius), (1,), -1)
    else:
        corners = (4, 3)[kind - 1]
        angles = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(corners) / corners
        points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        cv2.fillPoly(mask, [points.round().astype(np.int32)], (1,))
    return mask.astype(bool)


def _texture(rng: np.random.Generator, colour: NDArray[np.int64], strength: float) -> Image:
    """(SIZE, SIZE, 3): one colour, lighter in some places and darker in others."""
    coarse = rng.normal(0, strength, (8, 8)).astype(np.float32)
    light = cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return (colour + light[..., None]).clip(0, 255).astype(np.uint8)


def write_scene(image_file: Path) -> None:
    """Write <split>/images/<number>.png after its PNGs of ids; the seed is the number with the name of the split."""
    split = image_file.parents[1]
    image, instances, classes = draw_scene(np.random.default_rng([int(image_file.stem), *split.name.encode()]))
    write_image(split / "classes" / image_file.name, classes)
    write_image(split / "instances" / image_file.name, instances)
    write_image(image_file, image)


def prepare(job: Job) -> None:
    """Draw every split."""
    for name, count in SPLITS.items():
        images = job.root / "shapes" / name / "images"
        files = [images / f"{number:04}.png" for number in range(count)]
        job.map(write_scene, list(filter(job.must_make, files)), f"Drawing {images.parent}")


if __name__ == "__main__":
    run_script(prepare, __doc__)
