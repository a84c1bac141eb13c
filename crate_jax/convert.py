"""Make a run of released weights, or a file of released weights of a run.

    python -m crate_jax.convert --inspect=crate_b.pth
    python -m crate_jax.convert --input=crate_b.pth --output=runs/crate-b
    python -m crate_jax.convert --input=runs/crate-b --output=crate_b.safetensors

Released weights: CRATE, CRATE-α, CRATE-MAE, ViT as in timm, SimDINO, ImageGPT of Hugging Face and of OpenAI. They lie in a
.safetensors (or the .index.json of several), a file of PyTorch (.pth, .pt, .bin, .ckpt), an .npz, or the .index of a
TensorFlow checkpoint; or in a folder of Hugging Face's. No code in a file is ever run, and neither PyTorch nor TensorFlow is
needed. Family and sizes are found from names and shapes. The run that it becomes is one like any other:

    python -m crate_jax.evaluate --workdir=runs/crate-b --config.data.name=folder:PATH
    python -m crate_jax.train --config=configs/finetune.py --config.init_from=runs/crate-b --config.data.name=folder:PATH

ImageGPT's tokens are colours, which lie in a file of their own:

    python -m crate_jax.convert --input=model.ckpt-1000000.index --palette=kmeans_centers.npy --output=runs/igpt-s

A run is made small, its parameters without the optimiser's state, by an --output that is a folder:

    python -m crate_jax.convert --input=runs/base --output=runs/base-small

No file of weights says how images are scaled. They are scaled as in the released code, for a ViT as in timm's own models; if
yours was trained otherwise, as DeiT was, give its mean and its standard deviation (--config.data.std):

    python -m crate_jax.convert --input=deit.pth --output=runs/deit --config.data.mean=0.485,0.456,0.406
"""

import dataclasses
from pathlib import Path

from crate_jax import InputError, models, weights
from crate_jax.runs import cli
from crate_jax.runs.builtin import PREFIX, locate
from crate_jax.runs.config import from_config_dict, to_config_dict
from crate_jax.runs.console import console, table
from crate_jax.runs.flags import override
from crate_jax.settings import setting
from crate_jax.training import released as releases
from crate_jax.training.opening import open_run
from crate_jax.weights import files

# The format that a family of models is written in, where none is asked for.
WRITTEN_AS = {"crate": "crate", "crate_alpha": "crate_alpha", "crate_mae": "crate_mae", "vit": "vit_timm"}

