"""Tests jobs with extensions that patch the model's layers. Some of these patches count the batch rows of a call.

The tests write small extensions to a folder. These extensions imitate NegPiP, Composable LoRA, Smoothed Energy
Guidance, DeepCache and caches of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from in_process import BASE, Webui, sizes
from modules import paths_internal, scripts, shared
from modules.sd_samplers_cfg_denoiser import CFGDenoiser
from reports import Reports
from torch import Tensor, nn

from lib_demofusion.host.integrations import layer_patches

ON = {"enabled": True, "scale": 2}


class CrossAttention(nn.Module):
    """A cross-attention layer. The queries are cells of the latent. The keys and values come from the prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, 4) for width in (4, 8, 8))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.to_q(x), self.to_k(context), self.to_v(context))


class Unet(nn.Module):
    """A model with an attention layer. Predicts the noise in x (N, 4, h, w) at timesteps (N,)."""

    def __init__(self, alphas: Tensor) -> None:
        super().__init__()
        self.look = nn.Conv2d(4, 4, 3, padding=1)
        self.attn2 = CrossAttention()
        self.alphas = alphas

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        alpha = self.alphas[t.long().clamp(0, 999)].float()[:, None, None, None]
        seen = self.attn2(x.flatten(2).transpose(1, 2), context).transpose(1, 2).reshape(x.shape)
        target = torch.tanh(self.look(x) + 3 * seen)
        return (x - alpha.sqrt() * target) / (1 - alpha).sqrt()


