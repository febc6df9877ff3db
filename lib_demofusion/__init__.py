"""DemoFusion: training-free high-resolution sampling with a latent diffusion model.

The modules of this package need torch and the standard library alone; `lib_demofusion.host` holds all that knows the
webui. A denoising run at one size is a stage, sizes are latent cells unless a name says pixels, and the letters of the
paper (arXiv 2311.16973) appear where its formulas do.
"""

__version__ = "0.1.0"
