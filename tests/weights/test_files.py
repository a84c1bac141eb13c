"""Files as people have them: ordinary ones load, others are refused in one line, and none of them runs code."""

import argparse
import collections
import io
import json
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from crate_jax import InputError, weights
from crate_jax.weights import files, torch_files
from tests.weights.conftest import FIXTURES, released

CRATE = "crate"


def load(path, **options):
    return weights.load(path, heads=2, **options)


def refused(path) -> str:
    """The message of a file that is not taken: one line without escape codes."""
    with pytest.raises(InputError) as error:
        load(path)
    text = str(error.value)
    assert text.isprintable()
    return text


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "module.module.",
        "model.",
        "params/",
    ],
)
def test_prefixes_of_wrappers(prefix):
    arrays = released(CRATE)
    _, params = load({prefix + name: value for name, value in arrays.items()})
    np.testing.assert_array_equal(params["class_token"], arrays["cls_token"][0, 0])


def test_two_arrays_of_one_name():
    arrays = released(CRATE)
    with pytest.raises(InputError, match=r"two arrays are called cls_token once the prefixes"):
        load({**arrays, "module.cls_token": arrays["cls_token"]})


def test_the_mask_that_transformers_saved():
    arrays = released("igpt_hf")
    for layer in range(2):
        arrays[f"transformer.h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 16, 16), np.uint8))
        arrays[f"transformer.h.{layer}.attn.masked_bias"] = np.float32(-1e4)
    found = weights.inspect(arrays, heads=2)
    assert found.notes == ["left out: 4 constant arrays, such as the mask of attention"]
    assert found.problems == []


@pytest.mark.parametrize("parameters", ["params/", "opt/target/"])
def test_the_training_code_of_crate_alpha(parameters, tmp_path):
    """Its .npz holds the optimiser's trees and a clock beside the parameters, some of them in bfloat16."""
    arrays = released("crate_alpha_npz")
    state = {f"opt/0/mu/{name}": value.astype(ml_dtypes.bfloat16) for name, value in arrays.items()}
    state |= {"opt/0/count": np.int32(7), "chrono/accum_train_time": np.float64(3)}
    np.savez(tmp_path / "all.npz", **{parameters + name: value for name, value in arrays.items()}, **state)
    found = weights.inspect(tmp_path / "all.npz")
    assert found.problems == []
    assert any(note.startswith("left out: ") for note in found.notes)
    back = weights.export(found.params(), "crate_alpha_npz")
    assert all(np.array_equal(back[name], value) for name, value in arrays.items())


def test_shards(tmp_path):
    arrays = released(CRATE)
    names = list(arrays)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        files.write(tmp_path / file, {name: arrays[name] for name in part}, {})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {name: file for file, part in halves.items() for name in part}})
    )
    for path in (index, tmp_path):
        back = weights.export(load(path)[1], CRATE)
        assert all(np.array_equal(back[name], value) for name, value in arrays.items())
    (tmp_path / "b.safetensors").rename(tmp_path / "c.safetensors")
    assert "names the shard b.safetensors, which is not there" in refused(index)
    index.write_text(json.dumps({"weight_map": {"x": "../../etc/passwd"}}))
    assert "accepted: files beside it" in refused(index)
    index.write_text("[1]")
    assert "no index of shards" in refused(index)


