"""The command: a file in, a shorter one out, and back in another process; one clear line for whatever is wrong."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, command, run

from crate_jax import InputError, compress
from crate_jax.compression import codec, container

RUNS = ROOT / "tests" / "fixtures" / "runs"


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """A run of a model of digits, tokens 0 to 16."""
    folder = tmp_path_factory.mktemp("igpt")
    with tarfile.open(RUNS / "igpt.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "run"


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """Images of as many grey levels as digits have: noise, which this model, hardly trained, codes better than LZMA."""
    path = tmp_path_factory.mktemp("digits") / "digits.npy"
    np.save(path, np.random.default_rng(0).integers(0, 17, (300, 8, 8), dtype=np.uint8))
    return path


def call(*arguments) -> None:
    compress.main(["compress", *map(str, arguments)])


def test_there_and_back(digits_run, digits, tmp_path, capsys):
    model, coded = tmp_path / "model.npz", tmp_path / "digits.crate"
    call("quantise", f"--workdir={digits_run}", f"--output={model}")
    call("encode", f"--input={digits}", f"--model={model}", f"--output={coded}", "--chunk=8192")
    call("decode", f"--input={coded}", f"--model={model}", f"--output={tmp_path / 'back'}")
    assert (tmp_path / "back").read_bytes() == digits.read_bytes()
    assert "19,328 → " in capsys.readouterr().out
    header, chunks = container.read(coded.read_bytes(), "")
    assert header.context == 0 and header.sizes[0] == 128
    assert [chunk.kind for chunk in chunks[1:]] == ["model"] * 3
    # One chunk of it, and a wish that cannot be met.
    call("decode", f"--input={coded}", f"--model={model}", f"--output={tmp_path / 'part'}", "--chunks=2")
    assert (tmp_path / "part").read_bytes() == digits.read_bytes()[128 + 8192 : 128 + 2 * 8192]
    with pytest.raises(InputError, match=r"--chunks: found 4; accepted: below 4"):
        call("decode", f"--input={coded}", f"--model={model}", "--output=x", "--chunks=4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "--input=nowhere"], "--input: no file nowhere"),
        (["encode", "--input=README.md", "--model=nowhere"], "--model: no file or folder nowhere"),
        (["encode", "--input=README.md", "--model=LICENSE"], "--model: LICENSE is no portable model"),
        (["encode", "--input=README.md", "--chunk=100"], "--chunk: found 100; accepted: .* from 8192"),
        (["decode", "--input=README.md"], "--output is required: README.md does not end in .crate"),
        (["decode", "--input=README.md", "--output=x"], "README.md was not written by `compress encode`"),
        (["shrink"], "compress: found 'shrink'; accepted: encode, decode, quantise"),
        ([], "compress: found ''"),
    ],
)
def test_mistakes(arguments, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=message):
        call(*arguments)


def test_a_damaged_file_leaves_no_output(digits_run, tmp_path):
    data = tmp_path / "data"
    data.write_bytes(bytes(1000))
    call("encode", f"--input={data}", f"--model={digits_run}")
    coded = tmp_path / "data.crate"
    whole = coded.read_bytes()
    data.write_bytes(b"older")
    flipped = (whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole)))
    for broken in (*flipped, *(whole[:end] for end in range(len(whole)))):
        coded.write_bytes(broken)
        with pytest.raises(InputError, match=r"--input: .*(damaged or cut short|not written by|has format)"):
            call("decode", f"--input={coded}", f"--model={digits_run}")
    assert data.read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "data.crate"]


def test_killed_while_writing_leaves_no_half_file(tmp_path):
    """SIGKILL when all but the last step of writing is done: what was there is there still, whole."""
    path = tmp_path / "out"
    path.write_bytes(b"before")
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom crate_jax import compress\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"compress._write(Path({str(path)!r}), bytes(10**6))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=120)
    assert done.returncode == -9
    assert path.read_bytes() == b"before"


@pytest.mark.slow
@pytest.mark.parametrize("numerics", ["float", "portable"])
def test_fresh_processes_give_back_what_others_encoded(numerics, digits_run, digits, tmp_path):
    """In integers with other numbers of devices and threads too; in floating-point numbers that is refused."""
    model = digits_run
    if numerics == "portable":
        model = tmp_path / "model.npz"
        call("quantise", f"--workdir={digits_run}", f"--output={model}")
    files = {
        "digits": digits.read_bytes(),
        "text": (ROOT / "README.md").read_bytes(),
        "executable": Path(shutil.which("true") or sys.executable).read_bytes()[:100_000],
        "random": os.urandom(9000),
        "empty": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        shared = [f"--model={model}"]
        coded = f"--input={tmp_path / name}.crate"
        assert run(command("compress", "encode", f"--input={tmp_path / name}", *shared)).returncode == 0
        out = tmp_path / f"{name}.back"
        assert run(command("compress", "decode", coded, f"--output={out}", *shared)).returncode == 0
        assert out.read_bytes() == data
        assert (tmp_path / f"{name}.crate").stat().st_size <= 1.001 * len(data) + 512
    coded, out = f"--input={tmp_path / 'digits'}.crate", tmp_path / "elsewhere"
    done = run(command("compress", "decode", coded, f"--output={out}", f"--model={model}"), devices=8)
    if numerics == "portable":
        assert done.returncode == 0
        assert out.read_bytes() == files["digits"]
    else:
        assert done.returncode == 2
        assert (
            "was encoded in floating-point numbers on another machine (threads 4 there, 32 here"
            in done.stderr
        )
        assert not out.exists()


def test_the_default_chunk_is_accepted():
    assert codec.CHUNK >= codec.MIN_CHUNK
