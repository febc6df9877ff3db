"""A test extension with step caches, for Forge and Forge Neo. A step cache reuses a prediction of an earlier call.

Words in the prompt control the extension. CACHEWRAPPER enables a cache that wraps the model, as Spectrum does.
CACHEFORWARD enables a cache that replaces the forward of the transformer, as First Block Cache and TeaCache do. MARKER
enables no cache. It only writes the infotext entry of Anima TeaCache.

Nunchaku's transformers do not load on a CPU. When Forge Neo loads such a transformer, it sets `dynamic_args.nunchaku`
(backend/loader.py:888 in version 2.26). A route of this test extension sets the same attribute.
"""

from contextlib import suppress

from modules import script_callbacks, scripts, shared

with suppress(ImportError):
    from backend.args import dynamic_args


class Cache:
    """Holds one prediction. `predicted` returns it in place of every new prediction with the same shape."""

    kept = None


def predicted(own, *args, **kwargs):
    """Calls `own`. Returns the cached prediction if both have the same shape. Otherwise, caches the new one."""
    made = own(*args, **kwargs)
    if Cache.kept is None or Cache.kept.shape != made.shape:
        Cache.kept = made
    return Cache.kept


def wrapping(apply_model, given):
    """Calls the model through the cache. The webui's `set_model_unet_function_wrapper` gets this function."""
    Cache.kept = predicted(apply_model, given["input"], given["timestep"], **given["c"])
    return Cache.kept


class StepCache(scripts.Script):
    """Reads the words in the prompt: CACHEFORWARD before a job, CACHEWRAPPER and MARKER before each sampling."""

    replaced = None

    def title(self):
        return "DemoFusion test: step caches"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process(self, p, *args):
        Cache.kept = None
        if "CACHEFORWARD" in p.prompt:
            kind = type(shared.sd_model.forge_objects.unet.model.diffusion_model)
            own = kind.forward

            def forward(self, *args, **kwargs):
                Cache.kept = predicted(own, self, *args, **kwargs)
                return Cache.kept

            kind.forward, self.replaced = forward, (kind, own)

    def process_before_every_sampling(self, p, *args, **kwargs):
        if "CACHEWRAPPER" in p.prompt:
            unet = p.sd_model.forge_objects.unet.clone()
            unet.set_model_unet_function_wrapper(wrapping)
            p.sd_model.forge_objects.unet = unet
        if "MARKER" in p.prompt:
            p.extra_generation_params["Anima TeaCache thresh"] = 0.05

    def postprocess(self, p, processed, *args):
        if self.replaced is not None:
            kind, own = self.replaced
            kind.forward, self.replaced = own, None


def mark_as_nunchaku(on: bool):
    """Sets whether the webui treats the loaded model as a model of Nunchaku."""
    dynamic_args.nunchaku = on


def add_routes(demo, app):
    app.add_api_route("/demofusion-test/nunchaku", mark_as_nunchaku, methods=["GET"])


if "dynamic_args" in globals():
    script_callbacks.on_app_started(add_routes)
