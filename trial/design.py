"""Sets the autoencoder's first weights: a fixed linear encoder and a decoder that enlarges smoothly.

The layout normalises in 32 groups, here of three channels. A norm removes flat colour unless the group contains a
constant for comparison. Every group is therefore (signal, -signal, constant), so its mean does not depend on the
signal. Since silu(x) - silu(-x) = x, the pair passes the activation after the norm exactly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trial.autoencoder import Autoencoder, AutoencoderConfig, Decoder, Encoder, ResnetBlock

GROUP = 3
ENCODER_CONSTANT, DECODER_CONSTANT = 6.0, 3.0
LOG_VARIANCE = -12.0
# luma and two colour differences in rows over RGB
OPPONENT = ((0.40, 0.40, 0.20), (0.50, -0.50, 0.0), (0.25, 0.25, -0.50))


def _dirac(weight: float = 1.0) -> Tensor:
    kernel = torch.zeros(3, 3)
    kernel[1, 1] = weight
    return kernel


def _set_signal(conv: nn.Conv2d, signal: int, taps: dict[int, Tensor]) -> None:
    """Computes a signal and its negative from input channels. `taps` maps an input channel to its kernel."""
    rows = conv.weight[GROUP * signal : GROUP * signal + 2]
    rows.zero_()
    for channel, kernel in taps.items():
        rows[0, channel] = kernel
        rows[1, channel] = -kernel


def _set_constants(conv: nn.Conv2d, value: float) -> None:
    """Sets the third channel of every group to a constant."""
    conv.weight[GROUP - 1 :: GROUP] = 0.0
    conv.bias.zero_()
    conv.bias[GROUP - 1 :: GROUP] = value


def _linearise(norm: nn.GroupNorm, constant: float) -> None:
    """Cancels the norm's scale and shift for signals that are small compared with the constant."""
    scale = constant * 2.0**0.5 / 3.0
    norm.weight.fill_(scale)
    norm.bias.fill_(constant / 3.0)


def _read_signal(conv: nn.Conv2d, output: int, signal: int) -> None:
    """Computes an output channel from a signal after norm and activation."""
    conv.weight[output] = 0.0
    conv.weight[output, GROUP * signal], conv.weight[output, GROUP * signal + 1] = _dirac(), _dirac(-1.0)
    conv.bias[output] = 0.0


def _design_encoder(model: Autoencoder) -> None:
    """Sets the encoder's latents to 8 x 8 means of luma, two colour differences and a diagonal slope of luma."""
    encoder = model.encoder
    convs = [encoder.conv_in, *(stage["downsample"].conv for stage in encoder.down if "downsample" in stage)]
    for conv in convs:
        conv.weight.zero_()
        _set_constants(conv, ENCODER_CONSTANT)
    mean, slope = torch.zeros(3, 3), torch.zeros(3, 3)
    mean[:2, :2], slope[0, 0], slope[1, 1] = 0.25, -1.0, 1.0
    for signal, row in enumerate(OPPONENT):
        _set_signal(encoder.conv_in, signal, {rgb: _dirac(weight) for rgb, weight in enumerate(row)})
        for conv in convs[1:]:
            _set_signal(conv, signal, {GROUP * signal: mean})
    _set_signal(convs[-1], len(OPPONENT), {0: slope})
    _linearise(encoder.norm_out, ENCODER_CONSTANT)
    encoder.conv_out.weight.zero_()
    encoder.conv_out.bias.zero_()
    for output in range(4):
        _read_signal(encoder.conv_out, output, output)
    model.quant_conv.weight.copy_(torch.eye(8)[:, :, None, None])
    model.quant_conv.bias.copy_(torch.tensor([0.0] * 4 + [LOG_VARIANCE] * 4))
    model.post_quant_conv.weight.copy_(torch.eye(4)[:, :, None, None])
    model.post_quant_conv.bias.zero_()


@torch.no_grad()
def design_decoder(model: Autoencoder, to_rgb: Tensor, offset: Tensor | None = None) -> None:
    """Sets the decoder to enlarge red, green and blue with tent filters.

    They are to_rgb (3, z) times the latents plus offset (3,). All other signals start at random. Residual blocks return
    their input.
    """
    _still(model.decoder)
    decoder = model.decoder
    half = decoder.conv_in.weight[0::GROUP] * 0.5
    decoder.conv_in.weight[0::GROUP], decoder.conv_in.weight[1::GROUP] = half, -half
    _set_constants(decoder.conv_in, DECODER_CONSTANT)
    tent = torch.tensor([0.25, 0.5, 0.25])
    for rgb in range(3):
        _set_signal(decoder.conv_in, rgb, {z: _dirac(float(weight)) for z, weight in enumerate(to_rgb[rgb])})
        if offset is not None:
            decoder.conv_in.bias[GROUP * rgb] = offset[rgb]
            decoder.conv_in.bias[GROUP * rgb + 1] = -offset[rgb]
        _read_signal(decoder.conv_out, rgb, rgb)
    for conv in (stage["upsample"].conv for stage in decoder.up if "upsample" in stage):
        _set_constants(conv, DECODER_CONSTANT)
        for signal in range(conv.out_channels // GROUP):
            _set_signal(conv, signal, {GROUP * signal: tent[:, None] * tent})
    _linearise(decoder.norm_out, DECODER_CONSTANT)


def _still(half: Encoder | Decoder) -> None:
    """Makes the residual blocks and the attention of an encoder or decoder add nothing."""
    for module in half.modules():
        if isinstance(module, ResnetBlock):
            module.conv2.weight.zero_()
            module.conv2.bias.zero_()
    half.mid["attn_1"].proj_out.weight.zero_()
    half.mid["attn_1"].proj_out.bias.zero_()


def linear_latents(pictures: Tensor) -> Tensor:
    """Computes the designed encoder's output (B, 4, H / 8, W / 8) from (B, 3, H, W) in -1..1 without running it."""
    planes = torch.einsum("oc,bchw->bohw", torch.tensor(OPPONENT), pictures)
    quarter = F.avg_pool2d(planes[:, :1], 4)
    slope = quarter[:, :, 1::2, 1::2] - quarter[:, :, 0::2, 0::2]
    return torch.cat([F.avg_pool2d(planes, 8), slope], 1)


@torch.no_grad()
def fresh_model() -> Autoencoder:
    """Returns an autoencoder whose residual blocks return their input and whose output is a smooth enlargement."""
    model = Autoencoder(AutoencoderConfig())
    _still(model.encoder)
    _design_encoder(model)
    design_decoder(model, torch.linalg.inv(torch.tensor(OPPONENT)))
    return model
