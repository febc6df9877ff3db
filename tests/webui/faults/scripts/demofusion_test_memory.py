"""A test extension for Forge's family that reports memory estimates of the model, and makes the webui decode in tiles.

The webui reserves as much memory as it estimates for a model call. The extension reads this in each guidance call.
"""

from contextlib import suppress

from modules import script_callbacks, shared

with suppress(ImportError):
    from backend import memory_management

seen = []


def note(params):
    unet = shared.sd_model.forge_objects.unet
    seen.append([params.x.shape[-1], float(unet.memory_required(list(params.x.shape)))])


def told():
    """Returns the records since the last request: each latent's width and the estimate in bytes."""
    found = list(seen)
    seen.clear()
    return found


def decode_in_tiles(on: bool):
    """Turns the webui's tiled decoding on or off, as its "Never OOM" or its start flag does."""
    memory_management.VAE_ALWAYS_TILED = on


def add_routes(demo, app):
    app.add_api_route("/demofusion-test/memory", told, methods=["GET"])
    app.add_api_route("/demofusion-test/tiles", decode_in_tiles, methods=["GET"])


if "memory_management" in globals():
    script_callbacks.on_cfg_denoiser(note)
    script_callbacks.on_app_started(add_routes)
