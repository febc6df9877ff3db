"""DemoFusion: training-free high-resolution sampling with a latent diffusion model.

All code that uses the webui is in `lib_demofusion.host`. All other modules of this package need only torch and the
standard library. A stage is a denoising run at one size. Sizes are in latent cells, unless a name contains "pixels".
Formulas use the symbols of the paper (arXiv 2311.16973).
"""

__version__ = "0.1.0"
