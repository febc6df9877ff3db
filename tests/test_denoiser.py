"""Tests the correction of dilated views (see `DilatedPath`) with every wrapper that the webui puts around a model.

For dilated views, the model receives the blurred latent, but the sampler applies the prediction to the sharp latent.
The first test does not use the formula of the correction. Its expected results come from the wrapper itself: the test
calls the wrapper with the sharp latent, and the model then returns the output that it computed for the blurred latent.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import k_diffusion_sampling
import pytest
import torch
from fusing import fuse
from torch import Tensor, nn

from lib_demofusion.host.backends.interface import StageParts
from lib_demofusion.host.backends.webui_denoiser import FusedModel, input_derivative
from lib_demofusion.method.batching import ViewBatches
from lib_demofusion.method.conditioning import Frame
from lib_demofusion.method.filters import blur_for_dilation
from lib_demofusion.method.views import dilated_views

external = k_diffusion_sampling.load("external")

ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.0120**0.5, 1000, dtype=torch.float64) ** 2, 0)
TIMESTEPS = [1, 300, 700, 999]
SHAPE = (2, 4, 12, 16)


class Model:
    """A model whose output at a cell depends only on the timestep and on this cell of x.

    Dilated views therefore have the same predictions as the whole latent. If `fixed_output` is set, the model always
    returns this tensor.
    """

    alphas_cumprod = ALPHAS
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.mixing = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        self.fixed_output: Tensor | None = None
        self.last_output: Tensor | None = None

    def apply_model(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        if self.fixed_output is not None:
            return self.fixed_output
        self.last_output = torch.tanh(torch.einsum("nchw,kc->nkhw", x, self.mixing) + t[:, None, None, None] / 1000)
        return self.last_output


class Timesteps(nn.Module):
    """Imitates the webui's wrapper around an eps model for DDIM, PLMS and UniPC.

    The wrapper returns the predicted noise, which is the output of the model.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.inner_model = model

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.inner_model.apply_model(x, t, cond)


class TimestepsV(Timesteps):
    """Imitates the webui's wrapper around a v model for DDIM, PLMS and UniPC.

    The wrapper converts the output of the model to the predicted noise.
    """

    def predict_eps_from_z_and_v(self, x: Tensor, t: Tensor, v: Tensor) -> Tensor:
        alpha = self.inner_model.alphas_cumprod[t.int()].reshape(-1, 1, 1, 1)
        return alpha.sqrt() * v + (1 - alpha).sqrt() * x

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.predict_eps_from_z_and_v(x, t, super().forward(x, t, cond))


