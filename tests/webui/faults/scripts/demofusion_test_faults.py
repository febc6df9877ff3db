"""A test extension that makes model calls fail if the prompt requests this, as a broken extension would.

If the prompt contains "FAULT:3:30:40", every model call for a latent with a height of 30 to 40 cells fails, except the
first three calls of a sampling.
"""

import re

from modules import script_callbacks, shared


class Fault:
    """Replaces the conds. Every access to this object raises an error."""

    def __getattr__(self, name):
        raise RuntimeError("planned fault")

    def __getitem__(self, index):
        raise RuntimeError("planned fault")


def fail_on_request(params):
    """Replaces the conds with a Fault, so that the model raises an error when it uses the conds.

    An error in this function itself would have no effect, because the webui ignores exceptions of callbacks.
    """
    from lib_demofusion.host.backends import host

    match = re.search(r"FAULT:(\d+):(\d+):(\d+)", params.denoiser.p.main_prompt or "")
    if not match:
        return
    call, low, high = map(int, match.groups())
    # packed latents are unpacked, because each of their rows has the height of two cells
    rows = host().family(shared.sd_model).form.to_method(params.x).shape[-2]
    if low <= rows <= high and params.denoiser.step >= call:
        params.text_cond = Fault()


script_callbacks.on_cfg_denoiser(fail_on_request)
