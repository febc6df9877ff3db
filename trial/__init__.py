"""A small text-conditional latent diffusion model and the procedural world it was trained on."""
