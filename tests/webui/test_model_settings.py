"""Tests DemoFusion together with settings of the webui that change the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from webui.conftest import Webui
from webui.test_api_and_scripts import SMALL, TWICE, options
from webui.test_generate import assert_good, difference

pytestmark = pytest.mark.webui


class TestSettings:
    """Tests that settings of the webui also apply to the stages, and do not change the images of later jobs."""

    def check(self, webui: Webui, acts: bool, **settings: Any) -> None:
        """Compares images with and without the settings. `acts` is whether the settings must change the final image.

        With the settings, the base image must equal the webui's own image. Afterwards, all images must be as before.
        """
        plain, twice = webui.generate(**SMALL), webui.generate(TWICE, **SMALL)
        with options(webui, **settings):
            first = webui.generate({**TWICE, "return_stages": True}, **SMALL)
            assert_good(first, (128, 128), (64, 64))
            assert webui.generate(TWICE, **SMALL).digests[0] == first.digests[0]
            assert first.digests[1] == webui.generate(**SMALL).digests[0]
        assert (first.digests[0] != twice.digests[0]) == acts
        if settings.keys() <= {"sd_vae", "CLIP_stop_at_last_layers", "token_merging_ratio"}:
            # these settings also work as override_settings of a request. After such a request, the webui restores a
            # setting only if its value has been changed before. The call of `options` above has changed it
            assert webui.generate(TWICE, **SMALL, override_settings=settings).digests[0] == first.digests[0]
        assert webui.generate(**SMALL).digests == plain.digests
        assert webui.generate(TWICE, **SMALL).digests == twice.digests

    def test_another_vae(self, webui: Webui) -> None:
        if "other.vae.safetensors" not in [entry["model_name"] for entry in webui.call("sd-vae")]:
            pytest.skip("the webui has no second VAE")
        self.check(webui, True, sd_vae="other.vae.safetensors")

    def test_clip_skip(self, webui: Webui) -> None:
        self.check(webui, True, CLIP_stop_at_last_layers=2)

    def test_token_merging(self, webui: Webui) -> None:
        self.check(webui, True, token_merging_ratio=0.5)

    @pytest.fixture
    def rounded_weights(self, webui: Webui) -> Iterator[None]:
        """Makes the webui round the weights to float16 before the test, and loads the exact weights after the test.

        With or without DemoFusion, the webui rounds the weights when the setting fp8 is switched off
        (modules/sd_models.py, load_model_weights). From then on, the images of a float32 checkpoint differ by up to 1
        of 255 from the earlier images, until a checkpoint of another layout is loaded. `check` compares images from
        before the setting is switched on with images from after it is switched off. The weights must therefore be
        rounded before `check` makes its first image. The fixture also generates an image, because the webui would
        otherwise reuse the cached cond of the last prompt, which was computed with the exact weights.
        """
        with options(webui, fp8_storage="Enable"):
            webui.generate(**SMALL)
        yield
        own = webui.call("options")["sd_model_checkpoint"]
        for other in ("tiny-sdxl.safetensors", own):
            webui.call("options", {"sd_model_checkpoint": other})

    @pytest.mark.usefixtures("rounded_weights")
    @pytest.mark.parametrize("storage", ["Enable", "Disable"])
    def test_fp8_storage(self, webui: Webui, storage: str) -> None:
        self.check(webui, storage == "Enable", fp8_storage=storage)

    def test_upcast_attention(self, webui: Webui) -> None:
        self.check(webui, False, upcast_attn=True)

    @pytest.mark.parametrize("way", ["sdp - scaled dot product", "sub-quadratic", "Doggettx", "V1", "None"])
    def test_attention(self, webui: Webui, way: str) -> None:
        usual = webui.generate(TWICE, **SMALL)
        with options(webui, cross_attention_optimization=way):
            assert difference(webui.generate(TWICE, **SMALL).images[0], usual.images[0]) <= 1
        assert webui.generate(TWICE, **SMALL).digests == usual.digests
