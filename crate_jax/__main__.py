"""Lists the commands: `python -m crate_jax`."""

import ast
from pathlib import Path


def main() -> None:
    print("crate_jax: white-box transformers and next-pixel compressors in JAX/Flax\n")
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if not path.stem.startswith("_"):
            # Parsed, not imported: listing the commands must not load JAX.
            summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]
            print(f"  python -m crate_jax.{path.stem:<9} {summary}")
    print("\nTo start:  python -m crate_jax.train --config=configs/base.py --workdir=runs/base")


if __name__ == "__main__":
    main()
