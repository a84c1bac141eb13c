"""Data of which a part would be left out, counted twice or labelled wrongly without a word: refused, or said."""

import dataclasses
import io
import os
import shutil
import struct
import subprocess
import tarfile
import unicodedata
import zlib

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crate_jax import InputError
from crate_jax.data import inspect, prepare, sources, transforms
from crate_jax.data.dataset import class_name, notes_of


def png(value: int = 0) -> bytes:
    return cv2.imencode(".png", np.full((8, 8, 3), value, np.uint8))[1].tobytes()


def tars(folder, files: dict[str, bytes]):
    """The same archive for both splits."""
    folder.mkdir(exist_ok=True)
    for split in ("train", "val"):
        with tarfile.open(folder / f"{split}-0000.tar", "w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return f"tar:{folder}"


def classes_of(name: str) -> tuple[str, ...]:
    return sources.open_dataset(name).classes


def labels_of(name: str, split: str = "train") -> list[int]:
    source = sources.load(name, split)
    return [int(source[i]["label"]) for i in range(len(source))]


TWO = {f"{name}/{i}.png": png(i) for name in "ab" for i in range(6)}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data, at: data[:at] + bytes(1024) + data[at + 1024 :], "goes on for"),  # A hole.
        (
            lambda data, at: data[:at] + bytes(len(data) - at),
            "goes on for",
        ),  # A download that was never filled in.
        (lambda data, at: data[:at], "ends without tar's end mark"),
        (lambda data, at: data[: at + 100], "ends without tar's end mark"),
        (lambda data, at: data[: at + 600], "is cut off; the file is not complete"),
        (lambda data, at: data[:at] + b"x" * 512 + data[at + 512 :], "is damaged at byte"),
        (lambda data, at: data + data, "goes on for"),
    ],
)
def test_tars_that_are_not_whole(tmp_path, damage, message):
    name = tars(tmp_path / "t", TWO)
    assert len(labels_of(name)) == 12
    file = tmp_path / "t" / "train-0000.tar"
    with tarfile.open(file) as archive:
        at = list(archive)[8].offset
    file.write_bytes(damage(file.read_bytes(), at))
    with pytest.raises(InputError, match=message):
        sources.open_dataset(name)


@pytest.mark.parametrize("tail", [512, 1024, 10240])
def test_tars_may_end_as_any_tar_writes_them(tmp_path, tail):
    name = tars(tmp_path / "t", TWO)
    file = tmp_path / "t" / "train-0000.tar"
    file.write_bytes(file.read_bytes()[: 12 * 1024] + bytes(tail))
    assert len(labels_of(name)) == 12


def test_hard_links_in_a_tar_are_images(tmp_path):
    data, folder = tmp_path / "data", tmp_path / "t"
    for path, content in TWO.items():
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        (data / path).write_bytes(content)
    os.link(data / "a" / "0.png", data / "a" / "9.png")
    folder.mkdir()
    for split in ("train", "val"):
        subprocess.run(["tar", "cf", folder / f"{split}-0.tar", "-C", data, "a", "b"], check=True)
    assert sorted(labels_of(f"tar:{folder}")) == [0] * 7 + [1] * 6
    (data / "b" / "9.png").symlink_to(data / "b" / "0.png")
    subprocess.run(["tar", "cf", folder / "train-0.tar", "-C", data, "a", "b"], check=True)
    with pytest.raises(InputError, match=r"b/9\.png is a link or no ordinary file"):
        sources.open_dataset(f"tar:{folder}")


def numbered(labels) -> dict[str, bytes]:
    files = {}
    for i, label in enumerate(labels):
        files |= {f"{i:03}.png": png(), f"{i:03}.cls": str(label).encode()}
    return files


def test_labels_of_tars_that_are_numbers(tmp_path):
    assert classes_of(tars(tmp_path, numbered([0, 1, 3, 1]))) == ("0", "1", "2", "3")
    assert classes_of(tars(tmp_path, numbered(["000", "001", "010"]))) == ("000", "001", "010")
    assert classes_of(tars(tmp_path, {f"{n}/x.png": png() for n in ("00000", "00012")})) == ("00000", "00012")
    assert len(classes_of(tars(tmp_path, numbered([0, 999])))) == 1000
    for labels in ([0, 1, 10**9], [20240000, 20240001]):
        with pytest.raises(InputError, match=r"labels up to [\d,]+, of which \d occur"):
            sources.open_dataset(tars(tmp_path, numbered(labels)))
    with pytest.raises(InputError, match="two labels are one number"):
        sources.open_dataset(tars(tmp_path, numbered(["1", "01", "2"])))
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match=r"classes\.txt has 2 names, the labels are up to 1,000,000,000"):
        sources.open_dataset(tars(tmp_path, numbered([0, 1, 10**9])))


