"""Samples one stage with a sampler of the webui.

The webui samples in single precision, regardless of the precision of its networks, and so do the stages:

* The UNet is called inside the context in which the webui samples. The webui handles the UNet's dtype, autocast,
  --upcast-sampling and --precision half. Predictions are summed in float32.
* Blurs are convolutions, which autocast would run in half precision. The blurs in `method.filters` disable autocast.
* The VAE is called outside autocast and with the dtype `devices.dtype_vae`, as in the webui. The latents that it
  encodes are converted to float32 (`images.coding.as_latent`).
"""
