"""A test extension that reports the active LoRAs in every call of the guidance, with the width of its latent.

It also reports the webui's folders of LoRAs and control models.
"""

import sys

from modules import script_callbacks, shared

seen = []


def active():
    """Returns the names of the loaded LoRAs. In Forge's family, a LoRA counts only while the UNet is patched."""
    names = [net.name for net in getattr(sys.modules.get("networks"), "loaded_networks", [])]
    objects = getattr(shared.sd_model, "forge_objects", None)
    if objects is None:
        return names
    patched = getattr(objects.unet, "lora_patches", None) or getattr(objects.unet, "patches", None)
    return names if patched else []


def note(params):
    seen.append([params.x.shape[-1], active()])


def told():
    """Returns the records since the last request."""
    found = list(seen)
    seen.clear()
    return found


def folder():
    """Returns the webui's LoRA folder. Forge Neo's own API route for its flags fails if it was started with a port."""
    return shared.cmd_opts.lora_dir


def control_folder():
    """Returns the folder of control models in a webui of Forge's family, whose list is read again."""
    from lib_controlnet import global_state
    from modules_forge.shared import controlnet_dir

    global_state.update_controlnet_filenames()
    return controlnet_dir


def add_routes(demo, app):
    app.add_api_route("/demofusion-test/networks", told, methods=["GET"])
    app.add_api_route("/demofusion-test/lora-folder", folder, methods=["GET"])
    app.add_api_route("/demofusion-test/control-folder", control_folder, methods=["GET"])


script_callbacks.on_cfg_denoiser(note)
script_callbacks.on_app_started(add_routes)