def test_labels_of_parquet_that_are_no_classes(tmp_path):
    for split in ("train", "test"):
        images = [{"bytes": png(), "path": None}] * 3
        pq.write_table(
            pa.table({"image": images, "label": [0, 1, 3 * 10**9]}), tmp_path / f"{split}-0.parquet"
        )
    with pytest.raises(InputError, match="labels up to 3,000,000,000, of which 3 occur"):
        sources.open_dataset(f"parquet:{tmp_path}")


def test_files_of_one_example(tmp_path):
    """WebDataset's keys end at the first dot; what follows says what a file is."""
    files = {
        "1.jpg": png(1),
        "1.seg.png": png(2),
        "1.cls": b"cat",
        "2.jpg": png(3),
        "2.seg.png": png(4),
        "2.cls": b"dog",
    }
    dataset = sources.open_dataset(tars(tmp_path, files))
    assert (dataset.splits["train"], dataset.classes) == (2, ("cat", "dog"))
    assert [sources.load("", "train", dataset=dataset)[i]["image"].data for i in (0, 1)] == [png(1), png(3)]
    assert (
        "4 images without a label of their own are left out, such as train-0000.tar/1.seg.png"
        in dataset.notes[0]
    )
    # A name may have dots: its label then has them too.
    files = {"x.1.jpg": png(1), "x.1.cls": b"cat", "x.2.jpg": png(2), "x.2.cls": b"dog"}
    assert labels_of(tars(tmp_path, files)) == [0, 1]
    # The only image of a key is its image whatever it is called.
    files = {"1.image.jpg": png(1), "1.cls": b"cat", "2.image.jpg": png(2), "2.cls": b"dog"}
    assert labels_of(tars(tmp_path, files)) == [0, 1]
    for files, message in (
        ({"1.a.jpg": png(), "1.b.jpg": png(), "1.cls": b"a"}, r"1\.a\.jpg has no label"),
        ({"1.jpg": png(), "1.png": png(), "1.cls": b"a"}, r"1\.jpg and 1\.png have one name"),
        ({"a/1.png": png(), "b/1.png": png(), "a/1.jpg": png()}, r"a/1\.png and a/1\.jpg have one name"),
    ):
        with pytest.raises(InputError, match=message):
            sources.open_dataset(tars(tmp_path, files))


def folder(root, *paths: str) -> str:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(png())
    return f"folder:{root}"


def test_what_class_folders_leave_out_is_said(tmp_path):
    name = folder(tmp_path, *(f"{c}/{i}.png" for c in ("cow", "dog") for i in range(5)))
    assert notes_of(sources.open_dataset(name)) == ()
    folder(
        tmp_path,
        "cat/1.jfif",
        "cat/2.jfif",
        "dog/Thumbs.db",
        "cow/.DS_Store",
        "cow/._1.png",
        "cow/more/1.png",
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "dog" / "x.png").mkdir()
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    dataset = sources.open_dataset(name)
    assert dataset.classes == ("cow", "dog")
    assert [note.removeprefix(f"{name.replace(':', ' ')}: ") for note in dataset.notes] == [
        "class folders without images are left out (2): cat/, empty/",
        "folders inside class folders are left out (2): cow/more/, dog/x.png/",
        "files that are no images are left out (4): 2 .jfif, 1 .db, 1 .png",
    ]
    done = prepare.prepare(name, tmp_path.with_name("records"), num_processes=1)
    assert done.warnings == dataset.notes


def test_links_to_images_that_are_not_there(tmp_path):
    name = folder(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(5)))
    (tmp_path / "a" / "5.png").symlink_to(tmp_path / "b" / "0.png")
    assert sources.open_dataset(name).splits == {"train": 8, "test": 3}
    for i in (6, 7):
        (tmp_path / "a" / f"{i}.png").symlink_to(f"/not/mounted/{i}.png")
    with pytest.raises(
        InputError, match=r"2 image files are links to what is not there, such as .*/a/6\.png"
    ):
        sources.open_dataset(name)
    (tmp_path / "c").symlink_to("/not/mounted/c")  # A class of its own, which would be missing.
    with pytest.raises(InputError, match="/c is a link to what is not there"):
        sources.open_dataset(name)


