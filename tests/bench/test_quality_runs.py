"""Tests the configurations, runs, intervals and table of bench.quality, with networks that have no weights."""

from __future__ import annotations

import k_diffusion_sampling
import noise_schedule
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bench.quality import __main__ as command
from bench.quality import runs, table, ways, worlds
from bench.quality.configurations import CONFIGURATIONS, PAPER, Configuration
from bench.quality.denoiser import NATIVE
from bench.quality.runs import Bases, Benchmark, Job, Store, finish, seams
from bench.quality.sampler import Steps, fresh_noise, initial_noise, lcm_output, sample, timesteps
from bench.quality.table import differs, estimate
from bench.quality.ways import Sampling, Studio, batches, few_steps
from bench.quality.worlds import COLLAGES
from lib_demofusion.method.plan import make_plan
from tests.bench.planted import CONTENT
from trial.sheet import contact_sheet


class Vae(nn.Module):
    """An autoencoder without weights. It enlarges and shrinks by 8."""

    def decode(self, z):
        return torch.nn.functional.interpolate(z[:, :3], scale_factor=8.0)

    def encode(self, x):
        small = torch.nn.functional.avg_pool2d(x, 8)
        return torch.cat([small, small[:, :1]], 1)


class Unet(nn.Module):
    """A network without weights. `rows` counts the rows of x in all calls."""

    rows = 0

    def forward(self, x, t, context):
        self.rows += len(x)
        return 0.9 * x + 0.01 * context[:, :1, :1, None] * torch.cos(t / 100.0)[:, None, None, None]


class TinyModel(nn.Module):
    """Replaces SmallModel. Its networks have no weights."""

    def __init__(self):
        super().__init__()
        self.vae = Vae()
        self.register_buffer("alphas_cumprod", noise_schedule.alphas_cumprod())
        self.device = torch.device("cpu")
        self.unet = Unet()

    def encode_prompts(self, prompts):
        return torch.tensor([[len(p) / 50.0] for p in prompts])[..., None].expand(-1, 77, 8)

    def decode(self, latent):
        return self.vae.decode(latent).clamp(-1, 1)

    def encode(self, image):
        return self.vae.encode(image)


SAMPLING = Sampling(steps=4, rows=8, bfloat16=False)
"""The images are sampled in four steps, and a call of the model has at most eight rows."""
VARIED = (
    Configuration("Stages 1,2,4", settings={"stages": "doubling"}),
    Configuration("One stage", settings={"stages": "fewest"}),
    Configuration("Overlap 0", settings={"overlap": 0.0}),
    Configuration("Feather", settings={"feather": 0.25}),
    Configuration("Pixel anchor", settings={"upscaler": "Lanczos (pixels)"}),
)
"""Configurations of the preset Paper, each with one other value. Only the tests use them."""
BY_NAME = {configuration.name: configuration for configuration in (*CONFIGURATIONS, *VARIED)}


@pytest.fixture(autouse=True)
def _no_download(monkeypatch) -> None:
    """Replaces ESRGAN, whose models would be downloaded, with a function that repeats pixels."""
    monkeypatch.setattr(ways, "enlarge", lambda picture, scale: picture.repeat(scale, 0).repeat(scale, 1))


@pytest.fixture
def studio() -> Studio:
    """Returns an object that samples images with TinyModel."""
    return Studio(TinyModel(), SAMPLING, COLLAGES)


def test_the_base_image_equals_k_diffusions_euler(studio) -> None:
    """DDIM with eta 0 is Euler's method for the x of k-diffusion, which is DDIM's x divided by sqrt(alpha)."""
    numbers = [0, 3]
    alphas, guided = studio.alphas[timesteps(4)].double(), studio.guided(numbers)
    levels = ((1 - alphas) / alphas).sqrt()
    known = dict(zip(levels.tolist(), timesteps(4)))

    def denoised(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        level = float(sigma[0])
        return x - level * guided.whole((x / (1 + level**2) ** 0.5).float(), known[level])

    start = initial_noise(numbers, NATIVE, NATIVE).double() / alphas[0].sqrt()
    sigmas = torch.cat([levels, levels.new_zeros(1)])
    expected = k_diffusion_sampling.load().sample_euler(denoised, start, sigmas, disable=True)
    torch.testing.assert_close(studio.base(numbers), expected.float(), rtol=1e-4, atol=1e-4)


def test_lcm_keeps_the_noise_at_variance_1_and_returns_the_latent_that_the_model_predicts() -> None:
    """The model always predicts the latent `clean`. The rest of x is noise, scaled for the timestep."""
    alphas, clean = noise_schedule.alphas_cumprod(), initial_noise([1], 64, 64)
    steps = Steps(timesteps(4, lcm=True), alphas, fresh_noise([3]))

    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        eps = (x - alphas[t].sqrt() * clean) / (1 - alphas[t]).sqrt()
        assert float(eps.std()) == pytest.approx(1.0, rel=0.02)
        return eps

    torch.testing.assert_close(sample(initial_noise([2], 64, 64), steps, predict), clean, rtol=1e-3, atol=1e-3)


def test_a_consistency_model_returns_x_at_timestep_0_and_the_prediction_at_999() -> None:
    x, predicted = initial_noise([1], 4, 4), initial_noise([2], 4, 4)
    torch.testing.assert_close(lcm_output(x, predicted, 0), x, rtol=0, atol=0)
    torch.testing.assert_close(lcm_output(x, predicted, 999), predicted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 4, 8, 50])
