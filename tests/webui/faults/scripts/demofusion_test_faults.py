"""A test extension that fails in the middle of a stage if the prompt requests it, like a broken extension.

With "FAULT:3:30:40" in the prompt, a latent of 30 to 40 rows causes an error at every model call from number 3 on. A
row has 8 pixels, and calls are counted from 0.
"""

import re

from modules import script_callbacks, shared


class Fault:
    """An object in place of the conds. Every access to it raises an error."""

    def __getattr__(self, name):
        raise RuntimeError("planned fault")

    def __getitem__(self, index):
        raise RuntimeError("planned fault")


def fail_on_request(params):
    """Replaces the conds with an object that raises an error when the model uses it.

    If this function itself raised an error, it would have no effect, because the webui ignores exceptions of callbacks.
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
