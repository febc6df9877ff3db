"""Samples one stage with a sampler of the webui.

In the webui, the latents of the sampler are in single precision, even if the networks use half precision. The latents
of a stage are in single precision too:

* The stages call the UNet inside the context that the webui uses for sampling. The webui handles the dtype of the UNet,
  autocast, --upcast-sampling and --precision half. The stages sum the predictions in float32.
* Blurs are convolutions, which autocast would run in half precision. The blurs in `method.filters` disable autocast.
* The stages call the VAE outside autocast and with the dtype `devices.dtype_vae`, as the webui does. They convert the
  encoded latents to float32 (`images.coding.as_latent`).
"""