def test_the_timesteps_of_lcm_decrease_from_999_and_are_one_less_than_multiples_of_20(steps: int) -> None:
    times = timesteps(steps, lcm=True)
    assert times[0] == 999
    assert len(times) == steps
    assert times == sorted(set(times), reverse=True)
    assert all((t + 1) % 20 == 0 for t in times)


def test_a_consistency_model_runs_without_guidance_and_in_batches(tmp_path) -> None:
    studio = Studio(TinyModel(), few_steps(4, bfloat16=False), COLLAGES)
    studio.base([3])
    # one row in each of the four steps; with guidance, each step would have two rows
    assert studio.unet.rows == 4
    batch = _bases(studio, tmp_path, 2).batch([0, 1])
    for name in ("Balanced", "Hires fix 0.5"):
        pictures = studio.make(BY_NAME[name], batch, 2)[0]
        alone = studio.make(BY_NAME[name], _bases(studio, tmp_path, 2).batch([1]), 2)[0]
        # the images have 8 bits per channel, and may differ by one level
        np.testing.assert_allclose(pictures[1:], alone, atol=1.01 / 255)


def test_the_denoising_strength_is_the_share_of_the_timesteps_that_are_used() -> None:
    assert timesteps(20)[0] == 999
    assert timesteps(20, 0.4) == timesteps(20)[-8:]
    assert len(timesteps(20, 0.01)) == 1


def test_names_are_unique_and_settings_are_valid() -> None:
    assert len(BY_NAME) == len(CONFIGURATIONS) + len(VARIED)
    for configuration in CONFIGURATIONS:
        for scale in (2, 3, 4):
            assert configuration.settings_at(scale).scale == scale
    assert [stage.scale for stage in make_plan(BY_NAME["One stage"].settings_at(4), (16, 16)).stages] == [4]


@pytest.mark.parametrize(
    ("name", "scale", "units"),
    [
        (PAPER, 4, 112),  # tiles and dilated views of the stages at 2x, 3x and 4x: 9 + 4, 25 + 9, 49 + 16
        (PAPER, 2, 13),
        ("Stages 1,2,4", 4, 78),
        ("One stage", 4, 65),
        ("Feather", 2, 13),
        ("Pixel anchor", 2, 13),
        ("Lanczos", 4, 0),
        ("Hires fix ESRGAN 0.5", 4, 16 * 3 / 4),  # 16 times as many cells, in 3 of the 4 steps
        ("ESRGAN", 4, 0),
    ],
)
def test_the_cost_has_the_expected_number_of_units(studio, tmp_path, name: str, scale: int, units: float) -> None:
    batch = _bases(studio, tmp_path, 2).batch([0, 1])
    studio.unet.rows = 0
    pictures, found = studio.make(BY_NAME[name], batch, scale)
    assert pictures.shape == (2, 128 * scale, 128 * scale, 3)
    # in all four steps, tiles and dilated views have weights above zero, so all views are evaluated
    assert found == pytest.approx(units, rel=1e-6)
    if name != "Hires fix ESRGAN 0.5":
        assert studio.unet.rows == units * 4 * 2 * 2  # 4 steps, 2 images, cond and uncond


def test_images_of_a_batch_equal_single_images(studio, tmp_path) -> None:
    bases = _bases(studio, tmp_path, 3)
    for name in (PAPER, "Hires fix 0.5"):
        together = studio.make(BY_NAME[name], bases.batch([0, 1, 2]), 2)[0]
        alone = studio.make(BY_NAME[name], bases.batch([1]), 2)[0]
        # the images have 8 bits per channel, and may differ by one level
        np.testing.assert_allclose(together[1:2], alone, atol=1.01 / 255)


def _bases(studio: Studio, folder, count: int) -> Bases:
    """Makes the first `count` base images, and stores them in `folder`."""
    bases = Bases(studio, Store(folder, "origin"))
    bases.prepare(range(count))
    return bases


