"""The configuration of a run as frozen dataclasses, and its form as an ml_collections ConfigDict.

A config file returns a locked ConfigDict made by `to_config_dict`, so every field can be set from the command line and
a misspelt key is an error. The trainer turns it into a `Config` at once; library code never sees a ConfigDict.

Durations are given by suffix: `total_epochs`, `total_steps`, `total_examples`, `warmup_percent` (of the total), … Two
suffixes of one duration are refused, except that one on the command line replaces the one in the file.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from crate_jax import InputError, models, settings
from crate_jax.data.augmentation import Augmentations
from crate_jax.data.sources import DatasetInfo
from crate_jax.parallel.sharding import MeshConfig
from crate_jax.runs import optimizers
from crate_jax.runs.durations import UNITS, Duration, epochs, percent, steps
from crate_jax.runs.optimizers import Lion, OptimizerConfig
from crate_jax.settings import LARGEST_SEED, Setting, setting

# What configuration files import from here.
__all__ = [
    "Config",
    "DataConfig",
    "Duration",
    "MeshConfig",
    "OptimizerConfig",
    "RegularizerConfig",
    "SimDINOConfig",
    "choose",
    "describe",
    "epochs",
    "fit_to_data",
    "from_config_dict",
    "percent",
    "steps",
    "to_config_dict",
    "with_optimizer",
]


@dataclasses.dataclass(frozen=True)
class DataConfig(Augmentations):
    """What is trained on. None for `image_size` and `channels` means those of the data, for `image_width` square images."""

    name: str = setting(
        "digits",
        "The dataset: digits, stdlib, tfds:NAME, addition:OPTIONS, or folder, array_record, tar, parquet, npz or text:PATH "
        "(docs/data.md).",
    )
    data_dir: str | None = setting(None, "Where tfds keeps prepared datasets.")
    train_split: str = setting("train", "What is trained on, as in TFDS: train[:90%], train+validation.")
    test_split: str = setting("test", "What is evaluated on.")
    image_size: int | None = setting(
        None, "Height of the images, in pixels; left out: that of the data.", least=1
    )
    image_width: int | None = setting(None, "Width of the images; left out: as wide as high.", least=1)
    channels: int | None = setting(None, "Channels of the images; left out: those of the data.", least=1)
    mean: tuple[float, ...] = setting(
        (0.5,), "Mean of the pixels, scaled to [0, 1]: one number, or one per channel."
    )
    std: tuple[float, ...] = setting((0.5,), "Standard deviation of the pixels, likewise.", above=0)
    eval_resize: int | None = setting(
        None,
        "Short side that test images are resized to before their centre is cut out; left out: the largest square.",
        least=1,
    )
    stretch: bool = setting(
        False, "Resize all of a test image to the image size, whatever its shape; in place of eval_resize."
    )
    # Augmentation of training images on the device (`tasks.augment`); that in the pipeline is inherited.
    mixup: float = setting(0.0, "Mixup: α of its Beta(α, α); 0 is off.", least=0)
    cutmix: float = setting(0.0, "CutMix: α of its Beta(α, α); 0 is off.", least=0)
    erase: float = setting(0.0, "Probability of erasing a random rectangle.", least=0, most=1)
    labels_per_class: int | None = setting(
        None, "Train on this many examples of each class, drawn by the seed; left out: all.", least=1
    )
    palette: str | None = setting(
        None, "An .npy of colours for token models; left out: k-means over the training images."
    )
    max_megapixels: float = setting(
        100.0, "Images of more megapixels, by their headers, are refused.", above=0, most=1e6
    )
    threads: int | None = setting(None, "Threads that prepare batches; left out: one per core.", least=1)

    @property
    def shape(self) -> tuple[int, int] | None:
        """(height, width) of the images, once the configuration is fitted to the data; None for text."""
        return None if self.image_size is None else (self.image_size, self.image_width or self.image_size)


@dataclasses.dataclass(frozen=True)
class RegularizerConfig:
    """Terms on a white box's layers, added to a supervised loss (see `tasks.regularizer`); a weight of 0 is off."""

    sparse_rate_reduction: float = setting(0.0, "Weight of (R^c + λ‖Z‖₁ − R)/n, in nats per token.", least=0)
    layers: str = setting(
        "random", "Where it acts: in a random layer at each step, in all, or in layers such as 0,3."
    )
    eps_sq: float = setting(0.5, "The ε² of both rates.", above=0)
    penalty: float = setting(0.1, "Weight λ of ‖Z‖₁.", least=0)
    orthogonality: float = setting(0.0, "Weight of ‖UᵀU − I‖²/(k p), over all layers.", least=0)


