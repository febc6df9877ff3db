"""Tests the settings that users, programs and infotexts provide.

Valid values are accepted. If a value is not valid, the error names the field.
"""

from __future__ import annotations

import dataclasses
import math
import re

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from lib_demofusion.method.plan import make_plan
from lib_demofusion.settings.errors import SettingsError
from lib_demofusion.settings.fields import ENABLED_KEY, NAMES, OF_THE_REQUEST, PRESET_FIELDS, SPECS, Settings
from lib_demofusion.settings.presets import BUILT_IN, PRESETS, Choices
from lib_demofusion.settings.reading import (
    changed_fields,
    from_infotext,
    overridden,
    parse_preset,
    parse_settings,
    preset_values,
    settings_from_args,
    to_infotext,
)

EXAMPLES = settings(max_examples=200, deadline=None)
BOOLS = [name for name, spec in SPECS.items() if spec.kind is bool]
INTS = [name for name, spec in SPECS.items() if spec.kind is int]
FLOATS = [name for name, spec in SPECS.items() if spec.kind is float]

HUGE = 10**5000
"""Python refuses to format this number, because it has more than 4300 digits."""

NEVER_GOOD = [
    "abc",
    "3 cats",
    "\x00",
    "9" * 100_000,
    float("nan"),
    float("inf"),
    float("-inf"),
    "nan",
    "inf",
    "1e400",
    -1,
    "-1",
    1e9,
    1e300,
    10**400,
    -(10**400),
    HUGE,
    {},
    {"scale": 2},
    object(),
    1j,
    {1, 2},
    lambda: 2,
]
BAD_NUMBERS = [*NEVER_GOOD, "", " ", True, False, "True", [], [2], [HUGE], (2,), "2,0", "0x2", b"abc", [[[2]]]]
BAD_WHOLE_NUMBERS = [*BAD_NUMBERS, 2.5, "2.5", 1e-9]
BAD_BOOLS = [*NEVER_GOOD, "", "yes", 2, 0.5, "None", [], [True], [HUGE], (1,)]
BAD_STAGES = [
    *NEVER_GOOD,
    True,
    False,
    "2,",
    ",2",
    "1,,2",
    ",",
    "2 4",
    "4,2",
    "2,2",
    "1,1,2",
    "9",
    "0",
    "0.5,2",
    "2,8.1",
]
BAD_STAGES += [[4, 2], [2, 2], [None, 2], [1, "abc"], [[1, 2], [3]], [True, 2], [2, HUGE], b"1,2", b"\x01\x02"]
BAD_STAGES += ["1," * 50_000 + "2", "1, 2, nan", "1,inf", "2;1"]


def is_named(error: SettingsError, name: str, value: object) -> bool:
    """Returns whether an error names the field, the value if it is short, and the allowed values."""
    text = str(error)
    if isinstance(value, str) and len(value) < 50 and repr(value) not in text:
        return False
    if type(value) in (int, float) and abs(value) < 1e15 and f"{value:g}" not in text and repr(value) not in text:
        return False
    return text.startswith(f"{name}: ") and error.name == name and " is not valid. Use " in text and len(text) < 300


def cases(fields: list[str], values: list[object]) -> list[object]:
    """Returns a test case for every combination of a field and a value."""
    named = [(name, value) for name in fields for value in values]
    return [pytest.param(name, value, id=f"{name}-{i % len(values)}") for i, (name, value) in enumerate(named)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *cases(FLOATS, BAD_NUMBERS),
        *cases(INTS, BAD_WHOLE_NUMBERS),
        *cases(BOOLS, BAD_BOOLS),
        *cases(["preset"], [*NEVER_GOOD, "", "paper", True, [], ["abc"]]),
    ],
)
def test_bad_value_is_reported(name: str, value: object) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings({name: value})
    assert is_named(caught.value, name, value)
    assert SPECS[name].allowed(BUILT_IN) in str(caught.value)


@pytest.mark.parametrize("value", BAD_STAGES, ids=range(len(BAD_STAGES)))
def test_bad_stage_list_is_reported(value: object) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings({"stages": value})
    assert caught.value.name == "stages"
    assert is_named(caught.value, "stages", value if isinstance(value, str) else None)
    assert "increasing scales from 1 to 8" in str(caught.value)


