"""The example in every docstring runs and gives what it says."""

import doctest
import importlib
import pkgutil

import pytest

import crate_jax.objectives as objectives

MODULES = [module.name for module in pkgutil.iter_modules(objectives.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"crate_jax.objectives.{name}")
    assert doctest.testmod(module).failed == 0


def test_every_public_function_is_documented():
    for name in objectives.__all__:
        document = getattr(objectives, name).__doc__
        assert document, name
        if name != "StepAgreement":
            wanted = ("Source:", ">>> ", "aises", "eturns")
            assert all(word in document for word in wanted), (name, [w for w in wanted if w not in document])
