"""Compiled programs are kept on disk, so that a second start on a GPU or TPU need not compile again.

JAX keeps them itself where JAX_COMPILATION_CACHE_DIR says; here it is given a folder of the user's where that says nothing.
JAX_ENABLE_COMPILATION_CACHE=false turns it off.
"""

import os
import shutil
import tempfile
from pathlib import Path

import jax

from crate_jax.runs.console import console

# Nothing is written to a disk with less room than this, in bytes.
LEAST_FREE = 2**30


def enable(platform: str) -> None:
    """Have JAX keep what it compiles from now on, in `crate_jax/compiled` of the user's folder for caches.

    On a CPU nothing is kept: compiling takes little there, and a program is of one model of processor. What stands in the
    way is a line and no more.

    Args:
      platform: of the devices, as JAX names it.
    """
    config = jax.config
    if platform == "cpu" or config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "crate_jax" / "compiled"
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        console.print(
            f"compiled programs are not kept: {folder}: {why}; JAX_COMPILATION_CACHE_DIR names another folder"
        )
        return
    if free < LEAST_FREE:
        console.print(f"compiled programs are not kept: less than {LEAST_FREE >> 30} GiB free at {folder}")
        return
    config.update("jax_compilation_cache_dir", str(folder))
