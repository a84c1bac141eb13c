"""Renew the tables of docs/models.md: run this file, with the ablation's workdir as an argument where its runs are."""

import pathlib
import runpy
import sys

import jax
import jax.numpy as jnp

from crate_jax import models
from crate_jax.analysis import ablation
from crate_jax.parallel.flops import matmul_flops
from crate_jax.runs.config import from_config_dict

ROOT = pathlib.Path(__file__).parents[1]
PAGE = pathlib.Path(__file__).with_name("models.md")

# model, paper, config file, variants; the largest networks of every family.
ROWS = [
    ("CRATE", "2306.01129", "crate", ("tiny", "small", "base", "large")),
    ("CRATE-α", "2405.20299", "crate_alpha", ("tiny", "small", "base", "large", "huge")),
    ("CRATE-MAE", "2404.02446", "mae", ("tiny", "small", "base", "large")),
    ("CRATE-GPT", "2311.13110", "text", ("openwebtext",)),
    ("ToST", "2412.17810", "tost", ("tiny", "small", "medium")),
    ("ViT", "2010.11929", "vit", ("tiny", "small", "base", "large")),
    ("iGPT", "image-gpt", "igpt", ("imagenet32_s", "imagenet32_m", "imagenet32_l", "imagenet64_xl")),
]


def row(name, paper, file, variant):
    config = from_config_dict(
        runpy.run_path(str(ROOT / "configs" / f"{file}.py"))["get_config"](variant)
    ).model
    model = models.create(config)
    if isinstance(config, models.TokenConfig):
        inputs = jax.ShapeDtypeStruct((1, config.num_positions), jnp.int32)
        size = f"{config.num_positions:,} tokens"
    else:
        inputs = jax.ShapeDtypeStruct((1, *config.image_shape), jnp.float32)
        size = f"{config.image_size} px, patch {config.patch_size}"
    flops = matmul_flops(lambda params, x: model.apply(params, x)[0], model.abstract_params, inputs)
    cells = (name, paper, variant, f"{config.dim} × {config.depth}", size, f"{model.num_params:,}")
    return "| " + " | ".join((*cells, f"{flops / 1e9:.2f}", f"`configs/{file}.py:{variant}`")) + " |"


def sizes():
    header = ["model", "paper", "size", "width × layers", "input", "parameters", "GFLOP", "config"]
    rows = [row(name, paper, file, variant) for name, paper, file, variants in ROWS for variant in variants]
    return table(header, rows)


def variants(workdir):
    names = runpy.run_path(str(ROOT / "configs" / "crate.py"))["STUDIES"]["ablation"].runs
    rows = ablation.read(workdir, names)
    lines = ["| " + " | ".join(str(cell) for cell in row.cells()) + " |" for row in rows]
    return table(list(ablation.HEADERS), lines)


def table(header, rows):
    return ["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *rows]


def renew(text, name, lines):
    """The text with what stands between the marks of a table replaced."""
    begin, end = f"<!-- {name}: begin (docs/models_table.py) -->", f"<!-- {name}: end -->"
    head, rest = text.split(begin)
    return head + "\n".join([begin, *lines, end]) + rest.split(end)[1]


if __name__ == "__main__":
    page = renew(PAGE.read_text(), "sizes", sizes())
    if len(sys.argv) > 1:
        page = renew(page, "ablation", variants(pathlib.Path(sys.argv[1])))
    PAGE.write_text(page)
