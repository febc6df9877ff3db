"""A test extension that fails on request in the middle of a stage, like a broken extension.

The prompt controls the failure: "FAULT:3:30:40" raises at model call 3 in latents of 30 to 40 rows of 8 pixels.
"""

import re

from modules import script_callbacks, shared


class Fault:
    """Replaces the conds. Every access raises an error."""

    def __getattr__(self, name):
        raise RuntimeError("planned fault")

    def __getitem__(self, index):
        raise RuntimeError("planned fault")


def fail_on_request(params):
    """Replaces the conds with an object that raises an error when the model uses it.

    Raising an error here would have no effect, because the host ignores exceptions of callbacks.
    """
    from lib_demofusion.host.backends import host

    match = re.search(r"FAULT:(\d+):(\d+):(\d+)", params.denoiser.p.main_prompt or "")
    if not match:
        return
    call, low, high = map(int, match.groups())
    # the rows of packed latents are 16 pixels high
    rows = host().family(shared.sd_model).form.to_method(params.x).shape[-2]
    if low <= rows <= high and params.denoiser.step >= call:
        params.text_cond = Fault()


script_callbacks.on_cfg_denoiser(fail_on_request)
