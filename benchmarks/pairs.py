"""Pairs of datasets, related and not, for joint against separate code lengths.

    python -m benchmarks.pairs --output=data/pairs

Writes bytes that ship inside Python and scikit-learn: OUTPUT/code-a and OUTPUT/code-b, two halves of the modules at the
top of the standard library (every second one in each), and OUTPUT/photograph, the red, green and blue bytes of
scikit-learn's china.jpg in raster order. docs/compression.md has the commands that compare them.
"""

import argparse
import sysconfig
from pathlib import Path

from sklearn.datasets import load_sample_image


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    for name, half in (("code-a", modules[::2]), ("code-b", modules[1::2])):
        (output / name).write_bytes(b"".join(path.read_bytes() for path in half))
    (output / "photograph").write_bytes(load_sample_image("china.jpg").tobytes())
    for path in sorted(output.iterdir()):
        print(f"{path}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
