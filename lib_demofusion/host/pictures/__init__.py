"""From latents to images and back: decoding, enlarging, encoding, masks and saving."""
