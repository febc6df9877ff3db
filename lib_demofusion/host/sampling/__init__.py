"""Samples one stage with a sampler of the webui."""
