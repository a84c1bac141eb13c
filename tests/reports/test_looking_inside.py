"""The sections that look inside a model, made of an old run of each family; a folder of images in place of its own."""

import dataclasses
import functools
import tarfile

import cv2
import jax
import numpy as np
import pytest
from conftest import ROOT, slow_but

from crate_jax import InputError
from crate_jax.reports import atoms, attention, segmentation, subspaces
from crate_jax.reports.base import TrainedRun
from crate_jax.reports.looking import stride_for
from crate_jax.reports.writing import chosen
from crate_jax.training.opening import open_run

OTHERS = ("vit", "crate_alpha", "tost", "masked_autoencoder")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A function from the name of an old run to the run."""

    @functools.cache
    def open_old(name):
        folder = tmp_path_factory.mktemp(name)
        with tarfile.open(ROOT / "tests" / "fixtures" / "runs" / f"{name}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        return TrainedRun(*open_run(folder / "run"), [])

    return open_old


@pytest.fixture(params=slow_but(("crate", *OTHERS), "crate"))
def trained(request, opened):
    return opened(request.param)


def pictures(result):
    """Every figure of a section, decoded."""
    found = [*result.figures, *(figure for gallery in result.galleries for figure in gallery.figures)]
    for gallery in result.galleries:
        assert len(gallery.figures) == np.prod([len(values) for values in gallery.axes.values()])
    for figure in found:
        assert figure.alt
        if figure.file.endswith(".png"):
            yield cv2.imdecode(np.frombuffer(figure.image, np.uint8), cv2.IMREAD_COLOR)
        else:
            assert figure.image.startswith(b"<?xml")


def test_each_section_says_what_it_shows_or_does_not_apply(trained):
    family = trained.run.config.model.family
    with jax.set_mesh(trained.run.mesh):
        made = {
            each.__name__.split(".")[-1]: each.make(trained)
            for each in (attention, segmentation, subspaces, atoms)
        }
    applies = {name for name, result in made.items() if result is not None}
    expected = {
        "crate": {"attention", "segmentation", "subspaces", "atoms"},
        "vit": {"attention", "segmentation", "atoms"},
        "crate_alpha": {"attention", "segmentation", "subspaces", "atoms"},
        "tost": {"segmentation"},
        "crate_mae": {"attention", "segmentation", "subspaces"},
    }
    assert applies == expected[family]
    for result in filter(None, made.values()):
        assert "{" not in result.text
        for picture in pictures(result):
            assert min(picture.shape[:2]) > 100 and picture.std() > 0
        for table in result.tables:
            assert {len(row) for row in table.rows} == {len(table.columns)}
    depth = trained.run.config.model.depth
    assert (
        len(made["segmentation"].tables[0].rows)
        == segmentation.IMAGES
        == len(made["segmentation"].values["images"])
    )
    if "subspaces" in applies:
        values = made["subspaces"].values
        assert np.shape(values["energy"])[0] == depth == len(values["coherence"])
    if "atoms" in applies:
        assert np.shape(made["atoms"].values["heads"]["change"]) == (depth, trained.run.config.model.heads)
        assert ("atoms" in made["atoms"].values) == (family != "vit")


@pytest.mark.slow
def test_images_of_a_folder_have_no_classes(opened, tmp_path):
    trained = opened("crate")
    rng = np.random.default_rng(0)
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), rng.integers(0, 256, (20, 20, 3)).astype(np.uint8))
    looked = dataclasses.replace(trained, images=tmp_path)
    with jax.set_mesh(trained.run.mesh):
        result = atoms.make(looked)
    assert {row[1] for row in result.tables[1].rows} == {"–"}
    assert f"images of {tmp_path}" in result.text


def test_coarse_grids_are_refined():
    from crate_jax import models

    def stride(size, patch):
        return stride_for(models.CRATEConfig(image_size=size, patch_size=patch))

    assert [stride(8, 4), stride(32, 4), stride(224, 16), stride(28, 7)] == [1, 1, 8, 7]


def test_unknown_sections_are_one_line():
    assert chosen("atoms, loss") == ["atoms", "loss"] and "attention" in chosen(None)
    with pytest.raises(InputError, match="--sections: found 'atom'; accepted: "):
        chosen("atom")


def test_of_a_large_model_less_is_looked_at(opened, monkeypatch):
    from crate_jax.reports import looking

    trained = opened("crate")
    cost = 2 * trained.run.model.num_params * trained.run.config.model.sequence_length
    monkeypatch.setitem(looking.BUDGET, "cpu", 10.0 * cost)
    assert looking.affordable(trained, 64) == 10 and looking.affordable(trained, 8) == 8
    assert looking.affordable(trained, 64, passes=5) == 4 == looking.affordable(trained, 64, passes=3)
    source, first = atoms._ablated(trained)
    assert len(source) == 4 and first == trained.run.config.model.depth - 1
    monkeypatch.setitem(looking.BUDGET, "cpu", 1e12)
    assert len(atoms._ablated(trained)[0]) == atoms.ABLATED and atoms._ablated(trained)[1] == 0
