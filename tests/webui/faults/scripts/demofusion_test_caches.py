"""A test extension for Forge's family with step caches, which reuse the prediction of an earlier model call.

The prompt controls them. CACHEWRAPPER wraps the model, as Spectrum does. CACHEFORWARD replaces the transformer's
forward, as First Block Cache and TeaCache do. MARKER writes the infotext of Anima TeaCache, which leaves its
replacement in place when it is off.

Nunchaku's transformers do not load on a CPU. A route sets the mark that Forge Neo gives them when it loads one
(backend/loader.py:888 in version 2.26, `dynamic_args.nunchaku`).
"""

from contextlib import suppress

from modules import script_callbacks, scripts, shared

with suppress(ImportError):
    from backend.args import dynamic_args


class Cache:
    """Returns the first prediction of a shape for every later call with the same shape."""

    kept = None


def predicted(own, *args, **kwargs):
    made = own(*args, **kwargs)
    if Cache.kept is None or Cache.kept.shape != made.shape:
        Cache.kept = made
    return Cache.kept


def wrapping(apply_model, given):
    Cache.kept = predicted(apply_model, given["input"], given["timestep"], **given["c"])
    return Cache.kept


class StepCache(scripts.Script):
    """Patches the model before a job or before each sampling."""

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
    dynamic_args.nunchaku = on


def add_routes(demo, app):
    app.add_api_route("/demofusion-test/nunchaku", mark_as_nunchaku, methods=["GET"])


if "dynamic_args" in globals():
    script_callbacks.on_app_started(add_routes)
