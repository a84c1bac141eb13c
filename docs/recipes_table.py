"""Renew the tables of docs/recipes.md: run this file. Ours is read from configs/, theirs from recipes_sources.toml."""

import pathlib
import runpy
import tomllib

from crate_jax.runs.config import Config, Duration, from_config_dict

ROOT = pathlib.Path(__file__).parents[1]
PAGE, SOURCES = (pathlib.Path(__file__).with_name(name) for name in ("recipes.md", "recipes_sources.toml"))
BEGIN, END = "<!-- recipes: begin (docs/recipes_table.py) -->", "<!-- recipes: end -->"
SILENT = "not said"

# Settings that are no part of a recipe: where things are, how they are watched and computed, and the architecture, which
# docs/models.md has. `model` stands for all of its settings, of which a recipe may name some.
APART = {
    *(
        "task",
        "seed",
        "accumulate",
        "log",
        "eval",
        "checkpoint",
        "trace",
        "mesh",
        "init_from",
        "wandb",
        "model",
    ),
    *("data.name", "data.data_dir", "data.train_split", "data.test_split", "data.channels", "data.palette"),
    *("data.image_width", "data.labels_per_class", "data.threads", "data.mean", "data.std"),
}


def load(name):
    """The configuration FILE:VARIANT."""
    file, variant = name.split(":")
    return from_config_dict(runpy.run_path(str(ROOT / "configs" / f"{file}.py"))["get_config"](variant))


def value(config, key):
    """What a configuration has under a dotted key, as it stands in the table."""
    for name in key.split("."):
        config = getattr(config, name)
    return text(config)


def text(found):
    if found is None:
        return "none"
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, Duration):
        return f"{text(found.value)} {found.unit}"
    if isinstance(found, tuple):
        return f"({', '.join(map(text, found))})" if found else "none"
    if isinstance(found, float):
        digits, exponent = f"{found:.6e}".split("e")
        return f"{float(digits):g}e{int(exponent)}" if 0 < found <= 1e-3 else f"{found:.15g}"
    return str(found)


def rows(recipe):
    """(setting, theirs, ours, whether they differ, where) for each row of a recipe."""
    config = load(recipe["configs"][0])
    for setting, theirs, where, *words in recipe["rows"]:
        ours = words[0] if words else value(config, setting)
        yield setting if words else f"`{setting}`", theirs, ours, ours != theirs and theirs != SILENT, where


def chosen(config):
    """The settings of a configuration that belong to a recipe and are not at their defaults, by key."""
    found = {}
    for name, part in vars(config).items():
        if name in APART:
            continue
        default = type(part)() if name in ("data", "optimizer", "regularizer", "simdino") else None
        settings = vars(part) if default is not None else {None: part}
        for field, setting in settings.items():
            key = f"{name}.{field}" if field else name
            before = getattr(default, field) if field else Config.__dataclass_fields__[name].default
            if key not in APART and setting != before:
                found[key] = setting
    return found


def tables():
    lines = []
    for recipe in tomllib.loads(SOURCES.read_text(encoding="utf-8"))["recipe"]:
        names = ", ".join(
            f"`configs/{name.split(':')[0]}.py:{name.split(':')[1]}`" for name in recipe["configs"]
        )
        lines += ["", f"## {recipe['title']}", "", f"Ours: {names}. Theirs: {recipe['source']}.", ""]
        lines += ["| setting | theirs | ours | | where |", "|---|---|---|---|---|"]
        for setting, theirs, ours, differ, where in rows(recipe):
            lines.append(f"| {setting} | {theirs} | {ours} | {'≠' if differ else ''} | {where} |")
    return lines


def renew(page):
    """The page with its tables replaced."""
    head, rest = page.split(BEGIN)
    return head + "\n".join([BEGIN, *tables(), "", END]) + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(renew(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
