"""What a configuration stands for once the data are known: mesh, model, task, and the data themselves."""

import dataclasses
from collections.abc import Collection
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from crate_jax import InputError, models
from crate_jax.data import palette, pipeline, sources, subset
from crate_jax.data.transforms import Augment
from crate_jax.parallel.sharding import batch_part, check_batch_size, make_mesh
from crate_jax.runs import workdir as workdirs
from crate_jax.runs.config import Config, DataConfig, Duration, fit_to_data
from crate_jax.tasks import Task, make_task
from crate_jax.tasks.tokenizer import Pixels


@dataclasses.dataclass(frozen=True)
class Run:
    """A resolved run. `info` describes the data that `config.data` names."""

    config: Config
    workdir: Path
    info: sources.DatasetInfo
    mesh: Mesh
    model: models.Model
    task: Task
    dataset: sources.Dataset | sources.Text | None = None  # Found once; planning has none.
    colours: np.ndarray | None = None  # The palette of a model of colour tokens.
    labels: np.ndarray | None = None  # The model's label for each class of the data; None: they are the same.

    def source(self, use: str, *, fitted: bool = True) -> sources.Source:
        """The examples to "train" or "test" on, with the model's labels, as images that the model takes or as stored."""
        source = _load(self.config, self.dataset, self.info, use, fitted=fitted)
        return source if self.labels is None else _Relabelled(source, self.labels)

    def train_batches(self) -> pipeline.Batches:
        """Training batches, a pure function of (seed, step)."""
        config, data = self.config, self.config.data
        part, parts = batch_part(self.mesh)
        return pipeline.train(
            self.source("train", fitted=False),
            batch_size=config.batch_size,
            seed=config.seed,
            augment=None if self.info.kind == "text" else _augment(data),
            process_index=part,
            process_count=parts,
            num_threads=config.data.threads,
        )

    def eval_batches(self, source: sources.Source):
        """Every example of `source` once, padded to whole batches."""
        part, parts = batch_part(self.mesh)
        return pipeline.evaluation(
            source, batch_size=self.config.batch_size, process_index=part, process_count=parts
        )

    def steps(self, duration: Duration | None) -> int:
        """A duration of this run in steps; 0 for None, which means never."""
        if duration is None:
            return 0
        sizes = {"num_examples": self.info.num_examples["train"], "batch_size": self.config.batch_size}
        total = None if duration == self.config.total else self.config.total.in_steps(**sizes)
        return duration.in_steps(**sizes, total_steps=total)


def _augment(data: DataConfig) -> Augment:
    return Augment(
        shift=data.shift,
        flip=data.flip,
        crop_padding=data.crop_padding,
        size=data.shape,
        channels=data.channels,
        resize=data.eval_resize,
        crop_scale=data.crop_scale,
        randaugment=data.randaugment,
        trivial_augment=data.trivial_augment,
        three_augment=data.three_augment,
        color_jitter=data.color_jitter,
    )


@dataclasses.dataclass(frozen=True)
class _Relabelled:
    """A source whose labels are looked up in a table."""

    source: sources.Source
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        example = self.source[index]
        return {**example, "label": self.labels[example["label"]]}


def make_run(config: Config, workdir: Path, overrides: Collection[str] = ()) -> Run:
    """Look at the data, fit the configuration to them, and build the mesh and the model.

    Raises:
      InputError: whatever is wrong with the data, the mesh, the batch size or the model, before any work is done.
    """
    data = config.data
    dataset = sources.find(data.name, data_dir=data.data_dir, exclude=str(workdir))
    info = sources.inspect(data.name, train=data.train_split, test=data.test_split, dataset=dataset)
    config = fit_to_data(config, info, overrides)
    if info.kind == "text":
        windows = {split: count // config.model.num_positions for split, count in info.num_examples.items()}
        info = dataclasses.replace(info, num_examples=windows)
    elif data.labels_per_class is not None:
        train = min(info.num_examples["train"], data.labels_per_class * info.num_classes)
        info = dataclasses.replace(info, num_examples={**info.num_examples, "train": train})
    mesh = make_mesh(config.mesh)
    check_batch_size(config.batch_size, config.accumulate, mesh)
    model = models.create(config.model)
    colours = _palette(config, dataset, workdir, info)
    task = make_task(config, Pixels(info.max_value, colours, info.kind == "text"))
    return Run(config, workdir, info, mesh, model, task, dataset, colours)


def _load(
    config: Config,
    dataset: sources.Dataset | sources.Text | None,
    info: sources.DatasetInfo,
    use: str,
    *,
    fitted: bool = True,
) -> sources.Source:
    data = config.data
    if info.kind == "text":
        return sources.load_text(data.name, use, length=config.model.num_positions, dataset=dataset)
    source = sources.load(
        data.name,
        {"train": data.train_split, "test": data.test_split}[use],
        image_size=data.shape if fitted else None,
        channels=data.channels,
        resize=data.eval_resize,
        dataset=dataset,
    )
    if use == "train" and data.labels_per_class is not None:
        return subset.per_class(source, data.labels_per_class, num_classes=info.num_classes, seed=config.seed)
    return source


def _palette(
    config: Config, dataset: sources.Dataset | sources.Text, workdir: Path, info: sources.DatasetInfo
) -> np.ndarray | None:
    """The run's own palette if it has one, else that of the run it starts from, a given file's, or a new one."""
    data, model = config.data, config.model
    if info.kind == "text":
        return None
    if not isinstance(model, models.TokenConfig) or data.channels == 1:
        if data.palette is not None:
            raise InputError(
                f"data.palette: found {data.palette} for {data.channels} channel(s) and model.family "
                f"{model.family!r}; accepted: none, but for colour images and a model of tokens"
            )
        return None
    files = [workdir / workdirs.PALETTE]
    if config.init_from is not None:
        files.append(Path(config.init_from) / workdirs.PALETTE)
    file = next((file for file in files if file.is_file()), data.palette)
    if file is not None:
        return palette.load(file)
    colours = palette.fit(_load(config, dataset, info, "train"), model.vocab_size, seed=config.seed)
    return multihost_utils.broadcast_one_to_all(colours) if jax.process_count() > 1 else colours
