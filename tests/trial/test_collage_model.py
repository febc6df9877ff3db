"""Tests the small trained model of this repository: size, layout, tokens, autoencoder, and whether it follows prompts.

The tests require fewer correct images than trial/README.md reports, because they only have to detect a broken file or a
broken loader.
"""

from __future__ import annotations

from pathlib import Path

import noise_schedule
import numpy as np
import pytest
import torch
from PIL import Image

from bench.quality.model import judged
from bench.quality.ways import Sampling, Studio
from bench.quality.worlds import COLLAGES
from trial import packing
from trial.small_model import CHECKPOINT, SmallModel, load, text_config
from trial.text import VOCABULARY, TextConfig, tokenize, tokenizer, write_clip_folder

SHEET = Path(__file__).resolve().parents[2] / "pictures" / "collage-64.jpg"
PROMPT = "a bear on grass"


@pytest.fixture(scope="module")
def model() -> SmallModel:
    return load()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Reads eight images (8, 128, 128, 3) of an earlier version of the model from the first row of a contact sheet."""
    sheet = np.asarray(Image.open(SHEET), np.float32) / 255
    return np.stack([sheet[:128, left : left + 128] for left in range(0, 1024, 128)])


def test_the_checkpoint_has_at_most_12_megabytes_and_12_million_weights(model):
    assert CHECKPOINT.stat().st_size <= 12_000_000
    assert sum(parameter.numel() for parameter in model.parameters()) <= 12_000_000


def test_the_unpacked_checkpoint_has_the_layout_of_stable_diffusion_1():
    tensors = packing.load(CHECKPOINT, torch.float16)
    heads = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model.")
    for head in heads:
        part = [t for name, t in tensors.items() if name.startswith(head) and t.is_floating_point()]
        assert part
        assert all(t.dtype == torch.float16 and t.isfinite().all() for t in part)
    rest = {name for name in tensors if not name.startswith(heads)}
    assert {"betas", "alphas_cumprod"} <= rest
    assert all(tensors[name].shape == (1000,) and tensors[name].dtype == torch.float32 for name in rest)
    assert tensors[packing.TOKEN_EMBEDDING].shape == (49408, 32)
    assert not any(name.endswith(packing.SCALE) for name in tensors)


def test_the_model_has_the_noise_schedule_of_stable_diffusion_1(model):
    torch.testing.assert_close(model.alphas_cumprod, noise_schedule.alphas_cumprod())
    # the last value of Stable Diffusion 1 is 0.00466
    assert 0.0046 < float(model.alphas_cumprod[-1]) < 0.0048


def test_prompts_are_tokenized_and_padded():
    assert tokenize(["a cat"])[0, :5].tolist() == [49406, 320, 2368, 49407, 49407]
    assert tokenize(["word " * 100]).shape == (1, 77)
    assert len(tokenizer().encoder) == VOCABULARY


def test_transformers_tokenizes_prompts_in_the_same_way(tmp_path):
    transformers = pytest.importorskip("transformers")
    write_clip_folder(tmp_path, TextConfig())
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(tmp_path))
    for text in (PROMPT, "It's 42 cats, na\u00efve & co!!", ""):
        expected = tokenizer([text], padding="max_length", max_length=77)["input_ids"]
        assert tokenize([text]).tolist() == expected


def test_transformers_computes_the_same_text_embeddings(tmp_path, model):
    transformers = pytest.importorskip("transformers")
    write_clip_folder(tmp_path, text_config(packing.load(CHECKPOINT)))
    reference = transformers.CLIPTextModel(transformers.CLIPTextConfig.from_pretrained(str(tmp_path))).eval()
    names = reference.state_dict().keys()
    state = model.text.state_dict()
    bare = not next(iter(names)).startswith("text_model.")
    reference.load_state_dict({k.removeprefix("text_model.") if bare else k: v for k, v in state.items()}, strict=False)
    with torch.no_grad():
        expected = reference(tokenize([PROMPT])).last_hidden_state
    torch.testing.assert_close(model.encode_prompts([PROMPT]), expected, atol=1e-4, rtol=1e-4)


def test_latents_have_about_unit_variance_and_decode_to_the_image(model, images):
    """Measured: the standard deviation of the latents is 0.93, and the mean PSNR of the decoded images is 29.7 dB."""
    latents = model.encode(torch.from_numpy(images).permute(0, 3, 1, 2) * 2.0 - 1.0)
    assert latents.shape == (8, 4, 16, 16)
    assert 0.7 < float(latents.std()) < 1.3
    decoded = model.decode(latents).permute(0, 2, 3, 1).numpy() / 2 + 0.5
    assert (-10 * np.log10(((decoded - images) ** 2).mean((1, 2, 3)))).mean() >= 22.0


@pytest.mark.parametrize("size", [(16, 16), (19, 13), (14, 17), (20, 18), (5, 1)])
def test_the_unet_accepts_any_size(model, size):
    """The UNet halves the sides of its input twice, but the sides of dilated views are not always multiples of 4.

    For example, they are not at the scale 2.4.
    """
    x = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0))
    context = model.encode_prompts([PROMPT, ""])
    with torch.no_grad():
        out = model.unet(x, torch.tensor([500.0, 500.0]), context)
    assert out.shape == x.shape
    assert out.isfinite().all()


def test_samples_follow_the_prompt(model):
    studio = Studio(model, Sampling(steps=8, bfloat16=False), COLLAGES)
    images = studio.decode(studio.base(list(range(8))))
    assert images.shape == (8, 128, 128, 3)
    assert np.isfinite(images).all()
    found = judged(studio, images)
    # measured: 1.0 for both shares; a random choice would be right for 1 of 10 grounds and 1 of 24 subjects
    assert found["right ground"] >= 0.7
    assert found["right subject"] >= 0.5
