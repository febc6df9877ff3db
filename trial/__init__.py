"""A small text-conditional latent diffusion model, and the procedural world on which it was trained."""

from trial import bootstrap

bootstrap.enter_environment("trial")
