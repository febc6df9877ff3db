"""A miniature stand-in for the webui's `modules` package, to try and test DemoFusion Hires without a webui."""
