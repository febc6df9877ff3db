"""Evaluates the UNet of Forge's family on views.

In Forge's family, a function of the webui joins conds and unconds in one batch and calls the UNet. In Forge, this
function is `calc_cond_uncond_batch` in backend/sampling/sampling_function.py. If the patched UNet has a wrapper in its
option `model_function_wrapper`, the function calls the wrapper instead. A stage therefore sets a wrapper that calls the
UNet on batches of views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lib_demofusion.host.backends.forge_controlnet import ViewControl
from lib_demofusion.host.backends.interface import StageParts
from lib_demofusion.method.conditioning import CROP, SIZES, Frame, SizeVectors, cond_for_views, size_vectors
from lib_demofusion.method.views import View

Apply = Callable[..., Tensor]

SIZED = ("original_size_as_tuple", CROP, "target_size_as_tuple")
"""The order of the sizes and the crop in SDXL's vector (backend/diffusion_engine/sdxl.py)."""

CHANNELS = 256
"""Number of columns of SDXL's vector that contain the embedding of one number."""


class FusedUnet:
    """The wrapper that evaluates the UNet on views of a large latent and fuses the predictions.

    `predictor` is described in `forge.predictor_of`. `vectors` writes the sizes and crops of views into SDXL's vector.
    `control` runs the control models on batches of views. `inner` is the wrapper that another extension has set before.
    This object calls it for each batch of views. `vectors`, `control` and `inner` can be None.
    """

    def __init__(
        self,
        parts: StageParts,
        predictor: Any,
        vectors: SizeVectors | None,
        control: ViewControl | None,
        inner: Any = None,
    ):
        self._parts = parts
        self._predictor = predictor
        self._vectors = vectors
        self._control = control
        self._inner = inner

    def __call__(self, apply_model: Apply, args: Mapping[str, Any]) -> Tensor:
        """Returns the fused prediction of the clean latent for all rows of `args["input"]`, the conds and unconds.

        `args["input"]` and the result have the shape that the webui uses (see `LatentForm`). Raises RuntimeError if an
        extension needs calls with exactly one cond and one uncond per image, and this call does not have two chunks
        (see `marks_of`).
        """
        form, sigma, marks = self._parts.form, args["timestep"], args["cond_or_uncond"]
        x = form.to_method(args["input"])
        c = {key: value for key, value in args["c"].items() if key not in ("control", "control_model")}
        options = c.pop("transformer_options", {})
        size = (x.shape[-2], x.shape[-1])
        if self._parts.separate_calls_error and len(marks) != 2:
            raise RuntimeError(self._parts.separate_calls_error)

        def evaluate(crops: Tensor, views: Sequence[View], rows: slice) -> Tensor:
            self._parts.before_batch(crops[:, 0].numel() / len(x))
            levels = sigma[rows].repeat(len(views))
            cond = cond_for_views(c, views, rows, size, (crops.shape[-2], crops.shape[-1]))
            if self._vectors is not None and "y" in c:
                cond["y"] = self._vectors.for_views(c["y"][rows], views)
            chunks = marks_of(marks, len(x), rows) * len(views)
            cond["transformer_options"] = options_for(options, chunks, levels)
            if self._control is not None:
                self._control.add_to(cond, crops, levels, views, rows)
            shown = form.to_host(crops)
            if self._inner is None:
                return form.to_method(apply_model(shown, levels, **cond))
            view_args = {**args, "input": shown, "timestep": levels, "c": cond, "cond_or_uncond": chunks}
            return form.to_method(self._inner(apply_model, view_args))

        correction = input_derivative(self._predictor, sigma)
        return form.to_host(self._parts.run.denoise(evaluate, x, correction, self._parts.batches, len(marks)))


def input_derivative(predictor: Any, sigma: Tensor) -> Tensor:
    """Returns the derivative (N, 1, 1, 1) of the prediction with respect to the input, for a fixed output of the UNet.

    The model predicts dilated views from the blurred latent, but the sampler applies the prediction to the latent x
    without blur. The fusion corrects this: it adds the product of this derivative and (x - blur(x)) to the prediction.

    For a fixed output of the UNet, the prediction is an affine function of the input. The derivative is therefore the
    prediction for an input of 1 and a UNet output of 0.
    """
    one = torch.ones(len(sigma), 1, 1, 1, device=sigma.device, dtype=sigma.dtype)
    share: Tensor = predictor.calculate_denoised(sigma, torch.zeros_like(one), one)
    return share


def marks_of(marks: Sequence[int], rows: int, chosen: slice) -> list[int]:
    """Returns the marks of the rows `chosen` of a model call with `rows` rows.

    The webui divides the rows of a model call into chunks. A chunk is a cond or the uncond of all images, with one row
    per image. `marks` has one mark for each chunk: 0 for a cond, 1 for an uncond. If `chosen` selects all rows, the
    result is `marks`. Otherwise, the result has one mark for each chosen row.
    """
    each = rows // len(marks)
    if chosen == slice(0, rows):
        return list(marks)
    return [marks[row // each] for row in range(rows)[chosen]]


def options_for(options: Mapping[str, Any], chunks: Sequence[int], levels: Tensor) -> dict[str, Any]:
    """Returns the transformer options for a batch of views. Patches of the UNet read these options.

    `options` are the transformer options that the webui made for the whole latent. `chunks` has one mark for each chunk
    of the batch (see `marks_of`). `levels` (N,) are the noise levels of all rows of the batch.
    """
    each = len(levels) // len(chunks)
    by_row = [mark for mark in chunks for _ in range(each)]
    made = {**options, "cond_or_uncond": list(chunks), "sigmas": levels[:each]}
    if "cond_mark" in options:
        made["cond_mark"] = torch.tensor(by_row, dtype=torch.float32).to(levels)
    if "cond_indices" in options:
        made["cond_indices"] = [row for row, mark in enumerate(by_row) if mark == 0]
        made["uncond_indices"] = [row for row, mark in enumerate(by_row) if mark != 0]
    if "uuids" in options:
        known = dict(zip(options["cond_or_uncond"], options["uuids"]))
        made["uuids"] = [known[mark] for mark in chunks]
    return made


class _NumberEmbedder:
    """Embeds pairs of numbers with the webui's embedder, which embeds single numbers.

    `input_key` is the name of the pair, such as "target_size_as_tuple". SizeVectors reads it.
    """

    outdim = CHANNELS

    def __init__(self, embedder: Any, input_key: str):
        self._embedder = embedder
        self.input_key = input_key

    def __call__(self, numbers: Tensor) -> Tensor:
        """Embeds `numbers` (n, k). Each row of the result (n, k * 256) contains the k embeddings of one row."""
        embedded: Tensor = self._embedder(numbers.flatten())
        return embedded.reshape(len(numbers), -1)


def vectors_of(model: Any, frame: Frame, sized: bool) -> SizeVectors | None:
    """Returns the SizeVectors of a loaded model, or None if the model does not receive sizes.

    `sized` is the attribute `Family.sized` of its family.
    """
    embedder = getattr(model, "embedder", None)
    if embedder is None or not sized:
        return size_vectors(model, frame)
    assert set(SIZED) == {CROP, *SIZES}
    return SizeVectors([_NumberEmbedder(embedder, key) for key in SIZED], frame)
