"""The configuration of a run as frozen dataclasses, and its form as an ml_collections ConfigDict.

A config file returns a locked ConfigDict made by `to_config_dict`, so every field can be set from the command line and
a misspelt key is an error. The trainer turns it into a `Config` at once; library code never sees a ConfigDict.

Durations are given by suffix: `total_epochs`, `total_steps`, `total_examples`, `warmup_percent` (of the total), … Two
suffixes of one duration are refused, except that one on the command line replaces the one in the file.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from crate_jax import InputError, models
from crate_jax.data.sources import DatasetInfo
from crate_jax.parallel.sharding import MeshConfig
from crate_jax.runs import optimizers
from crate_jax.runs.optimizers import Lion, OptimizerConfig

# The vocabulary of text.
BYTES = 256
UNITS = ("epochs", "steps", "examples", "percent")


@dataclasses.dataclass(frozen=True)
class Duration:
    """A length of training: `value` in `unit`, one of UNITS. Percent is of the total."""

    value: float
    unit: str

    def in_steps(self, *, num_examples: int, batch_size: int, total_steps: int | None = None) -> int:
        """As a whole number of optimiser steps, at least 1 (0 for a zero duration).

        Raises:
          InputError: a percentage where `total_steps` is None.
        """
        if self.value == 0:
            return 0
        if self.unit == "percent" and total_steps is None:
            raise InputError(
                "total_percent: the total is what percentages are of; give total_epochs or total_steps"
            )
        steps = {
            "epochs": lambda: self.value * num_examples / batch_size,
            "steps": lambda: self.value,
            "examples": lambda: self.value / batch_size,
            "percent": lambda: self.value / 100 * total_steps,
        }[self.unit]()
        return max(1, round(steps))


def epochs(value: float) -> Duration:
    """`value` passes over the training data."""
    return Duration(value, "epochs")


def steps(value: int) -> Duration:
    """`value` optimiser steps."""
    return Duration(value, "steps")


def percent(value: float) -> Duration:
    """`value` % of the whole run."""
    return Duration(value, "percent")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is trained on. None for `image_size` and `channels` means those of the data, for `image_width` square images."""

    name: str = "digits"  # digits | tfds:NAME | folder, array_record, tar, parquet, npz or text:PATH, stdlib (docs/data.md)
    data_dir: str | None = None  # Where tfds keeps prepared datasets.
    train_split: str = "train"  # As in TFDS: "train[:90%]", "train+validation".
    test_split: str = "test"
    image_size: int | None = None
    image_width: int | None = None
    channels: int | None = None
    mean: tuple[float, ...] = (0.5,)  # Of pixel values scaled to [0, 1]; one number or one a channel.
    std: tuple[float, ...] = (0.5,)
    eval_resize: int | None = (
        None  # Short side before the centre is cut out; None: the largest centre square.
    )
    stretch: bool = (
        False  # Resize all of an image to the image size, whatever its shape; instead of eval_resize.
    )
    # Augmentation of training images, see `transforms.Augment`: in the pipeline,
    crop_scale: tuple[float, ...] = ()  # Inception crop with a share of the area in (smallest, largest),
    interpolation: str = "bilinear"  # with this filter or "bicubic", also of randaugment_timm,
    shift: float = 0.0  # random translation by up to so many pixels,
    flip: bool = False  # random horizontal flip,
    crop_padding: int = 0  # random crop after padding by so many pixels,
    randaugment: tuple[int, ...] = ()  # torchvision's RandAugment (operations, magnitude of 0 to 30),
    randaugment_timm: tuple[int, ...] = ()  # timm's and big_vision's (operations, magnitude of 0 to 10),
    trivial_augment: bool = False  # TrivialAugment,
    three_augment: bool = False  # grey, solarised or blurred,
    color_jitter: float = 0.0  # brightness, contrast and colour by up to such a share;
    mixup: float = 0.0  # and on the device, see `tasks.augment`: mixup's α,
    cutmix: float = 0.0  # CutMix's α,
    erase: float = 0.0  # probability of random erasing.
    labels_per_class: int | None = None  # Train on so many examples of each class, drawn by the seed.
    palette: str | None = None  # A .npy of colours for token models; None: k-means over the training images.
    threads: int | None = None  # That prepare batches ahead of the step; None: one a core.
    benchmark: bool = False  # Measure the input pipeline alone and beside training steps, then stop.

    @property
    def shape(self) -> tuple[int, int] | None:
        """(height, width) of the images, once the configuration is fitted to the data; None for text."""
        return None if self.image_size is None else (self.image_size, self.image_width or self.image_size)