def test_is_named_detects_a_wrong_field_or_value() -> None:
    good = SettingsError("scale", 0, "a number from 1 to 8")
    assert str(good) == "scale: 0 is not valid. Use a number from 1 to 8"
    assert is_named(good, "scale", 0)
    assert not is_named(good, "width", 0)
    assert not is_named(good, "scale", 7)
    assert not is_named(good, "scale", "zero")


ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(max_size=8), st.complex_numbers()
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)


def parsed_or_error(values: dict[str, object]) -> Settings | SettingsError:
    try:
        parsed = parse_settings(values)
        make_plan(parsed, (64, 96))
    except SettingsError as error:
        return error
    return parsed


@EXAMPLES
@given(values=st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=3))
def test_anything_is_parsed_or_reported(values: dict[str, object]) -> None:
    """Parsing and planning raise no exception except SettingsError. Every accepted number is in its range."""
    parsed = parsed_or_error(values)
    if isinstance(parsed, SettingsError):
        assert parsed.name in NAMES
        assert is_named(parsed, parsed.name, None)
        return
    for name in FLOATS + INTS:
        assert SPECS[name].minimum <= getattr(parsed, name) <= SPECS[name].maximum
        assert type(getattr(parsed, name)) is SPECS[name].kind


def test_deeply_nested_list_is_reported() -> None:
    value: object = 2
    for _ in range(100_000):
        value = [value]
    for name in ("scale", "stages", "jitter"):
        with pytest.raises(SettingsError) as caught:
            make_plan(parse_settings({name: value}), (64, 64))
        assert caught.value.name == name


@pytest.mark.parametrize("name", ["colour", "", "Scale", "__class__", "spec", "scale ", 5, None, ("a",), "x" * 10_000])
def test_unknown_field_is_reported(name: object) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings({"scale": 3, name: 4})
    message = str(caught.value)
    assert message.startswith("the field ")
    written, _, rest = message.removeprefix("the field ").partition(" does not exist (its value is ")
    assert rest.startswith("4). Use the fields ")
    # the message contains the repr of the name, shortened to 60 characters
    assert written == repr(name) or (len(written) == 60 and repr(name).startswith(written[:-1]))
    assert all(field in message for field in NAMES)


def test_fields_that_are_none_or_missing_get_their_defaults() -> None:
    assert parse_settings({}) == Settings()
    assert parse_settings(dict.fromkeys(NAMES)) == Settings()
    assert parse_settings({"scale": None, "tile_size": 64}) == Settings(tile_size=64)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("scale", 3, 3.0),
        ("scale", "2.5", 2.5),
        ("scale", " 4 ", 4.0),
        ("scale", 8, 8.0),
        ("scale", 1, 1.0),
        ("width", 2048.0, 2048),
        ("width", "2048", 2048),
        ("width", 0, 0),
        ("tile_size", 512, 512.0),
        ("sigma", 0.01, 0.01),
        ("cosine_scale_1", 0, 0.0),
        ("jitter", False, False),
        ("jitter", "False", False),
        ("jitter", "true", True),
        ("jitter", 0, False),
        ("jitter", 1, True),
        ("preset", "Paper", "Paper"),
        ("stages", " 1,2,4 ", "1,2,4"),
        ("stages", [1, 2, 4], "1,2,4"),
        ("stages", (1, 2.5), "1,2.5"),
        ("stages", ["1", "3"], "1,3"),
        ("stages", [], "every"),
        ("stages", "", "every"),
        ("skip_views", [0.5, 0.1], "0.5,0.1"),
        ("skip_views", "", ""),
        ("stages", 2, "2"),
        ("stages", 2.5, "2.5"),
    ],
)
def test_good_value_is_accepted(name: str, value: object, expected: object) -> None:
    parsed = getattr(parse_settings({name: value}), name)
    assert parsed == expected
    assert type(parsed) is type(expected)


