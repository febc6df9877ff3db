"""Evaluates the model of AUTOMATIC1111's webui on views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lib_demofusion.host.backends.interface import StageParts
from lib_demofusion.host.backends.webui_controlnet import Hints
from lib_demofusion.method.conditioning import Cond, cond_for_views, size_vectors
from lib_demofusion.method.filters import for_preview
from lib_demofusion.method.views import View


class FusedModel:
    """Replaces the wrapper through which CFGDenoiser calls the model, and evaluates the model on views.

    `inner` is the replaced wrapper. Attributes that this class does not define are read from `inner`, such as `sigmas`
    and `sigma_to_t`.
    """

    def __init__(self, inner: Any, parts: StageParts, hints: Hints | None = None):
        self.inner = inner
        self.images = 0
        """Number of images B if the rows of the current call repeat B images, else 0 (see `webui.repeated_images`)."""
        self.batch = 0
        """Number of images in the sampler's x."""
        self._parts = parts
        self._hints = hints or Hints()
        self._vectors = size_vectors(inner.inner_model, parts.frame)

    def __call__(self, x: Tensor, level: Tensor, cond: Cond, **kwargs: Any) -> Tensor:
        """Returns the fused prediction for x (N, C, H, W), the rows of all conds and unconds.

        `level` (N,) is the noise level of each row. It is a timestep if `inner` is the wrapper of a timestep sampler,
        such as DDIM, and a sigma otherwise. Raises RuntimeError if an extension needs calls with exactly one cond and
        one uncond per image, and this call has other rows.
        """
        size = (x.shape[-2], x.shape[-1])
        if self._parts.separate_calls_error and len(x) != 2 * self.batch:
            raise RuntimeError(self._parts.separate_calls_error)

        def evaluate(crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
            self._parts.before_batch(crops[:, 0].numel() / len(x))
            view_cond = cond_for_views(cond, views, rows, size, (crops.shape[-2], crops.shape[-1]))
            if self._vectors is not None and "vector" in cond:
                view_cond["vector"] = self._vectors.for_views(cond["vector"][rows], views)
            with self._hints.for_views(views, len(level[rows])):
                return self.inner(crops, level[rows].repeat(len(views)), cond=view_cond, **kwargs)

        copies = len(x) // self.images if self.images and len(x) % self.images == 0 else 1
        correction = input_derivative(self.inner, level)
        return self._parts.run.denoise(evaluate, x, correction, self._parts.batches, copies)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def input_derivative(inner: Any, level: Tensor) -> Tensor:
    """Returns the derivative (N, 1, 1, 1) of the result of `inner` with respect to x, for a fixed output of the model.

    The model predicts dilated views from the blurred latent, but the sampler applies the prediction to the latent x
    without blur. The fusion corrects this: it adds the product of this derivative and (x - blur(x)) to the prediction.

    The wrappers of k-diffusion return denoised. The derivative is 1 for eps models and c_skip for v models. For
    the sampler LCM, it is the sum of the c_skip and c_out in `get_scaled_out`. The wrappers of the timestep samplers
    return eps. Their derivative is 0 for eps models and sqrt(1 - a_t) for v models, where a_t is the cumulative product
    of the alphas at timestep t.
    """
    one = torch.ones(len(level), 1, 1, 1, device=level.device, dtype=level.dtype)
    if hasattr(inner, "predict_eps_from_z_and_v"):
        return inner.predict_eps_from_z_and_v(one, level, torch.zeros_like(one))
    if hasattr(inner, "get_scaled_out"):
        return inner.get_scaled_out(level, one, one)
    if not hasattr(inner, "get_scalings"):
        return torch.zeros_like(one)
    scalings = inner.get_scalings(level)
    return one if len(scalings) == 2 else scalings[0].reshape(-1, 1, 1, 1)


def attach(
    denoiser: Any,
    parts: StageParts,
    repeated_images: Callable[[type, Tensor, Any], int],
    hints: Hints | None = None,
) -> None:
    """Makes `denoiser`, the CFGDenoiser of the stage's own sampler, evaluate the model on views.

    `repeated_images` is `webui.repeated_images`. The denoiser gets a new class, a subclass of its previous class. If
    another extension has set the previous class, the methods of that class still run.

    `inner_model` is a property, because the webui creates a new wrapper of the model when the checkpoint changes. The
    property then creates a new FusedModel.
    """
    cls = type(denoiser)

    class StageDenoiser(cls):  # type: ignore[misc, valid-type]
        @property
        def inner_model(self) -> FusedModel:
            inner = cls.inner_model.fget(self)
            fused = self.__dict__.get("fused_model")
            if fused is None or fused.inner is not inner:
                fused = self.__dict__["fused_model"] = FusedModel(inner, parts, hints)
            fused.images, fused.batch = self.__dict__.get("images", 0), self.__dict__.get("batch", 0)
            return fused

        def forward(self, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            parts.run.before_call(x, sigma[0])
            self.batch = len(x)
            self.images = repeated_images(cls, x, kwargs.get("cond"))
            return super().forward(x, sigma, *args, **kwargs)

        def get_pred_x0(self, *args: Any) -> Tensor:
            """Returns the latent for the live preview, reduced to the size of a preview."""
            return for_preview(super().get_pred_x0(*args))

    denoiser.__class__ = StageDenoiser
