"""Tests the color changes of subject and ground, BRISQUE, and the code that runs ESRGAN's models (Keras graphs)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import ndimage, special

from bench.quality import brisque, esrgan, metrics

SIDE = 128


def picture(seed: int = 0) -> np.ndarray:
    """Creates an image (SIDE, SIDE, 3) of blurred noise."""
    noise = np.random.default_rng(seed).normal(0, 1, (SIDE, SIDE, 3))
    smooth = ndimage.gaussian_filter(noise, (3, 3, 0))
    return (0.5 + 0.15 * smooth / smooth.std()).clip(0, 1).astype(np.float32)


def test_the_color_changes_of_subject_and_ground_are_separate() -> None:
    base = picture()
    changed = base.copy()
    y, x = np.mgrid[:SIDE, :SIDE]
    changed[np.hypot(x - 40, y - 80) < 20] += np.array([0.3, 0.0, 0.0], np.float32)
    subject, ground = metrics.color_changes(changed, base, (40 / SIDE, 80 / SIDE))
    # only the red channel changes, by 0.3, so the mean of the three channels changes by 0.1
    assert subject == pytest.approx(0.1, abs=1e-3)
    assert ground == 0.0
    subject, ground = metrics.color_changes(base + 0.05, base, (0.5, 0.5))
    assert (subject, ground) == (pytest.approx(0.05, abs=1e-4),) * 2


@pytest.mark.parametrize("shape", [0.7, 1.0, 2.0, 4.0])
def test_asymmetric_fit_finds_the_shape_of_a_generalised_gaussian(shape) -> None:
    """BRISQUE fits such a distribution to the contrasts of an image. The tolerances allow for the random draws."""
    rng = np.random.default_rng(2)
    # |x|^shape of a generalised Gaussian is Gamma distributed
    draws = rng.gamma(1 / shape, 1.0, 400_000) ** (1 / shape) * rng.choice((-1, 1), 400_000)
    found, mean, left, right = brisque.asymmetric_fit(draws)
    assert found == pytest.approx(shape, rel=0.03)
    assert mean == pytest.approx(0.0, abs=0.02 * draws.std())
    expected = np.sqrt(special.gamma(3 / shape) / special.gamma(1 / shape))
    assert (left, right) == (pytest.approx(expected, rel=0.02),) * 2


def test_brisque_prefers_clean_images() -> None:
    if brisque._model() is None:
        assert brisque.brisque(picture()) is None
        pytest.skip("the package brisque is not installed")
    clean = picture(3)
    noisy = (clean + np.random.default_rng(1).normal(0, 0.2, clean.shape)).clip(0, 1).astype(np.float32)
    assert brisque.brisque(noisy) > brisque.brisque(clean)


def write_model(folder) -> dict[str, np.ndarray]:
    """Writes a Keras graph with random weights that doubles the width and height of an image.

    The files have the layout of the npm package from which bench.quality gets ESRGAN. Returns the weights by name.
    """
    rng = np.random.default_rng(0)
    shapes = {"a/kernel": (3, 3, 3, 4), "a/bias": (4,), "b/kernel": (1, 1, 8, 3), "b/bias": (3,)}
    arrays = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    conv = {"activation": "linear", "strides": [1, 1]}
    layers = [
        ("InputLayer", {"name": "in"}, []),
        ("Conv2D", {"name": "a", **conv}, ["in"]),
        ("Activation", {"name": "r", "activation": "relu"}, ["a"]),
        ("Concatenate", {"name": "c"}, ["a", "r"]),
        ("Conv2D", {"name": "b", **conv}, ["c"]),
        ("Add", {"name": "s"}, ["b", "in"]),
        ("UpSampling2D", {"name": "u", "size": [2, 2], "interpolation": "nearest"}, ["s"]),
    ]
    graph = [
        {
            "class_name": kind,
            "config": config,
            "inbound_nodes": [[[name, 0, 0, {}] for name in inputs]] if inputs else [],
        }
        for kind, config, inputs in layers
    ]
    entries = [{"name": name, "shape": list(array.shape), "dtype": "float32"} for name, array in arrays.items()]
    folder.mkdir()
    (folder / "w.bin").write_bytes(b"".join(array.tobytes() for array in arrays.values()))
    model = {
        "modelTopology": {"model_config": {"config": {"layers": graph}}},
        "weightsManifest": [{"paths": ["w.bin"], "weights": entries}],
    }
    (folder / "model.json").write_text(json.dumps(model), encoding="utf-8")
    return arrays


def test_a_keras_graph_is_interpreted_correctly(tmp_path) -> None:
    arrays = write_model(tmp_path / "x2")
    x = np.random.default_rng(1).random((6, 5, 3)).astype(np.float32)
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1))  # (6, 5, 3, 3, 3)
    a = np.einsum("hwcij,ijco->hwo", windows, arrays["a/kernel"]) + arrays["a/bias"]
    joined = np.concatenate([a, a.clip(0)], -1)
    expected = joined @ arrays["b/kernel"][0, 0] + arrays["b/bias"] + x
    found = esrgan.Graph(tmp_path / "x2")(torch.from_numpy(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, expected.repeat(2, 0).repeat(2, 1), rtol=1e-4, atol=1e-4)


def test_the_errors_name_an_unknown_layer_and_an_unknown_scale(tmp_path) -> None:
    write_model(tmp_path / "x2")
    file = tmp_path / "x2" / "model.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"Add"', '"Minus"'), encoding="utf-8")
    with pytest.raises(ValueError, match="Minus"):
        esrgan.Graph(tmp_path / "x2")(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="not by 5"):
        esrgan.model(5)