def test_the_colors_of_each_image_are_matched_to_its_base_image() -> None:
    """The images are darker than their base images, and have random detail. At least 90 % of the detail must remain."""
    rng = np.random.default_rng(0)
    bases = np.stack([np.full((64, 64, 3), 0.3 + 0.2 * i, np.float32) for i in range(2)])
    pictures = np.repeat(np.repeat(bases, 2, 1), 2, 2) * 0.8 + rng.uniform(0, 0.1, (2, 128, 128, 3)).astype(np.float32)
    matched = ways.with_colors_of(pictures, bases)
    assert np.abs(pictures.mean((1, 2)) - bases.mean((1, 2))).max() > 5 / 255
    assert np.abs(matched.mean((1, 2)) - bases.mean((1, 2))).max() < 1 / 255
    assert matched.std((1, 2)).min() > 0.9 * pictures.std((1, 2)).min()


def test_an_interrupted_run_continues(studio, tmp_path, monkeypatch) -> None:
    """The first run stops after four of six images, and the last line of the file with the results is incomplete.

    The second run makes the two missing images.
    """
    jobs = [Job(BY_NAME["ESRGAN"], 2), Job(BY_NAME["Lanczos"], 2)]
    monkeypatch.setattr(runs, "PICTURES_AT_ONCE", {1: 16, 2: 1})
    made = []

    def stopping(*args):
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(args[2].numbers)
        finish(*args)

    monkeypatch.setattr(runs, "finish", stopping)
    with pytest.raises(KeyboardInterrupt):
        Benchmark(studio, Store(tmp_path, "origin")).run(jobs, range(3))
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"configuration": "Lanc')
    assert len(Store(tmp_path, "origin").lines(jobs[1], range(3))) == 1
    made.clear()
    Benchmark(studio, Store(tmp_path, "origin")).run(jobs, range(3))
    assert made == [[1], [2]]
    assert len(Store(tmp_path, "origin").lines(jobs[1], range(3))) == 3


def test_images_of_another_checkpoint_or_configuration_count_as_missing(studio, tmp_path) -> None:
    store, job = Store(tmp_path, "origin"), Job(BY_NAME["Lanczos"], 2)
    finish(studio, store, _bases(studio, tmp_path, 1).batch([0]), job)
    assert Store(tmp_path, "origin").line(job, 0) is not None
    assert Store(tmp_path, "another checkpoint").line(job, 0) is None
    changed = Configuration("Lanczos", "demofusion", {"tile_stride": 4})
    assert Store(tmp_path, "origin").line(Job(changed, 2), 0) is None
    store.path(job, 0).unlink()
    assert Store(tmp_path, "origin").line(job, 0) is None


def test_a_true_rendering_is_not_compared_with_the_base_image(studio, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(worlds, "installed", lambda: CONTENT)
    job = Job(BY_NAME["True renderings"], 2)
    pictures, _ = studio.make(job.configuration, _bases(studio, tmp_path, 1).batch([0]), 2)
    values = runs.measure(pictures[0], np.zeros((128, 128, 3), np.float32), job, COLLAGES, 0)
    assert (values["blobs"], values["structure"], values["tone"]) == (0, None, None)


def test_seams_are_measured_at_the_borders_of_the_tiles() -> None:
    """Lanczos has no tiles, so its images are measured at the borders of the tiles of Fast."""
    assert seams(Job(BY_NAME[PAPER], 2)) == ([64, 128, 192],) * 2
    assert seams(Job(BY_NAME["Overlap 0"], 4)) == ([128, 256, 384],) * 2
    assert seams(Job(BY_NAME["Lanczos"], 2)) == ([64, 128, 192],) * 2
    assert seams(Job(BY_NAME["Lanczos"], 4)) == seams(Job(BY_NAME["Fast"], 4)) != seams(Job(BY_NAME[PAPER], 4))


def test_the_peak_memory_grows_with_the_image_and_is_zero_without_the_model(studio, tmp_path) -> None:
    """A stage needs several tensors of the size of its latent.

    At 2x, the peak must exceed four latents. From 2x to 4x, it must grow by more than twice the growth of a latent.
    """
    batch = _bases(studio, tmp_path, 1).batch([0])
    peaks = [runs.peak_memory(studio, BY_NAME[PAPER], scale, batch) for scale in (2, 4)]
    latents = [torch.empty(1, 4, NATIVE * scale, NATIVE * scale).nbytes for scale in (2, 4)]
    assert 4 * latents[0] < peaks[0] < peaks[1] - 2 * (latents[1] - latents[0])
    assert runs.peak_memory(studio, BY_NAME["Lanczos"], 4, batch) == 0
    assert isinstance(studio.unet, Unet)


def test_the_interval_of_a_mean_has_a_half_width_of_about_1_96_standard_errors() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = estimate(lambda chosen: float(values[chosen].mean()), 400)
    half = 1.96 * values.std() / 400**0.5
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.15)


