"""A test extension with which Soft inpainting of Forge and reForge works as on a machine with more than six cores.

On a machine with six cores or fewer, Soft inpainting of these webuis divides the image into -1 parts. This gives an
empty list of parts, so the image does not change.
"""

from modules import script_callbacks, scripts


def claim_cores(demo, app):
    for entry in scripts.scripts_data:
        if hasattr(entry.module, "cpu_count"):
            entry.module.cpu_count = lambda: 8


script_callbacks.on_app_started(claim_cores)
