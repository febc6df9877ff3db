"""A test extension for Forge's family that reports memory estimates of the model, and makes the webui decode in tiles.

The estimate is what the webui reserves for a model call. It is read in every call of the guidance.
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
    """Returns the records since the last call: the width of the latent, and the estimate in bytes."""
    found = list(seen)
    seen.clear()
    return found


def decode_in_tiles(on: bool):
    """Does the same as the webui's "Never OOM" or its flag."""
    memory_management.VAE_ALWAYS_TILED = on


def add_routes(demo, app):
    app.add_api_route("/demofusion-test/memory", told, methods=["GET"])
    app.add_api_route("/demofusion-test/tiles", decode_in_tiles, methods=["GET"])


if "memory_management" in globals():
    script_callbacks.on_cfg_denoiser(note)
    script_callbacks.on_app_started(add_routes)
