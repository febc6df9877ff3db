"""A miniature stand-in for the webui's `modules` package, for trying and testing DemoFusion Hires without a webui."""