@pytest.fixture
def unet(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> Unet:
    """Makes the stand-in use a model with an attention layer. Returns the model."""
    webui.job()
    torch.manual_seed(0)
    made = Unet(webui.small.alphas_cumprod).requires_grad_(False)
    monkeypatch.setattr(shared.sd_model.model, "diffusion_model", made, raising=False)
    monkeypatch.setattr(webui.small, "unet", lambda x, t, context: made(x, t, context), raising=False)
    return made


Install = Callable[[str, str], Any]


@pytest.fixture
def extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Returns a function that installs an extension and loads its script.

    The arguments of the function are the name of the extension's folder and the source code of the script. The script
    defines `patch(unet, batch)`, in which `batch` is the number of images.
    """
    monkeypatch.setattr(paths_internal, "extensions_dir", str(tmp_path / "extensions"), raising=False)
    forward = nn.Linear.forward

    def install(name: str, source: str) -> Any:
        file = tmp_path / "extensions" / name / "scripts" / "patch.py"
        file.parent.mkdir(parents=True)
        file.write_text("import functools\nimport torch\n" + source)
        return scripts.load_module(file)

    yield install
    nn.Linear.forward = forward  # type: ignore[method-assign]


NEGPIP = """
def patch(unet, batch):
    plain = unet.attn2.forward

    def forward(x, context):
        if len(x) != 2 * batch:
            return plain(x, context)
        positive = plain(x[:batch], context[:batch] * 2)
        return torch.cat([positive, plain(x[batch:], context[batch:])])

    unet.attn2.forward = forward
"""
COMPOSABLE = """
def patch(unet, batch):
    plain = torch.nn.Linear.forward

    def forward(self, x):
        made = plain(self, x)
        if len(x) == 2 * batch:
            made[:batch] *= 2
        return made

    torch.nn.Linear.forward = forward
"""
ENERGY = """
def smooth(strength, module, args, output):
    other, q = output.chunk(2)
    return torch.cat([other, q * (1 - strength) + q.mean(1, keepdim=True) * strength])

def patch(unet, batch):
    unet.attn2.to_q.register_forward_hook(functools.partial(smooth, 0.9))
"""
COUNTERS = {"sd-webui-negpip": NEGPIP, "composable-lora": COMPOSABLE, "sd-webui-incantations": ENERGY}
"""Source code of the extensions that count the batch rows of a call, by the names of their folders."""


def images(webui: Webui, settings: dict[str, Any], **job: Any) -> list[bytes]:
    """Runs a job with one stage. Returns the pixels of each final image."""
    result = webui.job({**ON, **settings}, **job)
    assert set(sizes(result)) == {2 * BASE}
    return [image.tobytes() for image in result.images]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", COUNTERS)
def test_an_extension_that_counts_rows_gets_one_view_at_a_time(
    webui: Webui, unet: Unet, extension: Install, reported: Reports, name: str, batch: int
) -> None:
    """A call with two rows per image must have the cond and the uncond of one view, as in the webui's own calls.

    With a view batch of 5, the image is therefore the same as with a view batch of 1.
    """
    plain = images(webui, {"view_batch": 1}, batch_size=batch)
    extension(name, COUNTERS[name]).patch(unet, batch)
    patched = images(webui, {"view_batch": 1}, batch_size=batch)
    assert patched != plain
    assert not reported.notes[-1]
    assert images(webui, {"view_batch": 5}, batch_size=batch) == patched
    note = f"evaluating single tiles, which is slower, because the model is changed by {name}"
    assert note in reported.notes[-1]


def test_an_extension_that_counts_rows_gets_cond_and_uncond_in_one_call_if_memory_runs_out(
    webui: Webui, unet: Unet, extension: Install, reported: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    extension("sd-webui-negpip", NEGPIP).patch(unet, 1)
    plain, rows = unet.look.forward, []

    def failing(x: Tensor) -> Tensor:
        rows.append(len(x))
        if (shared.state.textinfo or "").startswith("DemoFusion"):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return plain(x)

    monkeypatch.setattr(unet.look, "forward", failing)
    reported.expect("CUDA out of memory")
    assert sizes(webui.job({**ON, "view_batch": 5})) == [BASE]
    assert set(rows) == {2}


def test_patches_by_the_webui_do_not_limit_the_batches(
    webui: Webui, unet: Unet, extension: Install, reported: Reports
) -> None:
    """The webui patches layers for token merging and hypertile. The code of these patches is not in an extension."""
    rows = []
    plain = unet.attn2.forward

    def forward(x: Tensor, context: Tensor) -> Tensor:
        rows.append(len(x))
        return plain(x, context)

    unet.attn2.forward = forward  # type: ignore[method-assign]
    images(webui, {"view_batch": 5})
    # five views, each with a cond and an uncond
    assert max(rows) == 10
    assert not reported.notes[-1]


def test_patches_by_controlnet_and_by_demofusion_are_ignored(
    webui: Webui, unet: Unet, extension: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = extension("sd-webui-controlnet", NEGPIP)
    module.patch(unet, 1)
    p: Any = type("Request", (), {"sd_model": shared.sd_model, "scripts": None})
    assert layer_patches.extensions_with_patches(p) == ["sd-webui-controlnet"]
    script = type("Script", (), {"filename": module.__file__})
    monkeypatch.setattr(layer_patches.controlnet, "extension_script", lambda p: script)
    assert layer_patches.extensions_with_patches(p) == []
    monkeypatch.undo()
    monkeypatch.setattr(shared.sd_model.model, "diffusion_model", unet, raising=False)
    extensions = Path(module.__file__).parents[2]
    monkeypatch.setattr(paths_internal, "extensions_dir", str(extensions), raising=False)
    monkeypatch.setattr(layer_patches, "OWN_FOLDER", extensions / "sd-webui-controlnet")
    assert layer_patches.extensions_with_patches(p) == []


def one_after_the_other(self: Any, x: Tensor, sigma: Tensor, uncond: Tensor, cond: Tensor, **rest: Any) -> Tensor:
    """Calls the model separately for cond and uncond, as the webui does for prompts of different lengths."""
    image = rest["image_cond"]
    with_cond, without_cond = (
        self.inner_model(x, sigma, cond={"c_crossattn": [c], "c_concat": [image]}) for c in (cond, uncond)
    )
    self.step += 1
    return without_cond + (with_cond - without_cond) * rest["cond_scale"]


def test_negpip_is_refused_if_cond_and_uncond_are_separate_calls(
    webui: Webui, unet: Unet, extension: Install, reported: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NegPiP counts separate calls to distinguish cond and uncond, but a stage makes more calls than NegPiP expects.

    The entry "NegPiP Active" in the infotext shows that NegPiP is used. Without it, the job is not refused.
    """
    extension("sd-webui-negpip", NEGPIP).patch(unet, 1)
    monkeypatch.setattr(CFGDenoiser, "forward", one_after_the_other)
    assert sizes(webui.job(ON)) == [2 * BASE]
    reported.expect("NegPiP needs the prompt and the negative prompt in one call of the model: use a CFG scale above 1")
    result = webui.job(ON, extra_generation_params={"NegPiP Active": True})
    assert sizes(result) == [BASE]


CACHE = """
def patch(unet, batch):
    plain, kept = unet.forward, []

    def hijacked_unet_forward(*args):
        kept.append(plain(*args))
        return kept[0] if kept[0].shape == kept[-1].shape else kept[-1]

    unet.forward = hijacked_unet_forward
"""
"""Source code that replaces the forward of the model by a function with a cache, like DeepCache."""


def test_a_cache_of_layers_is_refused(webui: Webui, unet: Unet, extension: Install, reported: Reports) -> None:
    extension("sd-webui-deepcache-standalone", CACHE).patch(unet, 1)
    reported.expect("DemoFusion does not work with DeepCache: it would use the layers of one tile for another tile")
    assert sizes(webui.job(ON)) == [BASE]


STEP_CACHE = """
class Cache:
    kept = None

def patch(unet, batch):
    plain = type(unet).%s

    def %s(self, *args):
        made = plain(self, *args)
        if Cache.kept is not None and Cache.kept.shape == made.shape:
            return Cache.kept
        Cache.kept = made
        return made

    type(unet).%s = %s
"""
"""Source code that replaces a method of the model's class by a method with a cache, like TeaCache for Forge."""

HALVED = """
def patch(unet, batch):
    plain = unet.forward
    unet.forward = lambda *args: plain(*args) * 0.5
"""
"""Source code that halves the output of the model. It keeps no data between calls."""


class Flux(Unet):
    """A model whose `forward` calls `inner_forward`, like the `forward` of Flux in Forge."""

    def inner_forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return Unet.forward(self, x, t, context)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.inner_forward(x, t, context)


@pytest.mark.parametrize("method", ["forward", "inner_forward"])
def test_a_cache_of_steps_is_refused(
    webui: Webui, unet: Unet, extension: Install, reported: Reports, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A cache of steps would return the prediction for one tile when the stage evaluates another tile."""
    own = type("Patched", (Flux,), {})
    monkeypatch.setattr(unet, "__class__", own)
    extension("sd-forge-blockcache", STEP_CACHE % (4 * (method,))).patch(unet, 1)
    reported.expect("DemoFusion does not work with sd-forge-blockcache: it computes a step from earlier steps")
    assert sizes(webui.job(ON)) == [BASE]


def test_an_extension_that_keeps_no_data_may_replace_the_forward_of_the_model(
    webui: Webui, unet: Unet, extension: Install, reported: Reports
) -> None:
    extension("sd-webui-halved", HALVED).patch(unet, 1)
    images(webui, {"view_batch": 5})
    assert "the model is changed by sd-webui-halved" in reported.notes[-1]
