"""A small text-conditional latent diffusion model, the collages on which it was trained, and a stand-in webui."""

from trial import bootstrap

bootstrap.enter_environment("trial")
