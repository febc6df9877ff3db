"""A test extension: tells which LoRAs were active in every call of the guidance, with the width of its latent."""

import sys

from modules import script_callbacks, shared

seen = []


def active():
    """Returns the names of the LoRAs that are loaded; in Forge's family, only if the UNet is patched at the moment."""
    names = [net.name for net in getattr(sys.modules.get("networks"), "loaded_networks", [])]
    objects = getattr(shared.sd_model, "forge_objects", None)
    if objects is None:
        return names
    patched = getattr(objects.unet, "lora_patches", None) or getattr(objects.unet, "patches", None)
    return names if patched else []


def note(params):
    seen.append([params.x.shape[-1], active()])


def told():
    """Returns what was noted since the last time."""
    found = list(seen)
    seen.clear()
    return found


script_callbacks.on_cfg_denoiser(note)
script_callbacks.on_app_started(lambda demo, app: app.add_api_route("/demofusion-test/networks", told, methods=["GET"]))
