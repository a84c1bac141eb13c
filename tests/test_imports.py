"""What a library loads, seen from a fresh process."""

import subprocess
import sys

import pytest

HEAVY = (
    "flax",
    "optax",
    "orbax",
    "tensorflow_datasets",
    "ml_collections",
    "grain",
    "matplotlib",
    "sklearn",
)


def test_settings_load_nothing():
    program = (
        "import sys, crate_jax.settings; print(*[name for name in ('jax', 'numpy') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


@pytest.mark.parametrize("library", ["crate_jax.objectives"])
def test_a_library_loads_jax_and_nothing_else(library):
    program = f"import sys, {library}; print(*[name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