def test_names_in_other_encodings(tmp_path):
    """A name may be bytes that are no UTF-8, or decomposed letters, as some systems write them."""
    decomposed, composed = unicodedata.normalize("NFD", "café"), "café"
    for split, name in (("train", decomposed), ("test", composed)):
        folder(tmp_path / "d", *(f"{split}/{name}/{i}.png" for i in range(2)), f"{split}/tea/0.png")
    assert classes_of(f"folder:{tmp_path / 'd'}") == (composed, "tea")
    latin, person = os.fsdecode(b"caf\xe9"), os.fsdecode(b"Mu\xf1oz")
    name = folder(tmp_path / "l", *(f"{c}/{person}{i}.png" for c in (latin, "tea") for i in range(5)))
    assert classes_of(name) == (r"caf\xe9", "tea") and class_name(r"caf\xe9") == r"caf\xe9"
    done = prepare.prepare(name, tmp_path / "records", num_processes=1)
    records = sources.open_dataset(f"array_record:{tmp_path / 'records'}")
    assert records.classes == done.class_names == (r"caf\xe9", "tea")
    assert person in records.load("train")[0]["image"].where


def test_files_that_macos_puts_beside_others_are_no_data(tmp_path):
    name = tars(tmp_path, TWO)
    (tmp_path / "._train-0000.tar").write_bytes(b"\0\5\x16\7")
    assert len(labels_of(name)) == 12
    assert len(labels_of(tars(tmp_path, {**TWO, "a/._0.png": b"\0\5\x16\7"}))) == 12


