"""Tests how requests for few-step models are recognized, and which settings they get."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from lib_demofusion.settings.presets import PRESETS, TURBO, Choices, looks_few_step
from lib_demofusion.settings.reading import changed_fields, needs_more_steps, parse_settings, with_automatic_preset


@pytest.mark.parametrize(
    ("steps", "cfg_scale", "few"),
    [(4, 1.0, True), (8, 1.8, True), (10, 2.0, True), (10, 7.0, False), (30, 2.0, False), (20, 7.0, False)],
)
def test_few_steps_with_a_low_cfg_scale_look_like_a_few_step_model(steps: int, cfg_scale: float, few: bool) -> None:
    assert looks_few_step(steps, cfg_scale) == few


@pytest.mark.parametrize(
    ("steps", "cfg_scale", "few"), [(20, 1.0, False), (11, 1.0, False), (10, 1.0, True), (4, 1.0, True), (4, 5.0, True)]
)
def test_for_a_model_with_built_in_guidance_only_the_steps_count(steps: int, cfg_scale: float, few: bool) -> None:
    """All these models run at CFG 1: Flux.1 dev with 20 steps, Flux.1 schnell with 4, and Z-Image Turbo with 9."""
    assert looks_few_step(steps, cfg_scale, distilled=True) == few
    asked = parse_settings({"enabled": True, "preset": "Balanced"})
    assert (with_automatic_preset(asked, steps, cfg_scale, distilled=True).preset == TURBO) == few
    strong = parse_settings({"enabled": True, "preset": "Paper"})
    assert needs_more_steps(strong, steps, cfg_scale, distilled=True) == few


@pytest.mark.parametrize("preset", ["Balanced", "Fast"])
def test_turbo_replaces_presets_for_many_steps(preset: str) -> None:
    asked = parse_settings({"enabled": True, "preset": preset, "scale": 3, "save_stages": True})
    settings = with_automatic_preset(asked, 6, 1.5)
    assert (settings.preset, settings.scale, settings.save_stages) == (TURBO, 3, True)
    assert changed_fields(TURBO, asdict(settings)) == ()
    assert settings.denoising_strength == PRESETS[TURBO]["denoising_strength"]
    assert with_automatic_preset(asked, 20, 7.0) == asked


@pytest.mark.parametrize(
    "values", [{"preset": "Balanced", "overlap": 0.5}, {"preset": "Paper"}, {"preset": "mine"}, {"preset": TURBO}]
)
def test_values_set_by_the_user_are_kept(values: dict[str, object]) -> None:
    choices = Choices({"mine": {"overlap": 0.3}})
    asked = parse_settings({"enabled": True, **values}, choices=choices)
    assert with_automatic_preset(asked, 6, 1.5, choices) == asked