def test_script_arguments_are_values_in_field_order_or_one_dict() -> None:
    assert NAMES[:3] == ("enabled", "preset", "upscaler")
    assert settings_from_args([True, "Paper", "Latent", 3]) == Settings(enabled=True, hires_steps=3)
    assert settings_from_args([{"enabled": True, "scale": 3}]) == Settings(enabled=True, scale=3.0)
    assert settings_from_args([]) == Settings()
    assert settings_from_args(list(dataclasses.astuple(Settings(tile_size=96, jitter=False)))) == Settings(
        tile_size=96, jitter=False
    )
    with pytest.raises(SettingsError, match=r"hires_steps: 'abc' is not valid. Use a whole number from 0 to 150"):
        settings_from_args([True, None, None, "abc"])


def test_missing_fields_get_the_values_of_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "Paper", {"sigma": 1.5, "jitter": False})
    assert parse_settings({}) == Settings(sigma=1.5, jitter=False)
    assert parse_settings({"preset": "Paper", "sigma": 2, "jitter": None}) == Settings(sigma=2.0, jitter=False)


@pytest.mark.parametrize("name", PRESETS)
def test_values_of_presets_are_valid(name: str) -> None:
    assert parse_settings(PRESETS[name]) == Settings(**PRESETS[name])


MINE = "Mine"
CHOICES = Choices({MINE: {"sigma": 1.5, "jitter": False}}, ("None?", "4x-Sharp", "Lanczos"))
"""One preset of the user and three upscalers of the webui."""


def test_a_preset_of_the_user_works_like_a_built_in_preset() -> None:
    assert CHOICES.preset_names == (*PRESETS, MINE)
    assert parse_settings({"preset": MINE}, choices=CHOICES) == Settings(preset=MINE, sigma=1.5, jitter=False)
    both = {"preset": MINE, "sigma": 2}
    assert parse_settings(both, choices=CHOICES) == Settings(preset=MINE, sigma=2.0, jitter=False)
    assert preset_values(MINE, CHOICES) == {**preset_values("Paper"), "sigma": 1.5, "jitter": False}


def test_the_error_for_an_unknown_preset_names_the_existing_presets() -> None:
    with pytest.raises(SettingsError, match=r"preset: 'Yours' is not valid. Use one of Paper, .*Mine"):
        parse_settings({"preset": "Yours"}, choices=CHOICES)
    with pytest.raises(SettingsError, match="preset: 'Mine' is not valid"):
        parse_settings({"preset": MINE})


def test_a_preset_of_the_user_does_not_replace_a_built_in_preset() -> None:
    choices = Choices({"Paper": {"sigma": 5.0}})
    assert choices.preset_names == tuple(PRESETS)
    assert parse_settings({"preset": "Paper"}, choices=choices) == Settings(**PRESETS["Paper"])


UPSCALERS = {
    "Latent": ("latent", "Latent"),
    "Lanczos": ("mixed", "Lanczos"),
    "4x-Sharp": ("mixed", "4x-Sharp"),
    "4x-Sharp (pixels)": ("pixels", "4x-Sharp"),
}


@pytest.mark.parametrize("upscaler", UPSCALERS)
def test_the_upscaler_determines_the_anchor(upscaler: str) -> None:
    settings = parse_settings({"upscaler": upscaler}, choices=CHOICES)
    assert (settings.anchor, settings.image_upscaler) == UPSCALERS[upscaler]


@pytest.mark.parametrize("upscaler", ["", "lanczos", "Latent (pixels)", "4x-Gone", "mixed"])
def test_the_error_for_an_unknown_upscaler_names_the_existing_upscalers(upscaler: str) -> None:
    with pytest.raises(SettingsError, match=r"Use one of Latent, Lanczos, None\?, 4x-Sharp$"):
        parse_settings({"upscaler": upscaler}, choices=CHOICES)


@pytest.mark.parametrize("text", ["0.5", "0.5,0.1,0", "0.6,0", "0,-0.1", "a,b", "nan,0"])
def test_an_invalid_value_of_skip_views_is_reported(text: str) -> None:
    with pytest.raises(
        SettingsError, match=r"skip_views: .* is not valid. Use two numbers from 0 to 0.5, such as 0.5,0.1"
    ):
        parse_settings({"skip_views": text})


