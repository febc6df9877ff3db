"""A test extension that compares a stage of one view with the webui's own img2img.

The comparison runs if the prompt contains ONEVIEW. The stage and img2img start from the same noise at the same noise
level. The stage has one view of the whole latent, and its skip residual and dilated path have a weight of 0. Both
results must therefore be the same. The infotext contains the largest difference between the two latents, and the
largest absolute value in the latent of img2img.
"""

import torch.nn.functional as F
from modules import rng, scripts, sd_samplers, shared


class OneView(scripts.Script):
    """Runs the comparison after the base image is sampled, and writes the result into the infotext."""

    def title(self):
        return "DemoFusion test: one view"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def post_sample(self, p, ps):
        if "ONEVIEW" in p.main_prompt:
            stage, own = both(p, ps.samples)
            p.extra_generation_params["One view differs by"] = float((stage - own).abs().max())
            p.extra_generation_params["One view reaches"] = float(own.abs().max())


def both(p, samples):
    """Samples the stage and the webui's img2img, and returns both latents in the shape that the webui uses."""
    from lib_demofusion.host.backends import host
    from lib_demofusion.host.common import replaced
    from lib_demofusion.host.sampling.stage_sampler import StageTask, run_stage, stage_seeds
    from lib_demofusion.method.plan import StagePlan
    from lib_demofusion.settings.fields import Settings

    form = host().family(p.sd_model).form
    base = form.to_method(samples)
    size = 2 * base.shape[-2], 2 * base.shape[-1]
    anchor = F.interpolate(base.float(), size, mode="bicubic")
    stage = StagePlan(1, 2.0, size, 2, size, size)
    settings = Settings(
        enabled=True, denoising_strength=0.6, cosine_scale_1=1e9, cosine_scale_2=1e9, jitter=False, extra_noise=0.0
    )
    seen = []

    def watched(self, p, x, noise, cond, uncond, steps, image_conditioning):
        seen.append((p.steps, p.denoising_strength, steps, x, noise))
        return own(self, p, x, noise, cond, uncond, steps, image_conditioning)

    sampler = sd_samplers.create_sampler(p.sampler_name, p.sd_model)
    own = type(sampler).sample_img2img
    with host().base_checkpoint(p, shared.sd_model.sd_checkpoint_info):
        type(sampler).sample_img2img = watched
        try:
            made = run_stage(p, StageTask(stage, settings, anchor), lambda progress: None)
        finally:
            type(sampler).sample_img2img = own
        ((schedule, strength, steps, x, noise),) = seen
        draws = rng.ImageRNG(tuple(noise.shape[1:]), stage_seeds(p.seeds, 1))
        # the first draw is the noise that the stage started from
        draws.next()
        cond, uncond = conds_of_size(p, *stage.pixels)
        with replaced(p, steps=schedule, denoising_strength=strength, rng=draws):
            theirs = sampler.sample_img2img(p, x, noise, cond, uncond, steps, p.txt2img_image_conditioning(x))
    return form.to_host(made), theirs


def conds_of_size(p, height, width):
    """Returns the conds for an image of `height` x `width` pixels. The conds of SDXL contain this size."""
    from lib_demofusion.host.common import replaced

    with replaced(p, height=height, width=width):
        p.setup_conds()
        found = p.get_conds()
    # restores the conds for the size of the job
    p.setup_conds()
    return found
