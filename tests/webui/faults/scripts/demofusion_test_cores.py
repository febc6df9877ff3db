"""A test extension that makes soft inpainting of Forge and reForge work as on a machine with more than six cores.

With six cores or fewer, soft inpainting divides its work into -1 parts and processes none of them, so no image changes.
"""

from modules import script_callbacks, scripts


def claim_cores(demo, app):
    for entry in scripts.scripts_data:
        if hasattr(entry.module, "cpu_count"):
            entry.module.cpu_count = lambda: 8


script_callbacks.on_app_started(claim_cores)
