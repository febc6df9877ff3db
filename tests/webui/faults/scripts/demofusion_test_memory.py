"""A test extension for Forge's family that records memory estimates, and can make the webui decode in tiles.

Before a model call, the webui estimates the memory that this call needs, and reserves it. The test extension records
this estimate every time that the sampler calls CFGDenoiser.
"""

from contextlib import suppress

from modules import script_callbacks, shared

with suppress(ImportError):
    from backend import memory_management

seen = []


def record(params):
    unet = shared.sd_model.forge_objects.unet
    seen.append([params.x.shape[-1], float(unet.memory_required(list(params.x.shape)))])


def take_records():
    """Returns the records since the last request. A record is the width of the latent and the estimate in bytes."""
    found = list(seen)
    seen.clear()
    return found


def decode_in_tiles(on: bool):
    """Turns the webui's tiled decoding on or off, as "Never OOM" or a start flag of the webui does."""
    memory_management.VAE_ALWAYS_TILED = on


def add_routes(demo, app):
    app.add_api_route("/demofusion-test/memory", take_records, methods=["GET"])
    app.add_api_route("/demofusion-test/tiles", decode_in_tiles, methods=["GET"])


if "memory_management" in globals():
    script_callbacks.on_cfg_denoiser(record)
    script_callbacks.on_app_started(add_routes)