# PyTorch's files, written here without it: its own functions by name, as `torch.save` writes them.
class Fake:
    """Pickled as a call of a function that only has a name."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def torch_file(path, content, arrays, *, compress=zipfile.ZIP_STORED):
    """A .pth of any content, in which strings `tensor:NAME` stand for arrays."""
    plain = io.BytesIO()
    torch_files.write(plain, arrays)
    with zipfile.ZipFile(plain) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["weights/data.pkl"] = content
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def state_dict_pickle(arrays) -> bytes:
    """The pickled state dict alone, without its header and end, to put into other pickles."""
    return torch_files._pickled(arrays)[2:-1]


def nested_pickle(entries: dict[str, bytes]) -> bytes:
    return (
        b"\x80\x02}(" + b"".join(torch_files._text(name) + value for name, value in entries.items()) + b"u."
    )


def pickled(value) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("w.pth", "state_dict"),
        ("checkpoint.pth.tar", "model"),
        ("last.ckpt", "state_dict"),
        ("MODEL.PTH", "state_dict_ema"),
        ("w", "params"),
    ],
)
def test_what_trainers_write(name, key, tmp_path):
    arrays = released("vit_timm")
    beside = {"args": argparse.Namespace(lr=1.0), "epoch": 3, "config": collections.OrderedDict(a=[1, {2}])}
    entries = {key: state_dict_pickle(arrays)} | {k: pickled(v) for k, v in beside.items()}
    torch_file(tmp_path / name, nested_pickle(entries), arrays)
    found = weights.inspect(tmp_path / name, heads=2)
    assert found.notes == [f"taken from {key}", "left out: args, epoch, config"]
    back = weights.export(found.params(), "vit_timm")
    assert all(np.array_equal(back[name], value) for name, value in arrays.items())


def test_a_part_is_asked_for(tmp_path):
    arrays = released("vit_timm")
    state = state_dict_pickle(arrays)
    torch_file(tmp_path / "w.pth", nested_pickle({"model_ema": state, "model": state}), arrays)
    assert weights.inspect(tmp_path / "w.pth", heads=2).notes == [
        "taken from model; --part=model_ema takes the other weights"
    ]
    assert weights.inspect(tmp_path / "w.pth", heads=2, part="model_ema").notes == ["taken from model_ema"]
    with pytest.raises(InputError, match="--part: found ema; accepted: model_ema, model"):
        weights.inspect(tmp_path / "w.pth", heads=2, part="ema")


def test_a_file_of_pytorch_before_1_6(tmp_path):
    arrays = released(CRATE)
    pieces = [
        pickle.dumps(value, protocol=2)
        for value in (torch_files.MAGIC, torch_files.PROTOCOL, {"little": True})
    ]
    # A storage's name there has a sixth part, the view that it is.
    content = torch_files._pickled(arrays).replace(b"tQ", b"NtQ")
    keys = [str(number) for number in range(len(arrays))]
    data = b"".join(struct.pack("<q", value.size) + value.tobytes() for value in arrays.values())
    path = tmp_path / "old.pth"
    path.write_bytes(b"".join(pieces) + content + pickle.dumps(keys, protocol=2) + data)
    back = weights.export(load(path)[1], CRATE)
    assert all(np.array_equal(back[name], value) for name, value in arrays.items())
    path.write_bytes(path.read_bytes()[:-8])
    assert "bytes, which are not there" in refused(path)


class Evil:
    """Loading it with pickle would be noticed."""

    def __reduce__(self):
        return os.mkdir, (str(Evil.folder),)


@pytest.mark.parametrize("form", ["zip", "plain", "npz"])
def test_hostile_pickles_run_nothing(form, tmp_path):
    Evil.folder, path = tmp_path / "made-by-a-pickle", tmp_path / "evil.pth"
    if form == "npz":
        np.savez(path.with_suffix(".npz"), a=np.array([Evil()], dtype=object))
        assert "a.npy holds Python objects, which are never loaded" in refused(path.with_suffix(".npz"))
    elif form == "zip":
        arrays = released(CRATE)
        entries = {"state_dict": state_dict_pickle(arrays), "args": pickled(Evil())}
        torch_file(path, nested_pickle(entries), arrays)
        assert "it names posix.mkdir, which weights have no need of; nothing in it was run" in refused(path)
    else:
        path.write_bytes(pickle.dumps(Evil(), protocol=2))
        assert "it names posix.mkdir" in refused(path)
    assert not Evil.folder.exists()


@pytest.mark.parametrize(
    "name", ["builtins.eval", "builtins.getattr", "os.system", "subprocess.Popen", "nt.system"]
)
def test_names_that_weights_have_no_need_of(name, tmp_path):
    module, _, function = name.rpartition(".")
    path = tmp_path / "evil.pth"
    torch_file(path, f"c{module}\n{function}\n(X\x01\0\0\0atR.".encode(), {})
    assert f"it names {name}" in refused(path)


def test_tensors_that_reach_beyond_their_storage(tmp_path):
    arrays = {"a": np.zeros((2, 3), np.float32)}
    content = torch_files._pickled(arrays)
    longer = content.replace(torch_files._tuple((2, 3)), torch_files._tuple((200, 3)))
    torch_file(tmp_path / "w.pth", longer, arrays)
    assert "reaches beyond its 6 numbers" in refused(tmp_path / "w.pth")
    backwards = content.replace(torch_files._tuple((3, 1)), torch_files._tuple((-3, 1)))
    torch_file(tmp_path / "w.pth", backwards, arrays)
    assert "reaches beyond its 6 numbers" in refused(tmp_path / "w.pth")


def test_zip_bombs(tmp_path):
    zeros = np.zeros(2**25, np.float32)
    np.savez_compressed(tmp_path / "bomb.npz", a=zeros)
    assert "unpacks to 134,217,856" in refused(tmp_path / "bomb.npz")
    torch_file(
        tmp_path / "bomb.pth", torch_files._pickled({"a": zeros}), {"a": zeros}, compress=zipfile.ZIP_DEFLATED
    )
    assert "it was not unpacked" in refused(tmp_path / "bomb.pth")


def lying_npz(path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", header.getvalue() + bytes(64))


def lying_safetensors(path, shape=(4,), offsets=(0, 2**40)):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))


def test_headers_that_lie(tmp_path):
    lying_npz(tmp_path / "a.npz")
    assert "a.npy says it has 4,398,046,511,2" in refused(tmp_path / "a.npz")
    path = tmp_path / "a.safetensors"
    for case in (((4,), (0, 2**40)), ((2**40,), (0, 16)), ((4,), (8, 4))):
        lying_safetensors(path, *case)
        assert "a.safetensors cannot be read" in refused(path)
    path.write_bytes(struct.pack("<Q", 2**50) + b"{}")
    assert "cannot be read" in refused(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>404</html>", "a page of HTML or XML, which is what a dead link gives"),
        (b"\n <html>", "a page of HTML"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x1f\x8b\x08", "compressed with gzip"),
        (b"", "an empty file"),
        (b'{"a": 1}', "a text of JSON"),
        (b"\x1b[31mred", "not a file of weights that is known"),
        (b"PK\x03\x04 and no more", "it is cut off or damaged"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "cannot be read"),
    ],
)
def test_what_is_no_file_of_weights(content, message, tmp_path):
    for name in ("w.pth", "w.npz", "w.safetensors", "w.index"):
        (tmp_path / name).write_bytes(content)
        assert message in refused(tmp_path / name)


@pytest.mark.parametrize("suffix", files.WRITERS)
def test_a_file_that_is_cut_off(suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    files.write(path, released(CRATE), {})
    whole = path.read_bytes()
    for part in (0.999, 0.7, 0.1):
        path.write_bytes(whole[: int(part * len(whole))])
        assert "cannot be read" in refused(path)


def test_a_folder_without_weights(tmp_path):
    assert "holds no weights; looked for: model.safetensors.index.json" in refused(tmp_path)
    assert "no file" in refused(tmp_path / "none.pth")


def test_names_with_escape_codes_are_printed_without(tmp_path):
    path = tmp_path / "w.pth"
    torch_file(path, b"cevil\x1b[2J\nx\n)R.", {})
    assert "it names evil?[2J.x" in refused(path)


TENSORFLOW = FIXTURES / "igpt_tensorflow.index"


def test_a_checkpoint_of_tensorflow(tmp_path):
    """Written by TensorFlow 2.21's tf.compat.v1.train.Saver: a small iGPT, a step counter and a slot of Adam. The values are
    those of a generator, drawn in the order of the names.
    """
    found = weights.inspect(TENSORFLOW)
    config = found.config
    assert (config.dim, config.depth, config.heads, config.vocab_size, config.num_positions) == (
        8,
        2,
        2,
        3,
        4,
    )
    assert found.notes == ["left out: global_step, model/wpe/Adam"]
    rng, back = np.random.default_rng(0), weights.export(found.params(), "igpt_openai", config)
    layers = [f"model/h{layer}" for layer in range(2)]
    order = ["model/wpe", "model/wte", "model/wtet", "model/sos", "model/ln_f/g"]
    for layer in layers:
        order += [f"{layer}/attn/{letter}_proj" for letter in "qkvc"]
        order += [f"{layer}/ln_1/g", f"{layer}/ln_2/g", f"{layer}/mlp/c_fc/w", f"{layer}/mlp/c_proj/w"]
    assert set(order) == set(back)
    for name in order:
        np.testing.assert_array_equal(back[name], rng.standard_normal(back[name].shape).astype(np.float32))
    # By the name that TensorFlow knows it by, or by any of its files.
    for name in ("igpt_tensorflow", "igpt_tensorflow.data-00000-of-00001"):
        assert weights.inspect(TENSORFLOW.with_name(name)).config == config


def test_a_damaged_checkpoint_of_tensorflow(tmp_path):
    index, data = tmp_path / "x.index", tmp_path / "x.data-00000-of-00001"
    index.write_bytes(TENSORFLOW.read_bytes())
    assert "x.data-00000-of-00001 is not beside it" in refused(index)
    content = TENSORFLOW.with_suffix(".data-00000-of-00001").read_bytes()
    data.write_bytes(content[:-40])
    assert "are not there; cut off?" in refused(index)
    data.write_bytes(content)
    whole = index.read_bytes()
    for cut in (10, len(whole) // 2):  # The footer stays, what it points to does not.
        index.write_bytes(whole[:cut] + whole[-48:])
        assert "its index is" in refused(index)


def test_teacher_and_student(tmp_path):
    """As SimDINO's trainer writes them: the student wrapped for parallel training."""
    arrays = released("simdino")
    other = {f"module.{name}": value + 1 for name, value in arrays.items()}
    both = {"student": state_dict_pickle(other), "teacher": state_dict_pickle(arrays), "epoch": pickled(99)}
    torch_file(tmp_path / "w.pth", nested_pickle({key: both[key] for key in ("teacher", "epoch")}), arrays)
    found = weights.inspect(tmp_path / "w.pth", heads=2)
    assert (found.family, found.problems) == ("simdino", [])
    assert found.notes == ["taken from teacher", "left out: epoch"]
    assert (found.config.num_classes, found.config.head_hidden) == (6, 12)
    found = weights.inspect({"student": other, "teacher": arrays, "epoch": 99}, heads=2, part="student")
    np.testing.assert_array_equal(found.params()["class_token"], arrays["backbone.cls_token"][0, 0] + 1)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("blocks.1.ls1.gamma", (16,), "layer scale"),
        ("blocks.0.attn.q_norm.weight", (8,), "normed queries and keys"),
        ("dist_token", (1, 1, 16), "DeiT's distillation token"),
        ("reg_token", (1, 4, 16), "register tokens"),
        ("norm_pre.weight", (16,), "a norm before the blocks"),
    ],
)
def test_what_later_vits_have(name, shape, words):
    with pytest.raises(InputError, match=rf"extra {name} \({words}, which our model does not have\)"):
        weights.load({**released("vit_timm"), name: np.zeros(shape, np.float32)}, heads=2)
