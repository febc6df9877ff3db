"""Measures speed, memory and quality. bench.card and bench.host are for a webui's Python, bench.quality for .venv."""

from trial import bootstrap

bootstrap.enter_environment("bench", {"bench.card": ("torch", "psutil"), "bench.host": ("torch", "PIL")})