def texts(root, **files: bytes) -> sources.Dataset:
    for path, content in files.items():
        file = root / path.replace("__", "/").replace("_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return sources.open_dataset(f"text:{root}").cut(10)


def contents(dataset, split: str) -> set[int]:
    source = dataset.load(split)
    return {int(byte) for i in range(len(source)) for byte in source[i]["tokens"]}


T, E, O = b"T" * 500, b"E" * 200, b"O" * 100  # noqa: E741


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
def test_texts_with_a_part_for_testing(tmp_path, test):
    for i, files in enumerate(
        (
            {"train__a": T, f"{test}__b": E},
            {"train_txt": T, f"{test}_txt": E},
            {"wiki_train_tokens": T, f"wiki_{test}_tokens": E, "README_md": O},
            {"train__a__b": T, f"{test}__a__b": E, "other__c": O},
        )
    ):
        dataset = texts(tmp_path / str(i), **files)
        assert contents(dataset, "train") == {ord("T")} and contents(dataset, "test") == {ord("E")}, files
        assert bool(dataset.notes) == (O in files.values())


def test_texts_that_do_not_say_which_part_is_for_testing(tmp_path):
    code = texts(tmp_path / "code", train_py=T, test_py=E, model_py=O)
    assert contents(code, "train") == {ord(letter) for letter in "TEO"}
    assert "all files are read as one text, train and test too" in code.notes[0]
    assert texts(tmp_path / "one", a_txt=T, test__b=E).notes == ()
    (tmp_path / "empty" / "test").mkdir(parents=True)
    with pytest.raises(InputError, match=r"the test text of .* is empty"):
        texts(tmp_path / "empty", train__a=T)


def test_a_text_that_becomes_shorter_while_it_is_read(tmp_path):
    dataset = texts(tmp_path, a=T, b=E)
    (tmp_path / "a").write_bytes(b"T")
    with pytest.raises(InputError, match="/a: the file has become shorter"):
        dataset.load("train")[100]


def test_fingerprints_tell_files_apart(tmp_path):
    def found(name: str) -> str:
        info = inspect(name)
        assert info.fingerprint and info == inspect(name)
        return info.fingerprint

    name = folder(tmp_path / "f", *(f"{c}/{i}.png" for c in "ab" for i in range(5)))
    seen = {found(name)}
    (tmp_path / "f" / "a" / "0.png").rename(tmp_path / "f" / "a" / "9.png")
    seen.add(found(name))
    (tmp_path / "f" / "a" / "9.png").write_bytes(png() + b"\0")
    seen.add(found(name))
    assert len(seen) == 3
    (tmp_path / "f").rename(tmp_path / "moved")  # Where it lies is not what it is.
    assert found(f"folder:{tmp_path / 'moved'}") in seen
    first = found(tars(tmp_path / "t", TWO))
    assert found(tars(tmp_path / "t", {**TWO, "a/0.png": png() + b"\0"})) != first
    texts(tmp_path / "x", a=T, b=E)
    first = found(f"text:{tmp_path / 'x'}")
    texts(tmp_path / "x", b=E + E)
    assert found(f"text:{tmp_path / 'x'}") != first
    arrays = {"images": np.zeros((20, 4, 4), np.uint8), "labels": np.arange(20) % 2}
    np.savez(tmp_path / "a.npz", **arrays)
    first = found(f"npz:{tmp_path / 'a.npz'}")
    np.savez(tmp_path / "a.npz", **{**arrays, "images": arrays["images"] + 1})
    assert found(f"npz:{tmp_path / 'a.npz'}") != first
    assert dataclasses.replace(inspect("digits")).fingerprint == ""


def claims(kind: str, width: int, height: int) -> bytes:
    """A small file whose header speaks of a large image."""
    if kind == "png":
        data = png()
        header = data[12:16] + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    data = cv2.imencode(f".{kind}", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    if kind == "bmp":
        return data[:18] + struct.pack("<ii", width, height) + data[26:]
    if kind == "ppm":
        return data.replace(b"8 8", f"{width} {height}".encode())
    at = next(place for place in range(len(data)) if data[place : place + 2] == b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "ppm"])
def test_images_beyond_the_limit_are_refused_by_their_header(kind, monkeypatch):
    assert transforms.decode(claims(kind, 8, 8), "x").shape == (8, 8, 3)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    for width, height in ((20_000, 20_000), (10_001, 10_000)):
        pattern = rf"^x\.{kind}: an image of [\d.]+ megapixels by its header; accepted: at most 100 \(data\.max_megapixels\)"
        with pytest.raises(InputError, match=pattern):
            transforms.decode(claims(kind, width, height), f"x.{kind}")


def test_the_limit_of_an_image_is_a_setting(tmp_path, monkeypatch):
    name = folder(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(5)))
    (tmp_path / "a" / "0.png").write_bytes(claims("png", 20_000, 20_000))
    assert inspect(name).image_size == 8  # One among many is no reason not to look at the others.
    for most, refused in ((transforms.MOST_PIXELS, 1), (63, 10), (400_000_000, 0)):
        source, problems = sources.load(name, "train+test", most_pixels=most), []
        with monkeypatch.context() as patch:
            patch.setattr(cv2, "imdecode", lambda *_: np.zeros((8, 8), np.uint8))
            for i in range(len(source)):
                try:
                    transforms.decode(*source[i]["image"], channels=1)
                except InputError as error:
                    problems.append(str(error))
        assert len(problems) == refused and all("data.max_megapixels" in problem for problem in problems)
    assert transforms.stored_shape(transforms.Encoded(claims("png", 20_000, 20_000), "x")) == (
        20_000,
        20_000,
        3,
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    name = folder(root / "data", *(f"{c}/{i}.png" for c in "ab" for i in range(20)))
    prepare.prepare(name, root / "records", num_processes=1)
    return root / "records"


def _half(file):
    os.truncate(file, file.stat().st_size // 2)


def _flipped(file):
    data = bytearray(file.read_bytes())
    for i in range(len(data) // 2, len(data) // 2 + 300):
        data[i] ^= 0x55
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (os.unlink, r"images-train\.array_record-00000-of-00001 is missing"),
        (_half, r"images-train\.array_record-00000-of-00001 is damaged"),
        (
            _flipped,
            r"array_record:.*, train, example \d+: damaged record .*|array_record-00000-of-00001 is damaged",
        ),
    ],
)
def test_damaged_records_are_named(prepared, tmp_path, harm, message):
    copy = tmp_path / "records"
    shutil.copytree(prepared, copy)
    assert len(labels_of(f"array_record:{copy}")) == 32
    harm(copy / "images-train.array_record-00000-of-00001")
    with pytest.raises(InputError, match=message):
        labels_of(f"array_record:{copy}")
