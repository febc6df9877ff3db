"""From latents to pictures and back: decoding, enlarging, encoding, masks and saving."""
