"""Stand-in: the list of samplers."""

from typing import Any

from modules import sd_samplers_kdiffusion, sd_samplers_timesteps
from modules.sd_samplers_common import Sampler, SamplerData

all_samplers = [*sd_samplers_kdiffusion.samplers_data_k_diffusion, *sd_samplers_timesteps.samplers_data_timesteps]
all_samplers_map = {data.name: data for data in all_samplers}


def find_sampler_config(name: str | None) -> SamplerData | None:
    """Returns the entry of a sampler, or None if the name is unknown. Without a name, returns the first entry."""
    return all_samplers[0] if name is None else all_samplers_map.get(name)


def create_sampler(name: str | None, model: Any) -> Sampler:
    """Creates a new sampler. Raises ValueError if the name is unknown."""
    config = find_sampler_config(name)
    if config is None:
        raise ValueError(f"there is no sampler {name!r}")
    sampler = config.constructor(model)
    sampler.config = config
    return sampler
