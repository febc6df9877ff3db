"""DemoFusion: training-free high-resolution sampling with a latent diffusion model.

All code that uses the webui is in `lib_demofusion.host`. All other modules of this package need only torch and the
standard library. Sizes in `lib_demofusion.method` are in latent cells, unless a name or a docstring gives another unit.
Formulas use the symbols of the paper (arXiv 2311.16973). CONTRIBUTING.md explains words such as stage, view and anchor.
"""

__version__ = "0.1.0"
