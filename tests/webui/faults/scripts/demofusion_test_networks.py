"""A test extension that records the active LoRAs and the width of the latent whenever a sampler calls CFGDenoiser.

Two more routes report the webui's folder of LoRAs and the webui's folder of control models.
"""

import sys

from modules import script_callbacks, shared

seen = []


def active():
    """Returns the names of the active LoRAs.

    In Forge's family, loaded LoRAs are active only while the UNet has patches.
    """
    names = [net.name for net in getattr(sys.modules.get("networks"), "loaded_networks", [])]
    objects = getattr(shared.sd_model, "forge_objects", None)
    if objects is None:
        return names
    patched = getattr(objects.unet, "lora_patches", None) or getattr(objects.unet, "patches", None)
    return names if patched else []


def record(params):
    seen.append([params.x.shape[-1], active()])


def take_records():
    """Returns the records since the last request. A record is the width of a latent and the names of active LoRAs."""
    found = list(seen)
    seen.clear()
    return found


def folder():
    """Returns the webui's folder of LoRAs.

    The API's route `cmd-flags` contains this folder too, but in Forge Neo it fails if the webui was started with
    --port.
    """
    return shared.cmd_opts.lora_dir


def control_folder():
    """Updates the list of control models in a webui of Forge's family, and returns the folder of these models."""
    from lib_controlnet import global_state
    from modules_forge.shared import controlnet_dir

    global_state.update_controlnet_filenames()
    return controlnet_dir


def add_routes(demo, app):
    app.add_api_route("/demofusion-test/networks", take_records, methods=["GET"])
    app.add_api_route("/demofusion-test/lora-folder", folder, methods=["GET"])
    app.add_api_route("/demofusion-test/control-folder", control_folder, methods=["GET"])


script_callbacks.on_cfg_denoiser(record)
script_callbacks.on_app_started(add_routes)
