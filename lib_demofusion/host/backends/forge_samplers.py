"""Refuses samplers of Forge's family that no stage can use, each with a reason. Their functions identify them."""

from __future__ import annotations

import inspect
from typing import Any

from modules import sd_samplers, shared

from lib_demofusion.method.flow_samplers import flow_problem, knows_flow
from lib_demofusion.method.step_gate import function_name, is_stochastic

FOR_FLOW = "the sampler %s: it is made for flow models, and this model is none; choose another sampler"


def problem(p: Any, flow: bool) -> str | None:
    """Returns why no stage can use the job's sampler, or None. `flow` is True for a flow model."""
    label = p.sampler_name
    if sd_samplers.find_sampler_config(label) is None:
        return None
    sampler = sd_samplers.create_sampler(label, p.sd_model)
    name = function_name(sampler.func)
    if not flow:
        return FOR_FLOW % label if name.endswith("_RF") else None
    parameters = inspect.signature(sampler.func).parameters
    churn = float(getattr(shared.opts, "s_churn", 0.0)) if "s_churn" in parameters else 0.0
    draws = is_stochastic(name, _eta(p, sampler) if "eta" in parameters else None, churn, "noise_sampler" in parameters)
    knows = knows_flow(sampler.func, p.sd_model.forge_objects.unet.model.predictor)
    return flow_problem(label, name, draws, knows, churn)


def _eta(p: Any, sampler: Any) -> float:
    """Returns the eta that the host will pass to the sampler (modules/sd_samplers_common.py, initialize)."""
    return float(p.eta if p.eta is not None else getattr(shared.opts, sampler.eta_option_field, 0.0))
