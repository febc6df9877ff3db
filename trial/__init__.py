"""A small text-conditional latent diffusion model and the procedural world it was trained on."""

from trial import bootstrap

bootstrap.enter_environment("trial")