def test_arguments_without_a_preset_get_the_preset_that_the_caller_passes() -> None:
    expected = Settings(enabled=True, preset=MINE, sigma=1.5, jitter=False)
    assert settings_from_args([{"enabled": True}], MINE, CHOICES) == expected
    assert settings_from_args([True], MINE, CHOICES) == expected
    assert settings_from_args([{"enabled": True, "preset": None}], MINE, CHOICES) == expected
    assert settings_from_args([{"enabled": True, "preset": "Paper"}], MINE, CHOICES) == Settings(enabled=True)


def test_the_infotext_contains_the_values_of_a_preset_of_the_user() -> None:
    written = to_infotext(settings_from_args([{"enabled": True, "sigma": 0.8}], MINE, CHOICES), CHOICES)
    assert written == {"DemoFusion preset": "Mine (changed)", "DemoFusion jitter": "False"}
    # an installation without this preset restores the same values from the infotext
    assert pasted(written) == Settings(jitter=False)


def test_fields_that_differ_from_their_preset_are_found() -> None:
    values = preset_values(MINE, CHOICES)
    assert changed_fields(MINE, values, CHOICES) == ()
    # a control of the panel can return the same value as another type, or as an empty text
    assert changed_fields(MINE, {**values, "sigma": "1.50", "stages": "", "feather": 0}, CHOICES) == ()
    # a value that is not valid counts as different
    assert changed_fields(MINE, {**values, "sigma": 2, "stages": "3,2"}, CHOICES) == ("stages", "sigma")
    assert "(changed)" not in str(to_infotext(parse_settings({"preset": MINE}, choices=CHOICES), CHOICES))
    written = to_infotext(parse_settings({"preset": MINE, "sigma": 2}, choices=CHOICES), CHOICES)
    assert written["DemoFusion preset"] == "Mine (changed)"
    assert pasted(written, CHOICES) == Settings(preset=MINE, sigma=2.0, jitter=False)


def test_a_preset_in_overrides_is_applied_before_the_other_overrides() -> None:
    settings = Settings(enabled=True, scale=3.0, sigma=3.0, denoising_strength=0.5)
    assert overridden(settings, {}) == settings
    assert overridden(settings, {"sigma": 2}) == dataclasses.replace(settings, sigma=2.0)
    expected = Settings(enabled=True, scale=3.0, preset=MINE, sigma=1.5, jitter=False)
    assert overridden(settings, {"preset": MINE}, CHOICES) == expected
    assert overridden(settings, {"sigma": 2, "preset": MINE}, CHOICES) == dataclasses.replace(expected, sigma=2.0)


def test_presets_set_no_field_of_a_single_request() -> None:
    assert set(NAMES) == set(PRESET_FIELDS) | OF_THE_REQUEST
    assert all(set(values) <= set(PRESET_FIELDS) for values in PRESETS.values())


@pytest.mark.parametrize("values", [{"scale": 2}, {"sgima": 1}, {"sigma": "big"}, {"stages": "3,2"}, {"jitter": None}])
def test_an_invalid_field_in_a_preset_is_reported(values: dict) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_preset(values)
    assert caught.value.name == next(iter(values))


@pytest.mark.parametrize("name", NAMES)
def test_default_is_in_its_range(name: str) -> None:
    default = getattr(Settings, name)
    assert SPECS[name].parse(name, default, BUILT_IN) == default
    assert type(default) is SPECS[name].kind


@pytest.mark.parametrize("name", FLOATS + INTS)
def test_limits_are_valid_and_values_beyond_them_are_not(name: str) -> None:
    spec = SPECS[name]
    for limit, beyond in ((spec.minimum, -1), (spec.maximum, 1)):
        assert SPECS[name].parse(name, limit, BUILT_IN) == limit
        outside = limit + beyond if spec.kind is int else math.nextafter(limit, beyond * math.inf)
        with pytest.raises(SettingsError):
            SPECS[name].parse(name, outside, BUILT_IN)


