"""Writing array_record: the same examples from every form of a dataset, bad files, kills and resuming."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, environment
from PIL import Image as pillow

from crate_jax import InputError
from crate_jax import prepare as command
from crate_jax.data import inspect, load, prepare, transforms

CLASSES = ("n01440764", "n01443537", "n02084071")


def photograph(seed: int) -> bytes:
    """A JPEG whose colours say which one it is."""
    noise = np.random.default_rng(seed).integers(256, size=(4, 5, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", cv2.resize(noise, (40, 32)))[1].tobytes()


def fill(root: Path, count: int = 4) -> Path:
    """train/WNID/WNID_i.JPEG and val/WNID/ILSVRC2012_val_0000000i.JPEG."""
    number = 0
    for label, wnid in enumerate(CLASSES):
        for i in range(count):
            path = root / "train" / wnid / f"{wnid}_{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photograph(100 * label + i))
        for _ in range(2):
            number += 1
            path = root / "val" / wnid / f"ILSVRC2012_val_{number:08}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photograph(1000 + number))
    return root


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def original_archives(folder: Path, root: Path) -> Path:
    """The three archives of ImageNet from its folders."""
    from scipy.io import savemat

    root.mkdir()
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as train:
        for wnid in CLASSES[::-1]:
            content = io.BytesIO()
            with tarfile.open(fileobj=content, mode="w") as inner:
                for file in sorted((folder / "train" / wnid).iterdir(), reverse=True):
                    add(inner, file.name, file.read_bytes())
            add(train, f"{wnid}.tar", content.getvalue())
    files = sorted((folder / "val").glob("*/*"), key=lambda file: file.name)
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as val:
        for file in files:
            add(val, file.name, file.read_bytes())
    # The development kit numbers the classes in an order of its own.
    ids = {wnid: 3 - i for i, wnid in enumerate(CLASSES)}
    synsets = np.array([(ids[wnid], wnid) for wnid in CLASSES], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O")])
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(f"{ids[file.parent.name]}\n" for file in files)
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as devkit:
        add(devkit, "devkit/data/meta.mat", meta.getvalue())
        add(devkit, "devkit/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())
    return root


def webdataset(folder: Path, root: Path) -> Path:
    root.mkdir()
    for split in ("train", "val"):
        files = sorted((folder / split).glob("*/*"))
        for shard in range(2):
            with tarfile.open(root / f"tiny-{split}-{shard:04}.tar", "w") as archive:
                for file in files[shard::2]:
                    add(archive, f"{file.stem}.cls", str(CLASSES.index(file.parent.name)).encode())
                    add(archive, f"{file.stem}.jpeg", file.read_bytes())
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def parquet(folder: Path, root: Path) -> Path:
    (root / "data").mkdir(parents=True)
    about = {"info": {"features": {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}}}
    for split in ("train", "validation"):
        files = sorted((folder / split.removesuffix("idation")).glob("*/*"))
        images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
        labels = [CLASSES.index(file.parent.name) for file in files]
        table = pa.table({"image": images, "label": labels})
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
        pq.write_table(table, root / "data" / f"{split}-00000-of-00001.parquet", row_group_size=3)
    return root


def everything(name: str, split: str) -> dict[bytes, int]:
    source = load(name, split)
    examples = [source[i] for i in range(len(source))]
    return {example["image"].data: int(example["label"]) for example in examples}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("imagenet"))


@pytest.mark.parametrize("make", [original_archives, webdataset, parquet])
def test_every_form_of_a_dataset_holds_the_same(folder, tmp_path, make):
    kind = "parquet" if make is parquet else "tar"
    name = f"{kind}:{make(folder, tmp_path / 'other')}"
    expected, info = inspect(f"folder:{folder}"), inspect(name)
    assert info.class_names == expected.class_names == CLASSES
    assert info.num_examples == expected.num_examples == {"train": 12, "test": 6}
    assert info.image_size == expected.image_size
    for split in ("train", "test"):
        assert everything(name, split) == everything(f"folder:{folder}", split)


@pytest.mark.parametrize("make", [None, original_archives])
def test_array_record_gives_the_batches_of_what_it_was_made_from(folder, tmp_path, make):
    name = f"folder:{folder}" if make is None else f"tar:{make(folder, tmp_path / 'tars')}"
    done = prepare.prepare(name, tmp_path / "records", num_processes=1, shard_bytes=4000)
    assert done.class_names == CLASSES and done.warnings == ()
    assert {split: (c.found, c.written) for split, c in done.splits.items()}["train"] == (12, 12)
    assert done.splits["train"].shards > 1
    records = f"array_record:{tmp_path / 'records'}"
    assert inspect(records).num_examples == {"train": 12, "test": 6}
    assert inspect(records).class_names == CLASSES
    for split in ("train", "test"):
        # In the same order too: a run is the same from either.
        first, second = (load(n, split, image_size=16, channels=3) for n in (f"folder:{folder}", records))
        for i in range(len(first)):
            np.testing.assert_array_equal(first[i]["image"], second[i]["image"])
            assert first[i]["label"] == second[i]["label"]
    held_out = load(records, "test")
    assert "ILSVRC2012_val_0000000" in held_out[0]["image"].where
    # Nothing is left of the work, and another start only reads.
    assert not list((tmp_path / "records").glob(".*.json")) + list((tmp_path / "records").glob("*tmp*"))
    assert prepare.prepare(name, tmp_path / "records", num_processes=1) == done


def bad_files(root: Path) -> Path:
    """One of each kind of file that ImageNet is known for, and unreadable ones."""
    fill(root)
    place = root / "train" / CLASSES[0]
    pillow.new("CMYK", (40, 32), (0, 255, 255, 0)).save(place / "a_cmyk.JPEG", "JPEG")
    (place / "b_png.JPEG").write_bytes(cv2.imencode(".png", np.full((32, 40, 3), 9, np.uint8))[1].tobytes())
    pillow.new("L", (40, 32), 77).save(place / "c_grey.JPEG", "JPEG")
    whole = photograph(7)
    (place / "d_cut.JPEG").write_bytes(whole[: len(whole) // 2])
    (place / "e_empty.JPEG").write_bytes(b"")
    (place / "f_text.JPEG").write_bytes(b"<html>404</html>" * 50)
    return root


def test_bad_files_are_converted_or_left_out_by_name(tmp_path):
    root = bad_files(tmp_path / "images")
    done = prepare.prepare(f"folder:{root}", tmp_path / "records", num_processes=1)
    counts = done.splits["train"]
    assert (counts.found, counts.written) == (18, 15)
    assert [Path(line.split(": ")[0]).name for line in counts.unreadable] == [
        "d_cut.JPEG",
        "e_empty.JPEG",
        "f_text.JPEG",
    ]
    source = load(f"array_record:{tmp_path / 'records'}", "train", image_size=16, channels=3)
    assert len(source) == 15
    where = [load(f"array_record:{tmp_path / 'records'}", "train")[i]["image"].where for i in range(15)]
    found = {
        name: source[i]["image"][8, 8]
        for i in range(15)
        for name in ("cmyk", "png", "grey")
        if name in where[i]
    }
    np.testing.assert_allclose(found["cmyk"], [255, 0, 0], atol=3)
    assert found["png"].tolist() == [9, 9, 9] and abs(found["grey"].astype(int) - 77).max() <= 1


def test_unreadable_files_can_stop_it(tmp_path):
    root = bad_files(tmp_path / "images")
    with pytest.raises(InputError, match=r"d_cut\.JPEG: unreadable image"):
        prepare.prepare(f"folder:{root}", tmp_path / "records", num_processes=1, stop_at_unreadable=True)
    with pytest.raises(InputError, match="is not finished: start its preparation again"):
        inspect(f"array_record:{tmp_path / 'records'}")


def test_a_failed_preparation_goes_on_and_leaves_no_half_shard(folder, tmp_path, monkeypatch):
    """Stopped after every possible image in turn, it ends in the same shards as one that was never stopped."""
    expected = prepare.prepare(f"folder:{folder}", tmp_path / "whole", num_processes=1, shard_bytes=4000)
    decode, left = transforms.decode, [0]

    def failing(*args, **options):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return decode(*args, **options)

    for stop in range(1, 19):
        output = tmp_path / f"stopped-{stop}"
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            left[0] = stop
            patched.setattr(transforms, "decode", failing)
            prepare.prepare(f"folder:{folder}", output, num_processes=1, shard_bytes=4000)
        for shard in output.glob("images-*"):
            assert shard.read_bytes() == (tmp_path / "whole" / shard.name).read_bytes()
        assert prepare.prepare(f"folder:{folder}", output, num_processes=1, shard_bytes=4000) == expected
        for shard in (tmp_path / "whole").glob("images-*"):
            assert shard.read_bytes() == (output / shard.name).read_bytes()


def test_other_data_or_other_files_are_not_mixed_in(folder, tmp_path):
    output = tmp_path / "records"
    prepare.prepare(f"folder:{folder}", output, num_processes=1)
    other = fill(tmp_path / "other", count=5)
    with pytest.raises(InputError, match=r"was begun for other data \(dataset differ\); give another folder"):
        prepare.prepare(f"folder:{other}", output, num_processes=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="holds other files; accepted: a new or an empty folder"):
        prepare.prepare(f"folder:{folder}", tmp_path / "full", num_processes=1)


def test_the_number_of_images_of_imagenet_is_known():
    names = tuple(f"n{i:08}" for i in range(1000))
    counts = {
        "train": prepare.Counts(1_281_166, 1_281_166, 9, ()),
        "val": prepare.Counts(50_000, 50_000, 1, ()),
    }
    assert prepare._warnings(names, counts) == ("ImageNet-1K has 1,281,167 images in train; found 1,281,166",)


def test_arrays_become_png(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(40, 8, 6), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(40) % 2)
    arrays = f"npz:{tmp_path / 'data.npz'}"
    done = prepare.prepare(arrays, tmp_path / "records", num_processes=1)
    assert done.splits["test"].written == 8
    first, second = (load(name, "test") for name in (arrays, f"array_record:{tmp_path / 'records'}"))
    for i in range(8):
        decoded = transforms.decode(*second[i]["image"])
        np.testing.assert_array_equal(first[i]["image"], decoded)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input=digits"], "--input: white is 16 in digits; accepted: images whose white is 255"),
        (["--input=stdlib"], "--input: stdlib is text, read as it lies; accepted: labelled images"),
        (["--input=npz:x", "--shard_mib=0"], "--shard_mib: found 0.0; accepted: a number above 0"),
        (["--input=npz:x", "--shard_mib=nan"], "--shard_mib: found nan; accepted: a number above 0"),
        (["--input=npz:x", "--processes=0"], "--processes: found 0; accepted: a whole number of at least 1"),
    ],
)
def test_mistakes(flags, message, tmp_path):
    with pytest.raises(InputError) as error:
        command.main(["prepare", f"--output={tmp_path / 'records'}", *flags])
    assert str(error.value) == message
    assert not (tmp_path / "records").exists()


def tar(root: Path, **members: bytes) -> str:
    """A train and a val archive of two classes, and other members in the first one."""
    root.mkdir()
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}.tar", "w") as archive:
            for i in range(2):
                add(archive, f"{i}.cls", str(i).encode())
                add(archive, f"{i}.jpg", photograph(i))
            for name, content in members.items() if split == "train" else ():
                add(archive, name, content)
    return f"tar:{root}"


def test_hidden_members_of_a_tar_are_ignored(tmp_path):
    hidden = {"._0.jpg": b"", "./.2.jpg": b"x", "a/._3.json": b"\xff"}
    assert inspect(tar(tmp_path / "tars", **hidden)).num_examples == {"train": 2, "test": 2}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("2.json", b"[1]", r"train\.tar: 2\.json is no label; accepted: \{\"label\": CLASS\}"),
        ("2.json", b"{", r"train\.tar: 2\.json is no label"),
        ("2.json", b'{"label": true}', r"train\.tar: 2\.json is no label"),
        ("2.json", b'{"label": [1, 2]}', r"train\.tar: 2\.json is no label"),
        ("2.cls", b"\xff\xfe", r"train\.tar: 2\.cls is no label"),
        ("2.json", b'{"label": null}', r"train\.tar: 2\.jpg has no label; accepted: 2\.cls beside it"),
        ("2.json", b"{}", r"train\.tar: 2\.jpg has no label"),
    ],
)
def test_labels_that_are_none_are_named(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        inspect(tar(tmp_path / "tars", **{"2.jpg": photograph(2), name: content}))


@pytest.mark.parametrize("part", [0.02, 0.5])
def test_a_truncated_development_kit_is_one_line(folder, tmp_path, part):
    root = original_archives(folder, tmp_path / "tars")
    devkit = root / "ILSVRC2012_devkit_t12.tar.gz"
    content = devkit.read_bytes()
    devkit.write_bytes(content[: int(part * len(content))])
    with pytest.raises(InputError, match=r"devkit_t12\.tar\.gz cannot be read as ImageNet's development kit"):
        inspect(f"tar:{root}")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            {"train": [0, 1], "validation": [-1, -1]},
            "has labels in the splits: train; accepted: train and one of",
        ),
        ({"train": [], "test": [0, 1]}, "has labels in the splits: test; accepted"),
        ({"train": [0, 1], "validation": [0, 1], "test": [-1, -1]}, None),
        ({"train": [0, 1], "validation": [0, 1], "test": []}, None),
    ],
)
def test_splits_of_parquet_without_labels_are_left_out(tmp_path, labels, message):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split, values in labels.items():
        images = pa.array([{"bytes": photograph(1), "path": "x"}] * len(values), kind)
        table = pa.table({"image": images, "label": pa.array(values, pa.int64())})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    if message is None:
        assert inspect(f"parquet:{tmp_path}").num_examples == {"train": 2, "test": 2}
    else:
        with pytest.raises(InputError, match=message):
            inspect(f"parquet:{tmp_path}")


@pytest.mark.slow
def test_killed_processes_leave_nothing_that_looks_whole(tmp_path):
    """The command is killed at several moments, its processes end by themselves, and it finishes when started again."""
    folder = fill(tmp_path / "images", count=150)
    output = tmp_path / "records"
    command = [sys.executable, "-m", "crate_jax.prepare", f"--input=folder:{folder}", f"--output={output}"]
    command += ["--processes=2", "--shard_mib=0.01"]
    whole = prepare.prepare(f"folder:{folder}", tmp_path / "whole", num_processes=1, shard_bytes=10486)
    for shards in (1, 8):
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while len(list(output.glob("images-*"))) < shards and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with pytest.raises(InputError):
            inspect(f"array_record:{output}")
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "450 of 450 images" in done.stdout
    for shard in (tmp_path / "whole").glob("images-*"):
        assert shard.read_bytes() == (output / shard.name).read_bytes()
    assert whole.splits["train"].written == 450
