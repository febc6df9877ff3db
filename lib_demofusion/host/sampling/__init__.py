"""One stage on a sampler of the webui: conditions of views, the denoiser between, and its run."""