def drawn(name: str) -> st.SearchStrategy:
    """Returns a strategy that draws valid values of a field."""
    spec = SPECS[name]
    if spec.kind is bool:
        return st.booleans()
    if spec.kind is int:
        return st.integers(int(spec.minimum), int(spec.maximum))
    if spec.kind is float:
        fine = st.floats(spec.minimum, spec.maximum)
        return st.one_of(fine, fine.map(lambda value: min(max(round(value, 2), spec.minimum), spec.maximum)))
    if name == "skip_views":
        weights = st.tuples(st.integers(0, 50), st.integers(0, 50))
        return st.one_of(st.just(""), weights.map(lambda pair: ",".join(f"{cent / 100:g}" for cent in pair)))
    if name != "stages":
        return st.sampled_from(spec.choices(BUILT_IN))
    scales = st.lists(st.integers(100, 800), unique=True, max_size=6).map(sorted)
    return scales.map(lambda cents: ",".join(f"{cent / 100:g}" for cent in cents) or "every")


SETTINGS = st.builds(Settings, **{name: drawn(name) for name in NAMES})


def pasted(infotext: dict[str, str], choices: Choices = BUILT_IN) -> Settings:
    """Returns the settings that are read from an infotext."""
    return Settings(**{name: from_infotext(name, infotext, choices) for name in NAMES})


@EXAMPLES
@given(given_settings=SETTINGS)
@example(given_settings=Settings(scale=7 / 3, sigma=0.1 + 0.2, cosine_scale_1=1e-7, cosine_scale_2=9.123456789))
def test_settings_are_restored_from_the_infotext(given_settings: Settings) -> None:
    """`to_infotext` does not write the key for `enabled`, so the test adds it. In the webui, the code in host/ does."""
    infotext = to_infotext(given_settings)
    assert pasted({**infotext, ENABLED_KEY: "1.0"}) == dataclasses.replace(given_settings, enabled=True)
    assert pasted(infotext) == dataclasses.replace(given_settings, enabled=False)


@EXAMPLES
@given(given_settings=SETTINGS)
def test_the_webui_can_parse_the_infotext(given_settings: Settings) -> None:
    r"""The webui reads `key: value` if the key matches \w[\w \-/]+, and ignores empty values (infotext_utils.py)."""
    infotext = to_infotext(given_settings)
    for key, value in infotext.items():
        assert re.fullmatch(r"\w[\w \-/]+", key)
        assert isinstance(value, str)
        assert value.strip() == value
        assert value
        assert "\n" not in value
    differing = {name for name in NAMES if getattr(given_settings, name) != getattr(Settings, name)} - {"enabled"}
    preset = SPECS["preset"].infotext
    assert set(infotext) - {preset} == {SPECS[name].infotext for name in differing - {"preset"}}
    own = {name: getattr(given_settings, name) for name in PRESET_FIELDS} == preset_values(given_settings.preset)
    assert infotext.get(preset, "Paper") == given_settings.preset + ("" if own else " (changed)")


def test_the_infotext_contains_only_values_that_differ_from_the_defaults() -> None:
    assert to_infotext(Settings(enabled=True)) == {}
    assert to_infotext(Settings(scale=3.0, stages="1,3", jitter=False)) == {
        "DemoFusion preset": "Paper (changed)",
        "DemoFusion scale": "3",
        "DemoFusion stages": "1,3",
        "DemoFusion jitter": "False",
    }


def test_infotext_keys_and_labels_are_unique() -> None:
    for values in ([spec.infotext for spec in SPECS.values()], [spec.label for spec in SPECS.values()]):
        assert len(set(values)) == len(values)
        assert all(len(value) >= 2 for value in values)
    assert all(re.fullmatch(r"\w[\w \-/]+", spec.infotext) for spec in SPECS.values())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("enabled", "stages", "skip_views")])
@pytest.mark.parametrize("text", ["broken", "nan", "-7", ""])
def test_an_invalid_infotext_value_gives_the_default(name: str, text: str) -> None:
    assert from_infotext(name, {SPECS[name].infotext: text}) == getattr(Settings, name)
