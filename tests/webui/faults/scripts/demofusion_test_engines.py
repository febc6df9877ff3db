"""A test extension for Forge's family that reports how DemoFusion classifies models.

One route reports the family of the loaded model, and another route the family of every checkpoint file. A third route
creates each of the webui's engines without weights, and reports whether DemoFusion would run on it. An engine is the
webui's class for one kind of model.
"""

import collections
import inspect
import sys
from contextlib import suppress
from types import SimpleNamespace
from unittest import mock

from modules import script_callbacks

with suppress(ImportError):
    from backend.loader import possible_models
    from backend.modules.k_prediction import Prediction


def made(cls):
    """Creates an engine of the class `cls` without weights. The engine's UNet has only a noise schedule."""
    module = sys.modules[cls.__module__]
    kept = ("ForgeObjects", "ForgeDiffusionEngine", *(n for n in vars(module) if n.startswith("Prediction")))
    names = [n for n, v in vars(module).items() if inspect.isclass(v) and v.__module__ != cls.__module__]
    with mock.patch.multiple(module, **{name: mock.MagicMock() for name in names if name not in kept}):
        engine = cls(mock.MagicMock(sampling_settings={}), collections.defaultdict(mock.MagicMock))
        given = module.UnetPatcher.from_model.call_args.kwargs.get("k_predictor")
    predictor = given or Prediction(1.0, "epsilon", "linear", 0.00085, 0.012, 1000)
    engine.forge_objects = SimpleNamespace(unet=SimpleNamespace(model=SimpleNamespace(predictor=predictor)))
    return engine


def engines():
    """Maps the name of each engine class to whether DemoFusion runs on this kind of model."""
    from lib_demofusion.host.backends import host

    return {cls.__name__: host().family(made(cls)).refusal is None for cls in possible_models}


def family():
    """Returns the properties of the family that DemoFusion detects for the loaded model."""
    from modules import sd_models

    from lib_demofusion.host.backends import host

    found = host().family(sd_models.model_data.sd_model)
    facts = {name: getattr(found, name) for name in ("name", "flow", "unit", "refusal")}
    return {**facts, "other_axes": found.has_other_shape}


def files():
    """Maps each checkpoint file to the name of the family that DemoFusion detects without loading the checkpoint."""
    from modules import sd_models

    from lib_demofusion.host.backends.checkpoint_files import family_of_file

    found = {info.name: family_of_file(info.filename) for info in sd_models.checkpoints_list.values()}
    return {name: family and family.name for name, family in found.items()}


def add_route(demo, app):
    app.add_api_route("/demofusion-test/engines", engines, methods=["GET"])
    app.add_api_route("/demofusion-test/files", files, methods=["GET"])
    app.add_api_route("/demofusion-test/family", family, methods=["GET"])


if "possible_models" in globals():
    script_callbacks.on_app_started(add_route)
