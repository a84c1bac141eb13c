"""What data cost under coders that everyone has: the lengths that a learned model has to beat. In bits for tokens, in bytes
for files.
"""

import bz2
import lzma
import math
import zlib
from collections.abc import Callable

import cv2
import numpy as np

# OpenCV's deflate strategies; which one is shortest depends on the images.
PNG_STRATEGIES = (
    cv2.IMWRITE_PNG_STRATEGY_DEFAULT,
    cv2.IMWRITE_PNG_STRATEGY_FILTERED,
    cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY,
    cv2.IMWRITE_PNG_STRATEGY_RLE,
)


def order0_bits(tokens: np.ndarray) -> float:
    """n·H(p) for the empirical distribution p of the tokens themselves: no coder that codes each token by its frequency
    alone is shorter, even one that is told the frequencies for nothing.
    """
    counts = np.bincount(tokens.reshape(-1))
    counts = counts[counts > 0]
    return float(np.sum(counts * np.log2(counts.sum() / counts)))


def order1_bits(tokens: np.ndarray) -> float:
    """Order-0 for the first token of every row `[m, n]`, and for the others n·H(x_t | x_{t−1}) by their own frequencies: no
    coder that looks at the token before and at nothing else is shorter, even one that is told the frequencies for nothing.
    """
    size = int(tokens.max()) + 1
    pairs = tokens[:, :-1].astype(np.int64) * size + tokens[:, 1:]
    both, before = order0_bits(pairs) if pairs.size else 0.0, order0_bits(tokens[:, :-1])
    return order0_bits(tokens[:, :1]) + both - before


def zlib_bits(tokens: np.ndarray) -> int:
    """All tokens, one after the other, under `zlib` at level 9."""
    return 8 * len(zlib.compress(_bytes(tokens), 9))


def lzma_bits(tokens: np.ndarray) -> int:
    """All tokens, one after the other, under LZMA2 at preset 9 extreme, without the .xz container."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    return 8 * len(lzma.compress(_bytes(tokens), format=lzma.FORMAT_RAW, filters=filters))


def png_bits(images: np.ndarray) -> int:
    """A PNG file for each of the images uint8 `[n, h, w, 1 or 3]`, at level 9 and the best of the deflate strategies."""
    return min(sum(_png_bits(image, strategy) for image in images) for strategy in PNG_STRATEGIES)


def png_sheet_bits(images: np.ndarray) -> int:
    """One PNG file with all images on it, on a nearly square sheet or one above the other, whichever is shorter."""
    n, h, w, c = images.shape
    lengths = []
    for columns in (math.isqrt(n - 1) + 1, 1):
        rows = -(-n // columns)
        padded = np.concatenate([images, np.zeros((rows * columns - n, h, w, c), images.dtype)])
        sheet = padded.reshape(rows, columns, h, w, c).swapaxes(1, 2).reshape(rows * h, columns * w, c)
        lengths += [_png_bits(sheet, strategy) for strategy in PNG_STRATEGIES]
    return min(lengths)


def _png_bits(image: np.ndarray, strategy: int) -> int:
    options = [cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_STRATEGY, strategy]
    return 8 * cv2.imencode(".png", image, options)[1].size


def _bytes(tokens: np.ndarray) -> bytes:
    return tokens.astype(np.uint8 if tokens.max() < 256 else np.dtype("<u2")).tobytes()


def file_coders() -> dict[str, Callable[[bytes], int]]:
    """Name → bytes of a file under a general coder at its strongest; zstd and brotli where `imagecodecs` is there."""
    coders: dict[str, Callable[[bytes], int]] = {
        "zlib -9": lambda data: len(zlib.compress(data, 9)),
        "bz2 -9": lambda data: len(bz2.compress(data, 9)),
        "xz -9e": lambda data: len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    }
    try:
        import imagecodecs
    except ImportError:
        return coders
    return {
        **coders,
        "zstd -22": lambda data: len(imagecodecs.zstd_encode(data, level=22)),
        "brotli -11": lambda data: len(imagecodecs.brotli_encode(data, level=11)),
    }


def image_coders() -> dict[str, Callable[[np.ndarray], int]]:
    """Name → bytes of images uint8 `[n, h, w, 1 or 3]`, a file each, lossless; JPEG XL where `imagecodecs` is there."""

    def webp(images: np.ndarray) -> int:
        colours = images if images.shape[-1] == 3 else np.repeat(images, 3, axis=-1)
        # Above 100 stands for lossless.
        options = [cv2.IMWRITE_WEBP_QUALITY, 101]
        return sum(cv2.imencode(".webp", image, options)[1].size for image in colours)

    coders: dict[str, Callable[[np.ndarray], int]] = {
        "PNG": lambda images: png_bits(images) // 8,
        "PNG, one sheet": lambda images: png_sheet_bits(images) // 8,
        "WebP": webp,
    }
    try:
        import imagecodecs
    except ImportError:
        return coders

    def jpegxl(images: np.ndarray) -> int:
        files = (imagecodecs.jpegxl_encode(image.squeeze(), lossless=True, effort=9) for image in images)
        return sum(len(file) for file in files)

    return {**coders, "JPEG XL": jpegxl}