@dataclasses.dataclass(frozen=True)
class RegularizerConfig:
    """Terms on a white box's layers, added to a supervised loss (see `tasks.regularizer`); a weight of 0 is off."""

    sparse_rate_reduction: float = 0.0  # Weight of (R^c + λ‖Z‖₁ − R)/n, nats a token,
    layers: str = "random"  # in a random layer each step, in "all", or in layers such as "0,3".
    eps_sq: float = 0.5  # ε² of both rates.
    penalty: float = 0.1  # λ.
    orthogonality: float = 0.0  # Weight of ‖UᵀU − I‖²/(k p), all layers.


@dataclasses.dataclass(frozen=True)
class SimDINOConfig:
    """The views and the loss of task simdino (see `tasks.simdino`); two views are global, `local_views` local."""

    local_views: int = 8
    local_size: int | None = None  # Height and width of a local view; None: those of a global one.
    global_scale: tuple[float, ...] = (0.4, 1.0)  # Smallest and largest share of the image's area.
    local_scale: tuple[float, ...] = (0.05, 0.4)
    flip: bool = True
    alignment: float = 1.0  # Weight of the alignment.
    eps_sq: float = 0.05  # ε² of the coding rate.


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that determines a run."""

    model: Any
    task: str = "classify"
    seed: int = 0
    batch_size: int = 64  # Global, over all devices and accumulation steps.
    accumulate: int = 1  # Gradients averaged over so many slices of the batch, one after the other.
    label_smoothing: float = 0.1
    ema_decay: float = 0.0  # Exponential moving average of the parameters, used for evaluation; 0 is off.
    ema_decay_end: float | None = None  # The decay follows a cosine to this value; None: it stays.
    total: Duration | None = epochs(100)
    warmup: Duration | None = percent(5)
    log: Duration | None = percent(1)
    eval: Duration | None = percent(10)
    checkpoint: Duration | None = percent(10)
    trace: Duration | None = percent(5)
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = Lion()
    regularizer: RegularizerConfig = RegularizerConfig()
    simdino: SimDINOConfig = SimDINOConfig()
    mesh: MeshConfig = MeshConfig()
    init_from: str | None = None  # A workdir whose parameters (and palette) this run starts from.
    wandb: str | None = None  # A Weights & Biases project to log to; wandb must be installed.


def to_config_dict(config: Any) -> ConfigDict:
    """A dataclass as a locked ConfigDict with every field in it; None becomes a typed placeholder."""
    out = ConfigDict()
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if _is_duration(hints[field.name]):
            for unit in UNITS:
                given = value.value if value is not None and value.unit == unit else None
                kind = int if unit in ("steps", "examples") else float
                out[f"{field.name}_{unit}"] = config_dict.placeholder(kind)
                if given is not None:
                    out[f"{field.name}_{unit}"] = kind(given)
        elif dataclasses.is_dataclass(value):
            out[field.name] = to_config_dict(value)
        elif value is None:
            out[field.name] = config_dict.placeholder(_without_none(hints[field.name]))
        else:
            out[field.name] = value
    return out.lock()


def from_config_dict(config: Mapping[str, Any], overrides: Collection[str] = ()) -> Config:
    """The typed configuration.

    Args:
      config: a ConfigDict or plain dict in the form of `to_config_dict`; keys that are left out keep their defaults.
      overrides: dotted keys that were set on the command line; they settle which of two suffixes is meant.
    Raises:
      InputError: an unknown key (with the nearest known one), an unknown model family, two suffixes of one duration.
    """
    config = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    model = dict(config.pop("model", {}))
    family = model.get("family", "crate")
    if family not in models.FAMILIES:
        raise InputError(f"model.family: found {family!r}; accepted: {', '.join(models.FAMILIES)}")
    built = _build(models.FAMILIES[family].config, model, overrides, "model.")
    fields = {"model": built}
    parts = {
        "data": DataConfig,
        "optimizer": optimizers.kind_of(config.get("optimizer", {}).get("name", "lion")),
        "regularizer": RegularizerConfig,
        "simdino": SimDINOConfig,
        "mesh": MeshConfig,
    }
    for name, kind in parts.items():
        fields[name] = _build(kind, config.pop(name, {}), overrides, f"{name}.")
    return _build(Config, config, overrides, "", fields)


def _build(
    kind: type, values: Mapping[str, Any], overrides: Collection[str], prefix: str, fields=None
) -> Any:
    """An instance of dataclass `kind` from plain values; `fields` holds those that are built already."""
    values, fields = dict(values), dict(fields or {})
    hints = typing.get_type_hints(kind)
    known = []
    for field in dataclasses.fields(kind):
        if field.name in fields:
            continue
        if _is_duration(hints[field.name]):
            keys = {unit: f"{field.name}_{unit}" for unit in UNITS}
            known.extend(keys.values())
            present = {unit: key for unit, key in keys.items() if key in values}
            if present:
                given = {unit: values.pop(key) for unit, key in present.items()}
                fields[field.name] = _duration(field.name, given, overrides)
        else:
            known.append(field.name)
            if field.name in values:
                value = values.pop(field.name)
                fields[field.name] = tuple(value) if isinstance(value, list | tuple) else value
    if values:
        name = next(iter(values))
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {prefix}{near[0]}?" if near else f"accepted: {', '.join(known)}"
        raise InputError(f"config: unknown key {prefix}{name}; {hint}")
    return kind(**fields)


def _duration(name: str, given: Mapping[str, float | None], overrides: Collection[str]) -> Duration | None:
    units = [unit for unit, value in given.items() if value is not None]
    if len(units) > 1:
        units = [unit for unit in units if f"{name}_{unit}" in overrides] or units
    if len(units) > 1:
        found = " and ".join(f"{name}_{unit}={given[unit]}" for unit in units)
        raise InputError(f"config: {found} both given; give one of them")
    if not units:
        return None
    value = given[units[0]]
    if value < 0:
        raise InputError(f"config: {name}_{units[0]}: found {value}; accepted: a number ≥ 0")
    return Duration(value, units[0])


def with_optimizer(config: ConfigDict, arguments: Sequence[str]) -> None:
    """Change the configuration to the optimiser that --config.optimizer.name=NAME among the arguments asks for, so that its
    settings are there to be set; see `optimizers.replace` for what they are.

    Raises:
      InputError: an unknown optimiser.
    """
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        key, equals, name = argument.partition("=")
        if key.lstrip("-") == "config.optimizer.name" and "optimizer" in config:
            values = config.optimizer.to_dict()
            kind = optimizers.kind_of(values.get("name", "lion"))
            changed = optimizers.replace(
                _build(kind, values, (), "optimizer."), name if equals else following
            )
            with config.unlocked():
                config.optimizer = to_config_dict(changed)


def choose(variant: str, variants: Mapping[str, Callable[[], Config]]) -> ConfigDict:
    """The named variant of a config file: what its `get_config(variant)` returns.

    Raises:
      InputError: another variant.
    """
    if variant not in variants:
        raise InputError(f"--config: unknown variant {variant!r}; accepted: {', '.join(variants)}")
    return to_config_dict(variants[variant]())


def fit_to_data(config: Config, info: DatasetInfo, overrides: Collection[str] = ()) -> Config:
    """The configuration with the image size, channels, classes and whatever else of the model the data call for.

    How a model follows its data is its own configuration's business (`fit`); fields given on the command line are
    respected.

    Raises:
      InputError: data that the model cannot be fitted to.
    """
    data = config.data
    if info.kind == "text":
        return _fit_to_text(config, overrides)
    channels = data.channels or info.channels
    images = models.Images(
        size=info.image_size,
        wanted_size=data.image_size,
        wanted_width=data.image_width,
        channels=channels,
        num_classes=config.model.num_classes if config.task == "simdino" else info.num_classes,
        levels=info.max_value + 1,
        fixed=frozenset(key.removeprefix("model.") for key in overrides if key.startswith("model.")),
    )
    model, size = config.model.fit(images)
    return dataclasses.replace(
        config, data=dataclasses.replace(data, image_size=size, channels=channels), model=model
    )


def _fit_to_text(config: Config, overrides: Collection[str]) -> Config:
    """The configuration with the vocabulary of bytes."""
    model, default = config.model, DataConfig()
    if not isinstance(model, models.TokenConfig):
        raise InputError(
            f"data.name: {config.data.name} is text, which model.family {model.family!r} does not read; accepted: igpt, "
            "crate_gpt, or images"
        )
    for field in dataclasses.fields(DataConfig):
        found, accepted = getattr(config.data, field.name), getattr(default, field.name)
        if found != accepted and field.name not in ("name", "threads", "benchmark"):
            raise InputError(f"data.{field.name}: found {found}; accepted for text: {accepted}")
    if "model.vocab_size" in overrides and model.vocab_size != BYTES:
        raise InputError(f"model.vocab_size: found {model.vocab_size}; accepted: {BYTES}, the bytes of text")
    return dataclasses.replace(config, model=dataclasses.replace(model, vocab_size=BYTES))


def _is_duration(hint: Any) -> bool:
    return Duration in typing.get_args(hint)


def _without_none(hint: Any) -> type:
    if isinstance(hint, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not types.NoneType)
    return typing.get_origin(hint) or hint
