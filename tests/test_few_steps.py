"""Tests how DemoFusion recognizes requests for few-step models, and which preset it chooses for these requests."""

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
def test_the_cfg_scale_does_not_matter_for_a_model_with_built_in_guidance(
    steps: int, cfg_scale: float, few: bool
) -> None:
    """Such models usually run at CFG 1, with any number of steps.

    Examples are Flux.1 dev with 20 steps, Flux.1 schnell with 4 steps, and Z-Image Turbo with 9 steps.
    """
    assert looks_few_step(steps, cfg_scale, distilled=True) == few
    asked = parse_settings({"enabled": True, "preset": "Balanced"})
    assert (with_automatic_preset(asked, steps, cfg_scale, distilled=True).preset == TURBO) == few
    strong = parse_settings({"enabled": True, "preset": "Paper"})
    assert needs_more_steps(strong, steps, cfg_scale, distilled=True) == few


@pytest.mark.parametrize("preset", ["Balanced", "Fast"])
def test_turbo_replaces_balanced_and_fast_if_a_request_has_few_steps(preset: str) -> None:
    asked = parse_settings({"enabled": True, "preset": preset, "scale": 3, "save_stages": True})
    settings = with_automatic_preset(asked, 6, 1.5)
    assert (settings.preset, settings.scale, settings.save_stages) == (TURBO, 3, True)
    assert changed_fields(TURBO, asdict(settings)) == ()
    assert settings.denoising_strength == PRESETS[TURBO]["denoising_strength"]
    assert with_automatic_preset(asked, 20, 7.0) == asked


@pytest.mark.parametrize(
    "values", [{"preset": "Balanced", "overlap": 0.5}, {"preset": "Paper"}, {"preset": "mine"}, {"preset": TURBO}]
)
def test_a_changed_preset_and_all_other_presets_are_kept(values: dict[str, object]) -> None:
    choices = Choices({"mine": {"overlap": 0.3}})
    asked = parse_settings({"enabled": True, **values}, choices=choices)
    assert with_automatic_preset(asked, 6, 1.5, choices) == asked
