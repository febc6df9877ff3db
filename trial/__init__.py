"""A small latent diffusion model, programs for the collages that it draws, and a miniature of the webui."""

from trial import bootstrap

bootstrap.enter_environment("trial", {})
