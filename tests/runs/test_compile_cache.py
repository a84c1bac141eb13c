"""What is compiled for an accelerator is kept, and what stands in the way of that is a line."""

import shutil

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import compilation_cache

from crate_jax.runs import compile_cache


@pytest.fixture
def unset(tmp_path, monkeypatch):
    """No folder for compiled programs, as in a process that has just begun; the user's caches are in `tmp_path`."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (None, 0.0, -1), strict=True):
        jax.config.update(name, value)
    compilation_cache.compilation_cache.reset_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path / "crate_jax" / "compiled"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.compilation_cache.reset_cache()


def compiled(number: float) -> float:
    """A program that no other test compiles."""
    return float(jax.jit(lambda x: jnp.sin(x) * number)(2.0))


def test_what_is_compiled_for_an_accelerator_is_kept(unset):
    compile_cache.enable("gpu")
    expected = compiled(1.2345)
    (entry,) = unset.glob("jit__lambda*-cache")
    # A file that was cut off is compiled again.
    entry.write_bytes(entry.read_bytes()[:20])
    jax.clear_caches()
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache entry"):
        assert compiled(1.2345) == expected


def test_nothing_is_kept_on_a_cpu_and_what_the_user_says_stays(unset):
    compile_cache.enable("cpu")
    assert jax.config.jax_compilation_cache_dir is None and not unset.exists()
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        compile_cache.enable("tpu")
        assert jax.config.jax_compilation_cache_dir is None and not unset.exists()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", "/elsewhere")
    compile_cache.enable("gpu")
    assert jax.config.jax_compilation_cache_dir == "/elsewhere"


def refused(*_args, **_options):
    raise OSError(30, "Read-only file system")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            ("tempfile.TemporaryFile", refused),
            "Read-only file system; JAX_COMPILATION_CACHE_DIR names another",
        ),
        (("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0)), "less than 1 GiB free at"),
    ],
)
def test_what_stands_in_the_way_is_a_line(unset, monkeypatch, capsys, broken, message):
    monkeypatch.setattr(f"crate_jax.runs.compile_cache.{broken[0]}", broken[1])
    compile_cache.enable("gpu")
    assert jax.config.jax_compilation_cache_dir is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("compiled programs are not kept: ") and message in line


def test_a_home_that_is_a_file_is_a_line(unset, monkeypatch, capsys):
    unset.parents[1].joinpath("file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(unset.parents[1] / "file"))
    compile_cache.enable("gpu")
    assert "Not a directory" in capsys.readouterr().out
