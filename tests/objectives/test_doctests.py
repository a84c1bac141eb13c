"""The example in every docstring runs and gives what it says."""

import doctest
import inspect

import pytest

import crate_jax.objectives as objectives


@pytest.mark.parametrize("name", [name for name in objectives.__all__ if name != "StepAgreement"])
def test_examples(name):
    function = getattr(objectives, name)
    names = inspect.getmodule(inspect.unwrap(function)).__dict__
    (example,) = doctest.DocTestFinder(recurse=False).find(function, name, module=False, globs=names)
    result = doctest.DocTestRunner().run(example)
    assert result.attempted and not result.failed


def test_every_public_function_is_documented():
    for name in objectives.__all__:
        document = getattr(objectives, name).__doc__
        assert document, name
        if name != "StepAgreement":
            wanted = ("Source:", ">>> ", "aises", "eturns")
            assert all(word in document for word in wanted), (name, [w for w in wanted if w not in document])
