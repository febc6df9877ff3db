"""Measures speed, memory and quality. `python -m bench.card` and `python -m bench.host` need no setup."""

from trial import bootstrap

bootstrap.enter_environment("bench", {"bench.card": ("torch", "psutil"), "bench.host": ("torch", "PIL")})
