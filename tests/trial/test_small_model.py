"""Tests the trained checkpoint: size, layout, reconstruction and a few samples."""

from __future__ import annotations

import pytest
import torch
import yaml
from safetensors import safe_open

from trial.export import CLIP_FOLDER, configuration
from trial.measure import held_out_views, judge, psnr, reconstruct, sample
from trial.sampling import GUIDANCE
from trial.schedule import alphas_cumprod
from trial.small_model import CHECKPOINT, why_missing
from trial.text import tokenize, vocabulary, write_clip_folder

MEGABYTE = 1_000_000
PROMPT = "a red circle on green ground"


MISSING = why_missing()
needs_checkpoint = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture(scope="module")
def tensors(small_model):
    with safe_open(str(CHECKPOINT), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


@needs_checkpoint
def test_size():
    assert CHECKPOINT.stat().st_size <= 25 * MEGABYTE


def test_layout(tensors):
    heads = {"model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."}
    for head in heads:
        part = [t for name, t in tensors.items() if name.startswith(head) and t.is_floating_point()]
        assert part
        assert all(t.dtype == torch.float16 and t.isfinite().all() for t in part)
    rest = {name for name in tensors if not name.startswith(tuple(heads))}
    assert {"betas", "alphas_cumprod"} <= rest
    assert all(tensors[name].shape == (1000,) and tensors[name].dtype == torch.float32 for name in rest)
    assert tensors["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"].shape[0] == 49408


def test_yaml_is_the_exported_configuration():
    saved = yaml.safe_load(CHECKPOINT.with_suffix(".yaml").read_text(encoding="utf-8"))
    assert saved == configuration()
    assert saved["model"]["params"]["cond_stage_config"]["params"]["version"] == CLIP_FOLDER


def test_schedule(small_model):
    torch.testing.assert_close(small_model.alphas_cumprod, alphas_cumprod().float())
    assert 0.0046 < float(small_model.alphas_cumprod[-1]) < 0.0048


def test_tokens():
    assert tokenize(["a cat"])[0, :5].tolist() == [49406, 320, 2368, 49407, 49407]
    assert tokenize(["word " * 100]).shape == (1, 77)
    assert len(vocabulary()) == 49408


def test_clip_folder_agrees_with_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    write_clip_folder(tmp_path)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(tmp_path))
    for text in ("a red circle on green ground", "It's 42 cats, na\u00efve & co!!", ""):
        expected = tokenizer([text], padding="max_length", max_length=77)["input_ids"]
        assert tokenize([text]).tolist() == expected


def test_text_encoder_agrees_with_transformers(tmp_path, small_model):
    transformers = pytest.importorskip("transformers")
    write_clip_folder(tmp_path)
    reference = transformers.CLIPTextModel(transformers.CLIPTextConfig.from_pretrained(str(tmp_path))).eval()
    names = reference.state_dict().keys()
    state = small_model.text.state_dict()
    bare = not next(iter(names)).startswith("text_model.")
    reference.load_state_dict({k.removeprefix("text_model.") if bare else k: v for k, v in state.items()}, strict=False)
    with torch.no_grad():
        expected = reference(tokenize([PROMPT])).last_hidden_state
    torch.testing.assert_close(small_model.encode_prompts([PROMPT]), expected, atol=1e-4, rtol=1e-4)


def test_latents_are_unit_scale(small_model):
    views = torch.from_numpy(held_out_views(8)).permute(0, 3, 1, 2) * 2.0 - 1.0
    latents = small_model.encode(views)
    assert latents.shape == (8, 4, 16, 16)
    assert 0.7 < float(latents.std()) < 1.3


def test_reconstruction(small_model):
    views = held_out_views(8)
    assert psnr(reconstruct(small_model, views), views).mean() >= 28.0


@pytest.mark.parametrize("size", [(16, 16), (19, 13), (14, 17), (20, 18), (5, 1)])
def test_the_unet_takes_any_size(small_model, size):
    """Dilated views at a scale such as 2.4 have sides that are not multiples of four."""
    x = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0))
    context = small_model.encode_prompts([PROMPT, ""])
    with torch.no_grad():
        out = small_model.unet(x, torch.tensor([500.0, 500.0]), context)
    assert out.shape == x.shape
    assert out.isfinite().all()


def test_samples_follow_the_prompt(small_model):
    result = judge(*sample(small_model, 16, 1, 20, GUIDANCE))
    assert result["exactly_one"] >= 0.8
    assert result["all_three"] >= 0.75
