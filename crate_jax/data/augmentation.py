"""The augmentation of training images: a line of `Augmentations` each, in the order in which they are done.

A new one is its function and its line: the configuration (`data.NAME`), its help, its range and the pipeline follow.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from crate_jax import InputError
from crate_jax.data import policies, transforms
from crate_jax.data.dataset import Source
from crate_jax.settings import setting


class _Step(NamedTuple):
    """What a field's metadata hold: the function of (image, generator, all settings), and what it needs."""

    function: Callable[[np.ndarray, np.random.Generator, "Augmentations"], np.ndarray]
    accepted: str
    holds: Callable[[Any], bool]
    needs_colour: bool


def _step(
    default: Any,
    function: Callable,
    description: str,
    accepted: str = "",
    holds: Callable[[Any], bool] = lambda value: True,
    *,
    needs_colour: bool = False,
    **bounds: Any,
) -> Any:
    """A field: off at its `default`, which is falsy; else `function` is applied. `bounds` are as for `settings.setting`."""
    metadata = setting(default, description, **bounds).metadata
    made = _Step(function, accepted, holds, needs_colour)
    return dataclasses.field(default=default, metadata={**metadata, "step": made})


def _operations_and_magnitude(largest: int) -> dict[str, Any]:
    return {
        "accepted": f"operations, magnitude (0 to {largest})",
        "holds": lambda found: len(found) == 2 and found[0] >= 1 and 0 <= found[1] <= largest,
        "needs_colour": True,
        "least": 0,
        "lengths": (0, 2),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentations:
    """How training images are augmented; the default does nothing."""

    crop_scale: tuple[float, ...] = setting(
        (), "Inception crop: smallest and largest share of the image's area.", above=0, most=1, lengths=(0, 2)
    )
    interpolation: str = setting(
        "bilinear", "Filter of that crop and of randaugment_timm.", choices=tuple(transforms.FILTERS)
    )
    shift: float = _step(
        0.0,
        lambda image, rng, to: transforms.random_shift(image, rng, to.shift),
        "Random translation by up to this many pixels.",
        "0 or more pixels",
        lambda pixels: pixels >= 0,
        least=0,
    )
    crop_padding: int = _step(
        0,
        lambda image, rng, to: transforms.random_crop(image, rng, to.crop_padding),
        "Random crop after padding by this many pixels.",
        "0 or more pixels",
        lambda pixels: pixels >= 0,
        least=0,
    )
    flip: bool = _step(
        False, lambda image, rng, _: transforms.random_flip(image, rng), "Random horizontal flip."
    )
    randaugment: tuple[int, ...] = _step(
        (),
        lambda image, rng, to: policies.randaugment(image, rng, *to.randaugment),
        "RandAugment of torchvision: operations per image, and their magnitude of 0 to 30.",
        **_operations_and_magnitude(30),
    )
    randaugment_timm: tuple[int, ...] = _step(
        (),
        lambda image, rng, to: policies.randaugment_timm(
            image, rng, *to.randaugment_timm, transforms.FILTERS[to.interpolation]
        ),
        "RandAugment of timm and big_vision: operations per image, and their magnitude of 0 to 10.",
        **_operations_and_magnitude(10),
    )
    trivial_augment: bool = _step(
        False,
        lambda image, rng, _: policies.trivial_augment(image, rng),
        "TrivialAugment.",
        needs_colour=True,
    )
    three_augment: bool = _step(
        False,
        lambda image, rng, _: policies.three_augment(image, rng),
        "ThreeAugment: grey, solarised or blurred.",
        needs_colour=True,
    )
    color_jitter: float = _step(
        0.0,
        lambda image, rng, to: policies.color_jitter(image, rng, to.color_jitter),
        "Change brightness, contrast and colour by up to this share.",
        "0 to 1",
        lambda share: 0 <= share <= 1,
        needs_colour=True,
        least=0,
    )

    @classmethod
    def of(cls, other: "Augmentations", **more: Any) -> "Augmentations":
        """Those of another class's instance, with what else this class has."""
        names = (field.name for field in dataclasses.fields(Augmentations))
        return cls(**{name: getattr(other, name) for name in names}, **more)


_STEPS: dict[str, _Step] = {
    field.name: field.metadata["step"]
    for field in dataclasses.fields(Augmentations)
    if "step" in field.metadata
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment(Augmentations):
    """The augmentation of one training example.

    Attributes:
        size: (height, width) or one number for both; None leaves the image as it is.
        channels: 1 or 3; None leaves the image as it is.
        resize, stretch: see `transforms.fit`, which gives the image its size unless ``crop_scale`` does.
    """

    size: transforms.Size | None = None
    channels: int | None = None
    resize: int | None = None
    stretch: bool = False

    def __post_init__(self):
        scale = self.crop_scale
        if scale and (len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1):
            raise InputError(
                f"augmentation: crop_scale is {scale}; accepted: two shares of the area, 0 < a <= b <= 1"
            )
        if self.interpolation not in transforms.FILTERS:
            accepted = ", ".join(transforms.FILTERS)
            raise InputError(f"augmentation: interpolation is {self.interpolation!r}; accepted: {accepted}")
        for name, step in _STEPS.items():
            value = getattr(self, name)
            if value and not step.holds(value):
                raise InputError(f"augmentation: {name} is {value}; accepted: {step.accepted}")
            if value and step.needs_colour and self.channels == 1:
                raise InputError(f"augmentation: {name} needs colour images; found 1 channel")

    def __call__(self, image: transforms.Image, rng: np.random.Generator) -> np.ndarray:
        """Augments an image, uint8 [height, width, channels] or encoded."""
        shape = {"size": self.size, "channels": self.channels}
        if self.crop_scale:
            image = transforms.inception_crop(
                image, rng, **shape, scale=self.crop_scale, interpolation=self.interpolation
            )
        elif self.size is not None:
            image = transforms.fit(image, **shape, resize=self.resize, stretch=self.stretch)
        for name, step in _STEPS.items():
            if getattr(self, name):
                image = step.function(image, rng, self)
        return image


@dataclasses.dataclass(frozen=True)
class Crops:
    """Several Inception crops of one image, beside the image itself, each kind under a name of its own.

    Attributes:
        kinds: name → (how many, height and width, smallest and largest share of the image's area).
        channels: 1 or 3.
        interpolation: see `transforms.resample`.
    """

    kinds: dict[str, tuple[int, int, tuple[float, ...]]]
    channels: int
    interpolation: str = "bicubic"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of the crops of one image."""
        return {
            name: (count, size, size, self.channels) for name, (count, size, _) in self.kinds.items() if count
        }

    def __call__(self, image: transforms.Image, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Name → uint8 [count, size, size, channels], cut out of an image that may still be encoded."""
        pixels = transforms.as_array(image, self.channels)
        how = {"channels": self.channels, "interpolation": self.interpolation}
        return {
            name: np.stack(
                [transforms.inception_crop(pixels, rng, size=size, scale=scale, **how) for _ in range(count)]
            )
            for name, (count, size, scale) in self.kinds.items()
            if count
        }


@dataclasses.dataclass(frozen=True)
class WithCrops:
    """A source of whole images with crops beside each, which depend on its place in the source alone."""

    source: Source
    crops: Crops

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.source[index]
        rng = np.random.Generator(np.random.Philox(key=0, counter=[0, index, 0, 0]))
        return {**example, **self.crops(example["image"], rng)}