@dataclasses.dataclass(frozen=True)
class SimDINOConfig:
    """The views and the loss of task simdino (see `tasks.simdino`); two views are global, `local_views` local."""

    local_views: int = setting(8, "Number of local views, beside the two global ones.", least=0)
    local_size: int | None = setting(
        None, "Height and width of a local view, in pixels; left out: those of a global one.", least=1
    )
    global_scale: tuple[float, ...] = setting(
        (0.4, 1.0), "Smallest and largest share of the area in a global view.", above=0, most=1, lengths=(2,)
    )
    local_scale: tuple[float, ...] = setting(
        (0.05, 0.4), "Smallest and largest share of the area in a local view.", above=0, most=1, lengths=(2,)
    )
    whole_image: bool = setting(
        False,
        "Cut views out of the whole image as it is stored (in the pipeline, bicubic, as released), not out of the image "
        "as the model takes it (on the device, linear, sides that do not fit cut off).",
    )
    flip: bool = setting(True, "Flip views horizontally at random.")
    alignment: float = setting(1.0, "Weight of the alignment of the views.", least=0)
    eps_sq: float = setting(0.05, "The ε² of the coding rate.", above=0)
    groups: int = setting(
        1, "Parts of the batch whose coding rates are averaged; as released: the number of devices.", least=1
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that determines a run."""

    model: Any
    task: str = setting(
        "classify",
        "What is learned: classify, autoregressive, bert, joint, masked_autoencoder, autoencoder or simdino.",
    )
    seed: int = setting(0, "Determines parameters, batches and augmentation.", least=0, most=LARGEST_SEED)
    deterministic: bool = setting(
        False, "On a GPU take only kernels that give the same bits every time; elsewhere all do."
    )
    batch_size: int = setting(64, "Examples per step, over all devices and accumulation steps.", least=1)
    accumulate: int = setting(
        1, "Slices of the batch that are computed one after the other, their gradients averaged.", least=1
    )
    label_smoothing: float = setting(
        0.1, "Share of the target spread evenly over the classes.", least=0, most=1
    )
    ema_decay: float = setting(
        0.0, "Decay of the moving average of the parameters, which is evaluated; 0 is off.", least=0, below=1
    )
    ema_decay_end: float | None = setting(
        None, "Where a cosine takes that decay by the end; left out: it stays.", least=0, most=1
    )
    total: Duration | None = setting(epochs(100), "Length of training.")
    warmup: Duration | None = setting(percent(5), "Length of the warm-up of the learning rate.")
    log: Duration | None = setting(percent(1), "Interval at which training metrics are logged.")
    eval: Duration | None = setting(percent(10), "Interval at which the test set is evaluated.")
    checkpoint: Duration | None = setting(percent(10), "Interval at which the state is saved.")
    trace: Duration | None = setting(percent(5), "Interval at which the layers are measured.")
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = Lion()
    regularizer: RegularizerConfig = RegularizerConfig()
    simdino: SimDINOConfig = SimDINOConfig()
    mesh: MeshConfig = MeshConfig()
    init_from: str | None = setting(None, "A workdir whose parameters, and palette, this run starts from.")
    wandb: str | None = setting(None, "A Weights & Biases project to log to; wandb must be installed.")


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
      InputError: an unknown key (with the nearest known one), an unknown model family, two suffixes of one duration, a
        value of another type or outside its range.
    """
    config = config.to_dict() if isinstance(config, ConfigDict) else _group("config.json", config)
    model = _group("model", config.pop("model", {}))
    family = model.get("family", "crate")
    settings.one_of("model.family", family, models.FAMILIES)
    fields = {"model": _build(models.FAMILIES[family].config, model, overrides, "model.")}
    for field in dataclasses.fields(Config):
        if dataclasses.is_dataclass(field.type) and field.type is not Duration:
            values = _group(field.name, config.pop(field.name, {}))
            kind = optimizers.kind_of(values) if field.type is OptimizerConfig else field.type
            fields[field.name] = _build(kind, values, overrides, f"{field.name}.")
    built = _build(Config, config, overrides, "", fields)
    settings.check(built, "config: ")
    return built


def describe(config: Config) -> list[tuple[str, Any, Any, Setting]]:
    """(dotted key, value, type, setting) of every key of a configuration; of a duration the key of the unit it is in."""
    rows = []
    for name, value, hint, one in settings.walk(config):
        if _is_duration(hint):
            unit = UNITS[0] if value is None else value.unit
            others = ", ".join(f"_{other}" for other in UNITS if other != unit)
            one = Setting(f"{one.description} Also {others}.", least=0)
            name, value, hint = f"{name}_{unit}", value and value.value, float
        rows.append((name, value, hint, one))
    return rows


def _group(name: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise InputError(f"config: {name}: found {values!r}; accepted: a group of settings by name")
    return dict(values)


def _build(
    kind: type, values: Mapping[str, Any], overrides: Collection[str], prefix: str, fields=None
) -> Any:
    """An instance of dataclass `kind` from plain values; `fields` holds those that are built already."""
    values, fields = dict(values), dict(fields or {})
    hints = typing.get_type_hints(kind)
    known = list(fields)
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
        name = prefix + next(iter(values))
        raise settings.unknown("config: unknown key", name, [prefix + one for one in known])
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
    settings.check_value(f"config: {name}_{units[0]}", value, float, Setting("", least=0))
    return Duration(value, units[0])


def with_optimizer(config: ConfigDict, arguments: Sequence[str]) -> None:
    """Change a configuration to the optimiser that --config.optimizer.name=NAME among the arguments asks for, so that its
    settings are there to be set; `optimizers.replace` says what they start from.

    Raises:
      InputError: an unknown optimiser.
    """
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        key, equals, name = argument.partition("=")
        if key.lstrip("-") == "config.optimizer.name" and "optimizer" in config:
            values = config.optimizer.to_dict()
            before = _build(optimizers.kind_of(values), values, (), "optimizer.")
            with config.unlocked():
                config.optimizer = to_config_dict(optimizers.replace(before, name if equals else following))


def choose(variant: str, variants: Mapping[str, Callable[[], Config]]) -> ConfigDict:
    """The named variant of a config file: what its `get_config(variant)` returns.

    Raises:
      InputError: another variant.
    """
    settings.one_of("--config: variant", variant, variants)
    return to_config_dict(variants[variant]())


def fit_to_data(config: Config, info: DatasetInfo, overrides: Collection[str] = ()) -> Config:
    """The configuration with the image size, channels, classes and whatever else of the model the data call for.

    How a model follows its data is its own configuration's business (`fit`); fields given on the command line are
    respected.

    Raises:
      InputError: data that the model cannot be fitted to.
    """
    data = config.data
    if info.tokens is not None:
        return _fit_to_tokens(config, info, overrides)
    channels = data.channels or info.channels
    images = models.Images(
        size=info.image_size,
        requested_size=data.image_size,
        requested_width=data.image_width,
        channels=channels,
        num_classes=config.model.num_classes if config.task == "simdino" else info.num_classes,
        levels=info.max_value + 1,
        user_set=frozenset(key.removeprefix("model.") for key in overrides if key.startswith("model.")),
    )
    model, size = config.model.fit(images)
    return dataclasses.replace(
        config, data=dataclasses.replace(data, image_size=size, channels=channels), model=model
    )


def _fit_to_tokens(config: Config, info: DatasetInfo, overrides: Collection[str]) -> Config:
    """The configuration with the vocabulary of the tokens and, where the data have one, their length."""
    model, default, tokens = config.model, DataConfig(), info.tokens
    if not isinstance(model, models.TokenConfig):
        raise InputError(
            f"data.name: {config.data.name} is {info.kind}, which model.family {model.family!r} does not read; accepted: "
            "igpt, crate_gpt, or images"
        )
    # Windows of a text overlap, so a part of them would not be a part of the text.
    free = {"name", "threads"} | ({"train_split", "test_split"} if tokens.length is not None else set())
    for field in dataclasses.fields(DataConfig):
        found, accepted = getattr(config.data, field.name), getattr(default, field.name)
        if found != accepted and field.name not in free:
            raise InputError(f"data.{field.name}: found {found}; accepted for {info.kind}: {accepted}")
    fitted = {"vocab_size": tokens.vocab_size, "num_positions": tokens.length or model.num_positions}
    for name, needed in fitted.items():
        found = getattr(model, name)
        if f"model.{name}" in overrides and found != needed:
            raise InputError(f"model.{name}: found {found}; accepted: {needed}, that of {info.kind}")
    return dataclasses.replace(config, model=dataclasses.replace(model, **fitted))


def _is_duration(hint: Any) -> bool:
    return Duration in typing.get_args(hint)


def _without_none(hint: Any) -> type:
    if isinstance(hint, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not types.NoneType)
    return typing.get_origin(hint) or hint
