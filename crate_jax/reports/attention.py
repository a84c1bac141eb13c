"""What the class token looks at in every layer and head, and tokens of outlying norm."""

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax import models
from crate_jax.analysis import overlays
from crate_jax.analysis.attention import attention_maps, attention_reader, compares_tokens
from crate_jax.analysis.sheets import sheet
from crate_jax.analysis.tokens import OUTLYING, norm_outliers, token_reader
from crate_jax.parallel.sharding import replicated
from crate_jax.reports.base import Figure, Gallery, SectionResult, Table, TrainedRun
from crate_jax.reports.looking import affordable, fine_maps, some_images, stride_for

# Images that the numbers are of, that are drawn, and layers that are drawn, evenly spread with the last among them.
MEASURED, DRAWN, MAX_LAYERS = 64, 4, 6
# Heads that are drawn.
MAX_HEADS = 8


def make(trained: TrainedRun) -> SectionResult | None:
    """Maps and numbers; nothing for a model that compares no tokens of images."""
    config = trained.run.config.model
    if not compares_tokens(trained.run.model):
        return None
    images, names, pictures = some_images(trained, affordable(trained, MEASURED))
    shares, norms = _measure(trained, images)
    outliers = [norm_outliers(each) for each in norms]
    stride = stride_for(config)
    drawn = np.linspace(0, len(images) - 1, min(DRAWN, len(images))).astype(int)
    model = trained.run.model
    maps = fine_maps(trained, lambda params, x: attention_maps(model, params, x), stride)(images[drawn])
    who = "the class token" if config.pool == "class" else "all tokens, on average,"
    gallery = _gallery(maps, pictures[drawn], [names[i] for i in drawn], config.depth, who)
    rows = [
        [
            layer + 1,
            f"{np.mean(entropy):.2f}",
            f"{np.mean(own):.3f}",
            f"{outlier.largest:.2f}",
            f"{100 * outlier.outlying.mean():.2f}",
        ]
        for layer, (entropy, own, outlier) in enumerate(zip(*shares, outliers, strict=True))
    ]
    table = Table(
        f"attention of {who} and norms of the patches' tokens, {len(images):,} {trained.examples_are}",
        [
            "layer",
            "spread of attention",
            "attention to itself",
            "largest norm / median",
            "outlying norms (%)",
        ],
        rows,
    )
    values = {
        "images": len(images),
        "spread": np.asarray(shares[0]).tolist(),
        "to_itself": np.asarray(shares[1]).tolist(),
        "largest_norm_over_median": [each.largest for each in outliers],
        "outlying_share": [float(each.outlying.mean()) for each in outliers],
        "outlying_threshold": [each.threshold for each in outliers],
        "stride_px": stride,
    }
    return SectionResult("Attention", _text(who, config, stride), values, [table], galleries=[gallery])


def _text(who: str, config: models.ImageConfig, stride: int) -> str:
    fine = ""
    if stride < config.patch_size:
        fine = (
            f" The maps are finer than the {config.patch_size} px patches: the model also saw the images shifted by "
            f"multiples of {stride} px, and each value stands at the middle of its patch."
        )
    return (
        f"Where {who} looks in each layer and head, by the weights of its softmax, computed from the layer's own "
        "projections whatever kernel of attention runs. A map is drawn from its smallest value (blue) to its "
        f"largest (yellow), so maps cannot be compared in strength.{fine} The spread is the entropy of the weights "
        "over all tokens divided by the logarithm of their number, averaged over heads: 1 where all tokens have the "
        f"same weight, 0 where one has all. A norm is outlying if it is more than {OUTLYING:g} robust standard "
        "deviations above the layer's median; such tokens (“registers”) hold something other than their patch in "
        "some large networks."
    )


def _measure(trained: TrainedRun, images: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """((spread, weight on the class token itself) each `[layers, b, heads]`, norms `[layers, b, n]` of the patches)."""
    run = trained.run
    config = run.config.model
    weigh, tokens = attention_reader(config), token_reader()
    extra = int(config.pool == "class")

    def read(seen):
        weights = weigh(seen)
        positive = jnp.maximum(jnp.abs(weights), 1e-30)
        positive = positive / positive.sum(-1, keepdims=True)
        spread = -(positive * jnp.log(positive)).sum(-1) / jnp.log(weights.shape[-1])
        own = weights[..., 0] if extra else jnp.zeros_like(spread)
        return spread, own, jnp.linalg.norm(tokens(seen)[:, extra:], axis=-1)

    inputs = run.task.inputs

    def look(params, images):
        return run.model.apply(params, inputs({"image": images}), trace=read)[1]

    look = jax.jit(look, out_shardings=replicated(run.mesh))
    spread, own, norms = jax.device_get(look(trained.params, images))
    return (spread, own), norms


def _gallery(maps: np.ndarray, pictures: np.ndarray, names: list[str], depth: int, who: str) -> Gallery:
    layers = np.unique(np.linspace(depth - 1, 0, min(depth, MAX_LAYERS)).astype(int))
    heads = min(maps.shape[2], MAX_HEADS)
    figures = []
    for number, (layered, picture, name) in enumerate(zip(maps, pictures, names, strict=True), 1):
        for layer in layers:
            tiles = [("image", np.rint(np.broadcast_to(picture, (*picture.shape[:2], 3))).astype(np.uint8))]
            tiles += [
                (f"head {head + 1}", overlays.heat(picture, layered[layer, head])) for head in range(heads)
            ]
            alt = f"Image {number} ({name}) and where {who} looks in layer {layer + 1}, heads 1 to {heads}."
            figures.append(Figure(f"attention-{number}-{layer + 1:02d}.png", sheet(tiles), alt))
    numbers = [f"{number}: {name}" for number, name in enumerate(names, 1)]
    return Gallery(
        f"Attention of {who.rstrip(',')}",
        {"image": numbers, "layer": [int(layer) + 1 for layer in layers]},
        figures,
    )
