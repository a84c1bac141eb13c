"""Alignment of many models: known representations, the null of the maximum, trends, and what is written."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import load_config

from crate_jax.alignment import mutual_knn
from crate_jax.analysis import convergence
from crate_jax.analysis.convergence import Network

N = 60


def cloud(seed, d=6):
    return np.random.default_rng(seed).standard_normal((N, d)).astype(np.float32)


def turned(x, seed):
    return x @ np.linalg.qr(np.random.default_rng(seed).standard_normal((x.shape[1],) * 2))[0].astype(
        np.float32
    )


def networks():
    """Two families that hold one representation, turned, in some layer, and one that holds another."""
    shared = cloud(0)
    return [
        Network("crate", np.stack([shared, cloud(1)]), {"digits": 0.9, "letters": 0.7}),
        Network("vit", np.stack([cloud(2), cloud(3), turned(shared, 0)]), {"digits": 0.8, "letters": 0.6}),
        Network("igpt", np.stack([cloud(4), cloud(5)]), {"digits": 0.5, "letters": 0.3}),
    ]


@pytest.fixture(scope="module")
def tables():
    return convergence._tables(convergence.MEASURES["mutual_knn"], networks(), lambda _: None, 20)


def test_the_best_two_layers_are_found(tables):
    scores, null = tables
    np.testing.assert_allclose(scores, scores.T)
    assert scores[0, 1] == pytest.approx(1)
    # The maximum over six pairs of layers, one by one.
    first, third = networks()[1], networks()[2]
    by_hand = max(float(mutual_knn(a, b)) for a in first.features for b in third.features)
    assert scores[1, 2] == pytest.approx(by_hand, abs=1e-6)
    # Shuffled, the maximum over pairs of layers lies above the mean of one pair, k/(n - 1), and below what is shared.
    assert convergence.K / (N - 1) < null[0, 1] < 0.35
    np.testing.assert_allclose(null, null.T)


def test_a_models_alignment_is_its_mean_over_other_families(tables):
    scores, _ = tables
    families = ["crate", "crate", "igpt"]
    assert convergence._across(scores, families, 0) == scores[0, 2]
    assert convergence._across(scores, families, 2) == pytest.approx(scores[2, :2].mean())
    assert np.isnan(convergence._across(scores, ["vit"] * 3, 0))
    # A family counts once, however many models it has.
    table = np.array([[1.0, 0.2, 0.4, 0.9], *np.zeros((3, 4))])
    assert convergence._across(table, ["crate", "vit", "vit", "igpt"], 0) == pytest.approx((0.3 + 0.9) / 2)


def rows(count=6):
    """Models whose alignment grows with their accuracy."""

    def of(x):
        return {"mutual_knn": x, "cka": x}

    return [
        convergence.Row(
            name=f"run-{i}",
            family=("crate", "vit", "igpt")[i % 3],
            num_params=100 - i,
            probe={"digits": 0.5 + 0.05 * i, "letters": 0.4 - 0.05 * i},
            aligned=of(0.2 + 0.01 * i),
            untrained=of(0.1),
            shuffled=of(0.03),
            pixels=0.4,
            pixels_untrained=0.3,
            scores=[0.2] * count,
            curve=[(30, 0.5, 0.4, 0.3), (60, 0.4, 0.3, 0.2)] if i < 3 else [],
        )
        for i in range(count)
    ]


def test_trends_of_models_in_order():
    found = convergence.trends(rows())
    assert found["probe on digits"]["rho"] == pytest.approx(1)
    # One order of six models in 720 is as good.
    assert found["probe on digits"]["p"] == pytest.approx(1 / 720, abs=2e-3)
    for name in ("probe on letters", "parameters"):
        assert found[name]["rho"] == pytest.approx(-1)
        assert found[name]["p"] == pytest.approx(1)
    assert found["likeness to the pixels"]["rho"] == 0  # The same for all.


def test_curves_are_of_the_largest_models(monkeypatch):
    monkeypatch.setattr(convergence, "SIZES", (20, 40, 10**6))
    monkeypatch.setattr(convergence, "PERMUTATIONS", 5)
    those = [dataclasses.replace(each, features=each.features[-2:]) for each in networks()]
    those[0] = networks()[0]  # All of two layers: one shape compiles.
    small = dataclasses.replace(those[0], features=those[0].features[::-1])
    curves = convergence._curves([small, *those], [small, *those], [1, 2, 2, 2])
    assert sorted(curves) == [1, 2, 3]
    assert [n for n, *_ in curves[1]] == [20, 40]
    for _, trained, untrained, shuffled in curves[1]:
        assert trained == untrained > shuffled  # One of its two partners holds the same representation.


def test_what_is_written(tmp_path):
    picture = convergence.write(rows(), tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "convergence.json").read_text())
    assert found["trends"]["probe on digits"]["rho"] == pytest.approx(1)
    assert [len(row.cells()) for row in rows()] == [len(convergence.HEADERS)] * 6
    assert found["rows"][0]["curve"] == [[30, 0.5, 0.4, 0.3], [60, 0.4, 0.3, 0.2]]


@pytest.mark.slow
def test_trained_models_are_read_from_their_folders(tmp_path):
    from crate_jax.train import train

    changes = {"total_steps": 40, "checkpoint_steps": 40}
    for name in ("crate-16x2-0", "vit-16x2-1"):
        train(
            load_config(changes, "configs/alignment.py", f"convergence/{name}"),
            tmp_path / name,
            set(changes),
            sections="loss",
        )
    found = convergence.read(tmp_path, ["crate-16x2-0", "vit-16x2-1", "vit-16x2-0"])
    assert [row.name for row in found] == ["crate-16x2-0", "vit-16x2-1"]
    for row in found:
        assert list(row.probe) == ["digits", "letters"]
        assert 0.1 < row.probe["digits"] <= 1
        assert row.aligned["mutual_knn"] > 2 * row.shuffled["mutual_knn"] > 0.03
    assert found[0].aligned["mutual_knn"] == found[1].aligned["mutual_knn"]