class Consistency(nn.Module):
    """Imitates the webui's wrapper for LCM around an eps model.

    The wrapper returns a weighted sum of x and the predicted clean latent.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.inner_model, self.eps = model, external.CompVisDenoiser(model)

    def get_scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return self.eps.get_scalings(sigma)

    def get_scaled_out(self, sigma: Tensor, output: Tensor, x: Tensor) -> Tensor:
        t = 10 * self.eps.sigma_to_t(sigma).reshape(-1, 1, 1, 1)
        return t / (t**2 + 0.25).sqrt() * output + 0.25 / (t**2 + 0.25) * x

    def forward(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        return self.get_scaled_out(sigma, self.eps(x, sigma, cond=cond), x)


def sigma_at(t: int) -> Tensor:
    return ((1 - ALPHAS[t]) / ALPHAS[t]).sqrt()


def sigmas_of(t: int) -> Tensor:
    """Returns the sigma of timestep `t`, once per row, (B,). The samplers of k-diffusion pass this to the wrapper."""
    return sigma_at(t).repeat(SHAPE[0])


def timesteps_of(t: int) -> Tensor:
    """Returns timestep `t`, once per row, (B,). DDIM, PLMS and UniPC pass this to the wrapper."""
    return torch.full((SHAPE[0],), t, dtype=torch.float64)


Wrapper = tuple[Callable[[Model], Any], Callable[[int], Tensor]]
EPS: Wrapper = (external.CompVisDenoiser, sigmas_of)
V: Wrapper = (external.CompVisVDenoiser, sigmas_of)
EPS_T: Wrapper = (Timesteps, timesteps_of)
V_T: Wrapper = (TimestepsV, timesteps_of)
LCM: Wrapper = (Consistency, sigmas_of)
WRAPPERS = pytest.mark.parametrize("wrapper", [EPS, V, EPS_T, V_T, LCM], ids=["eps", "v", "eps t", "v t", "lcm"])
LEVELS = pytest.mark.parametrize("t", TIMESTEPS)


def latent(t: int, wrapper: Wrapper) -> Tensor:
    """Returns a latent with the noise of timestep `t`, scaled as by the samplers that use `wrapper`.

    With wrappers that receive a sigma, x is signal + sigma noise. With wrappers that receive a timestep, this sum is
    multiplied by sqrt(alphas_cumprod).
    """
    clean, noise = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(t))
    x = clean + sigma_at(t) * noise
    return x if wrapper[1] is sigmas_of else x * ALPHAS[t].sqrt()


def blur(x: Tensor) -> Tensor:
    return blur_for_dilation(x, 2, 0.8)


def dilated_prediction(model: Model, wrapper: Wrapper, x: Tensor, t: int) -> Tensor:
    """Returns the fused prediction for x at timestep `t` if only dilated views are evaluated."""

    def denoise(evaluate: Any, x: Tensor, correction: Tensor, batches: Any, copies: int) -> Tensor:
        return fuse(evaluate, x, [], dilated_views(SHAPE[2:], 2), 1.0, blur, correction, batches, copies)

    run: Any = SimpleNamespace(denoise=denoise)
    parts = StageParts(None, run, None, ViewBatches(), Frame((96, 128)), lambda cells: None)
    fused = FusedModel(wrapper[0](model), parts)
    return fused(x, wrapper[1](t), {"c_crossattn": [torch.zeros(SHAPE[0], 3, 4)]})


def close(a: Tensor, b: Tensor) -> None:
    """Asserts that two tensors are nearly equal. The fusion sums in float32, which limits the precision."""
    torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-5, atol=1e-5 * float(b.abs().max()))


@WRAPPERS
@LEVELS
def test_a_prediction_for_the_blurred_latent_is_applied_to_the_sharp_latent(wrapper: Wrapper, t: int) -> None:
    model, x = Model(), latent(t, wrapper)
    made = dilated_prediction(model, wrapper, x, t)
    plain = wrapper[0](model)
    plain(blur(x), wrapper[1](t), cond={})
    model.fixed_output = model.last_output
    close(made, plain(x, wrapper[1](t), cond={}))


@LEVELS
@pytest.mark.parametrize(("sigma_wrapper", "timestep_wrapper"), [(EPS, EPS_T), (V, V_T)], ids=["eps", "v"])
def test_sigma_wrappers_and_timestep_wrappers_predict_the_same_noise(
    sigma_wrapper: Wrapper, timestep_wrapper: Wrapper, t: int
) -> None:
    """The test compares the noise, because the noise is more precise than the clean latent at high noise levels.

    At these levels, the clean latent is a small difference of large numbers.
    """
    alpha, x = ALPHAS[t], latent(t, sigma_wrapper)
    denoised = dilated_prediction(Model(), sigma_wrapper, x, t)
    eps = dilated_prediction(Model(), timestep_wrapper, x * alpha.sqrt(), t)
    close((x - denoised) / sigma_at(t), eps)


@LEVELS
def test_the_dilated_prediction_removes_the_noise_that_the_model_predicts_from_the_blurred_latent(t: int) -> None:
    """An eps model predicts the noise from the blurred latent. A v model predicts v from the blurred latent.

    With a v model, the noise is sqrt(alpha) v + sqrt(1 - alpha) z, where z is the sharp latent times sqrt(alpha).
    """
    alpha, x, model = ALPHAS[t], latent(t, EPS), Model()
    eps = (x - dilated_prediction(model, EPS, x, t)) / sigma_at(t)
    close(eps, model.apply_model(blur(x) * alpha.sqrt(), timesteps_of(t), {}))
    eps = (x - dilated_prediction(model, V, x, t)) / sigma_at(t)
    v = model.apply_model(blur(x) * alpha.sqrt(), timesteps_of(t), {})
    close(eps, alpha.sqrt() * v + (1 - alpha).sqrt() * (x * alpha.sqrt()))


def host_class(folder: str, file: str, name: str, **names: Any) -> Any:
    """Returns a class of the webui without importing its module, which would load the whole webui.

    `names` are the global names that the class uses, except torch.
    """
    source = (Path(folder) / "modules" / file).read_text(encoding="utf-8")
    body: Sequence[ast.stmt] = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == name]
    scope = {"torch": torch, **names}
    exec(compile(ast.Module(list(body), []), file, "exec"), scope)
    return scope[name]


@pytest.mark.webui
@LEVELS
def test_the_imitated_wrappers_equal_the_wrappers_of_the_webui(t: int, request: pytest.FixtureRequest) -> None:
    """The webui's wrapper for LCM rounds the noise level to one of 50 timesteps, but the imitation does not.

    For LCM, the test therefore checks the correction with the webui's own wrapper.
    """
    folder = request.config.getoption("--webui")
    if not folder:
        pytest.skip("no webui: use --webui DIR or set SD_WEBUI_DIR")
    file = "sd_samplers_timesteps.py"
    eps_t = (host_class(folder, file, "CompVisTimestepsDenoiser"), timesteps_of)
    v_t = (host_class(folder, file, "CompVisTimestepsVDenoiser"), timesteps_of)
    for real, double in ((eps_t, EPS_T), (v_t, V_T)):
        x = latent(t, real)
        close(dilated_prediction(Model(), real, x, t), dilated_prediction(Model(), double, x, t))
    base = external.DiscreteEpsDDPMDenoiser
    lcm = host_class(
        folder, "sd_samplers_lcm.py", "LCMCompVisDenoiser", DiscreteEpsDDPMDenoiser=base, utils=external.utils
    )
    model, x = Model(), latent(t, LCM)
    made = dilated_prediction(model, (lcm, sigmas_of), x, t)
    plain = lcm(model)
    plain(blur(x), sigmas_of(t), cond={})
    model.fixed_output = model.last_output
    close(made, plain(x, sigmas_of(t), cond={}))


@WRAPPERS
def test_each_row_has_the_correction_of_its_noise_level(wrapper: Wrapper) -> None:
    inner = wrapper[0](Model())
    levels = torch.cat([wrapper[1](t)[:1] for t in TIMESTEPS])
    made = input_derivative(inner, levels)
    assert made.shape == (len(TIMESTEPS), 1, 1, 1)
    for i, t in enumerate(TIMESTEPS):
        torch.testing.assert_close(made[i : i + 1], input_derivative(inner, wrapper[1](t)[:1]))
