"""Converts between latents and images: decoding, upscaling, encoding, masks and saving."""