def test_the_paired_bootstrap_finds_small_differences_and_no_false_ones() -> None:
    """The values of different images vary much, with a standard deviation of 5.

    The values `shifted` of the same images are larger by only about 0.2. In the last assertion, the means are equal.
    """
    rng = np.random.default_rng(1)
    pictures = rng.normal(0, 5, 64)

    def mean(values):
        return estimate(lambda chosen: float(values[chosen].mean()), 64)

    shifted, other = pictures + rng.normal(0.2, 0.1, 64), pictures + rng.normal(0, 0.1, 64) - 0.0
    assert differs(mean(shifted), mean(pictures)) == 1
    assert differs(mean(pictures), mean(shifted)) == -1
    assert differs(mean(other - (other - pictures).mean()), mean(pictures)) == 0


def test_batches_cover_every_number() -> None:
    assert batches(range(5), 2) == [[0, 1], [2, 3], [4]]


def _row(name: str, values: np.ndarray, column: str = "blobs") -> table.Row:
    """Returns the row of the configuration `name`. `values` are the values of its images in one column."""
    lines = [
        {"units": 2.0, "seconds": 0.5, "metrics": {column: float(value), "structure": None, "seam": 1.0}}
        for value in values
    ]
    return table.make_row(name, lines, {}, 2**21)


def test_the_table_marks_differences_from_paper() -> None:
    """The marks are `+` for better, `-` for worse and `=` for no difference. Fewer blobs (foreign spots) are better."""
    blobs = np.arange(32) % 3
    rows = [_row("Worse", blobs + 1), _row(PAPER, blobs), _row("Better", blobs * 0), _row("Same", blobs)]
    assert _marks(table.markdown(rows, "2x")) == {"Worse": "-", PAPER: "", "Better": "+", "Same": "="}
    # the last columns are units, seconds and MiB
    assert table.markdown(rows, "2x").splitlines()[-1].endswith("| 2.0 | 0.50 | 2 |")


def test_the_table_marks_differences_from_another_row() -> None:
    blobs = np.arange(32) % 3
    rows = [_row("Worse", blobs + 1), _row(PAPER, blobs)]
    assert _marks(table.markdown(rows, "2x", "Worse")) == {"Worse": "", PAPER: "+"}


def test_a_column_in_which_neither_higher_nor_lower_is_better_marks_only_differences() -> None:
    shares = np.arange(32) % 3
    rows = [_row(PAPER, shares, "high_frequencies"), _row("Other", shares + 1, "high_frequencies")]
    assert _marks(table.markdown(rows, "2x"), "HF share") == {PAPER: "", "Other": "≠"}


def test_a_column_without_values_is_empty() -> None:
    row = table.markdown([_row(PAPER, np.arange(32) % 3)], "2x").splitlines()[-1]
    assert row.split(" | ")[1 + [column.name for column in table.COLUMNS].index("structure")] == ""


def _marks(text: str, title: str = "blobs") -> dict[str, str]:
    """Reads the mark of every row in the column with this title."""
    titles, _, *rows = [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]
    return {row[0]: " ".join(row[titles.index(title)].split()[2:]) for row in rows}


def test_configurations_are_selected_by_name_or_pattern() -> None:
    assert [job.configuration for job in command.jobs_for(None, PAPER, [2])] == list(CONFIGURATIONS)
    jobs = command.jobs_for(["Hires fix ESRGAN *", "Fast"], PAPER, [2])
    assert [job.configuration.name for job in jobs] == ["Hires fix ESRGAN 0.3", "Hires fix ESRGAN 0.5", PAPER, "Fast"]
    with pytest.raises(SystemExit, match="No configuration is named Quick"):
        command.jobs_for(["Quick"], PAPER, [2])


def test_the_sheet_has_a_column_for_each_configuration(tmp_path) -> None:
    Image.new("RGB", (256, 256), "red").save(tmp_path / "a.png")
    page = contact_sheet([("A", "", [tmp_path / "a.png"])] * 3, ["a red square"])
    assert page.width > 3 * 160
    assert page.getpixel((page.width - 20, 60)) == (255, 0, 0)


def test_missing_packages_are_reported_before_anything_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise FileNotFoundError("the packages are missing")

    monkeypatch.setattr(command, "installed", missing)
    monkeypatch.setattr(command, "bundled", lambda *_: pytest.fail("the model was loaded first"))
    monkeypatch.setattr("sys.argv", ["bench.quality"])
    with pytest.raises(SystemExit, match="packages are missing"):
        command.main()
