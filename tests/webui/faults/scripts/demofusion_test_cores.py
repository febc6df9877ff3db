"""A test extension that makes Soft inpainting of Forge and reForge work on a machine with few cores.

On a machine with six cores or fewer, Soft inpainting of these webuis divides the list of pixels into -1 parts. The
result is an empty list of parts, so no pixel is processed. This test extension reports eight cores to Soft inpainting.
"""

from modules import script_callbacks, scripts


def claim_cores(demo, app):
    for entry in scripts.scripts_data:
        if hasattr(entry.module, "cpu_count"):
            entry.module.cpu_count = lambda: 8


script_callbacks.on_app_started(claim_cores)
