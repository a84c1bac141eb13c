"""`crate-jax NAME …` and `python -m crate_jax NAME …`: run a command, or list them."""

import ast
import io
import runpy
import sys
from pathlib import Path

import crate_jax
from crate_jax import InputError
from crate_jax.settings import one_of


def commands() -> dict[str, str]:
    """Name → summary. A command is a file of this package; the first line of its docstring is its summary."""
    found = {}
    for path in sorted(path for folder in crate_jax.__path__ for path in Path(folder).glob("*.py")):
        if not path.stem.startswith("_"):
            # Parsed, not imported: listing the commands must not load JAX.
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[path.stem] = docstring.partition("\n")[0]
    return found


def main() -> None:
    """Run the command that the command line names."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    known = commands()
    if name in ("--help", "-h", "help"):
        print("crate_jax: white-box transformers and next-pixel compressors in JAX/Flax\n")
        for command, summary in known.items():
            print(f"  crate-jax {command:<10} {summary}")
        print(
            "\ncrate-jax NAME --help explains a command; python -m crate_jax NAME is the same as crate-jax NAME."
        )
        print("To start:  python -m crate_jax.train --config=configs/base.py --workdir=runs/base")
        return
    try:
        one_of("command", name, known)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.argv[1:] = rest
    runpy.run_module(f"crate_jax.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