# Formats of files that are not written, and are no names of folders either.
FOREIGN = (
    ".pt",
    ".bin",
    ".ckpt",
    ".h5",
    ".onnx",
    ".msgpack",
    ".npy",
    ".pkl",
    ".index",
    ".json",
    ".tar",
    ".gz",
    ".zip",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What to read and what to write."""

    input: str | None = setting(None, "Released weights, or the folder of a run.")
    output: str | None = setting(
        None, f"The folder of a new run; or a file that ends in {', '.join(files.WRITERS)}."
    )
    inspect: str | None = setting(None, "Only say what this file is; its values are not read.")
    family: str | None = setting(
        None,
        "The family of the weights; left out: found from the names in the file.",
        choices=weights.FAMILIES,
    )
    heads: int | None = setting(
        None, "Number of heads; left out: from the shapes or the published size they are of.", least=1
    )
    part: str | None = setting(
        None, "Of a file with several sets of weights the key of the one to take, such as model_ema."
    )
    palette: Path | None = setting(
        None, "The colours of ImageGPT's tokens: an .npy, or a preprocessor_config.json."
    )
    classes: Path | None = setting(
        None, "A text file of class names, one per line; left out: ImageNet's for 1000 classes, else 0, 1, …"
    )
    checkpoint: str = setting("latest", "Of a run the checkpoint: latest, best, or a step.")
    command: str | None = setting(None, "Of a run that is written to a folder: the command that made it.")


def main(argv: list[str]) -> None:
    flags, changes = cli.parse_changes(argv, Flags)
    if flags.inspect is not None:
        show(flags)
        return
    if flags.input is None or flags.output is None:
        raise InputError(
            "--input and --output are required, or --inspect. To start: python -m crate_jax.convert --inspect=FILE"
        )
    is_run = _is_run(flags.input)
    suffix = Path(flags.output).suffix.lower()
    to_file = suffix in files.WRITERS
    if suffix in FOREIGN:
        raise InputError(
            f"--output: found {suffix}; accepted: a folder, or a file that ends in {', '.join(files.WRITERS)}"
        )
    if changes and (to_file or is_run):
        raise InputError(
            f"unknown flag {changes[0].partition('=')[0]}: only a new run has a configuration to change"
        )
    if to_file:
        write_file(flags, is_run)
    elif is_run:
        opened = open_run(place(flags.input), flags.checkpoint)
        releases.make_small(opened, cli.folder(flags.output), flags.command or "unknown")
        table(flags.output, {"parameters": f"{opened.run.model.num_params:,}", "step": opened.step})
    else:
        make_run(flags, changes)


def place(given: str) -> Path:
    """The folder or file that --input or --inspect names.

    Raises:
      InputError: an address on the web, or a builtin run that there is not.
    """
    if "://" in given:
        raise InputError(f"--input: found {given}; accepted: a file that is here; download it first")
    return locate(given) if given.startswith(PREFIX) else cli.folder(given)


def _is_run(given: str) -> bool:
    """Whether it is the folder of a run; one of Hugging Face's holds a config.json too, beside its weights."""
    folder = place(given)
    holds_weights = any((folder / name).is_file() for name in files.IN_FOLDER)
    return (folder / "config.json").is_file() and not holds_weights


def show(flags: Flags) -> None:
    """Print what a file is, by its shapes."""
    if _is_run(flags.inspect):
        raise InputError(
            f"--inspect: {flags.inspect} is the folder of a run already; accepted: released weights"
        )
    found = weights.inspect(flags.inspect, flags.family, heads=flags.heads, part=flags.part, ask=False)
    model = found.config
    table(
        flags.inspect,
        {
            "family": f"{found.family}: {weights.FAMILIES[found.family].what}",
            "model": f"width {model.dim}, depth {model.depth}",
            "heads": f"{found.heads} of {model.head_dim} features"
            if isinstance(found.heads, int)
            else f"not told; give --heads=N, {found.heads}",
            "input": model.describe_input(),
            "numbers": f"{found.num_params:,} in {len(found.arrays)} arrays",
            "types": ", ".join(f"{count} × {name}" for name, count in found.types.items()),
            "unusual": "; ".join(found.notes) or "nothing",
            "fits": "yes" if not found.problems else f"no: {'; '.join(found.problems)}",
        },
    )


def make_run(flags: Flags, changes: list[str]) -> None:
    """Make the folder of a run of a released file."""
    workdir = cli.folder(flags.output)
    source = files.find(flags.input)
    found = weights.inspect(source, flags.family, heads=flags.heads, part=flags.part)
    if flags.palette is not None and not isinstance(found.config, models.TokenConfig):
        raise InputError(
            f"--palette: found {flags.palette} for {found.family}; accepted: none, it sees pixels"
        )
    colours = None if flags.palette is None else releases.read_palette(flags.palette)
    default = releases.default_config(found, colours)
    values, overrides = override(to_config_dict(default), changes, Flags)
    config = from_config_dict(values, overrides)
    found = found.computed_as(config.model)
    info = releases.describe_data(config, flags.classes, overrides)
    run = releases.make_workdir(found, source, workdir, config, info, colours)
    _say(found)
    data = config.data
    scaled = f"mean {data.mean}, std {data.std}" if run.palette is None else f"{len(run.palette)} colours"
    table(
        str(workdir),
        {
            "family": weights.FAMILIES[found.family].what,
            "parameters": f"{run.model.num_params:,}",
            "input": config.model.describe_input(),
            "pixels": scaled,
            "classes": ", ".join(info.class_names[:3]) + (", …" if info.num_classes > 3 else "") or "none",
            "data": data.name,
        },
    )


def write_file(flags: Flags, is_run: bool) -> None:
    """Write a run, or another released file, under released names."""
    output = Path(flags.output).expanduser()
    if output.exists():
        raise InputError(f"--output: {output} is there already; accepted: a new file")
    if is_run:
        run, params, _ = open_run(place(flags.input), flags.checkpoint)
        model = run.config.model
        family = flags.family or _family_of(model)
    else:
        found = weights.inspect(flags.input, heads=flags.heads, part=flags.part)
        _say(found)
        model, params, family = found.config, found.params(), flags.family or found.family
    arrays = weights.export(params, family, model)
    files.write(output, arrays, {"family": family, "heads": str(model.heads)})
    table(str(output), {"family": weights.FAMILIES[family].what, "arrays": f"{len(arrays)}, float32"})


def _family_of(model: models.ModelConfig) -> str:
    if isinstance(model, models.IGPTConfig):
        return "igpt_hf" if model.use_bias else "igpt_openai" if model.causal else "igpt_openai_bert"
    if isinstance(model, models.ViTConfig) and model.head_hidden:
        return "simdino"
    if model.family not in WRITTEN_AS:
        raise InputError(
            f"--input: a run of model.family {model.family!r} has no released form; accepted: {', '.join(WRITTEN_AS)}, igpt"
        )
    return WRITTEN_AS[model.family]


def _say(found: weights.Released) -> None:
    for note in found.notes:
        console.print(note, markup=False)


if __name__ == "__main__":
    cli.run(main, Flags)
