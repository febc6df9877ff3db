"""Stand-in: the list of samplers."""

from typing import Any

from modules import sd_samplers_common, sd_samplers_kdiffusion, sd_samplers_timesteps

all_samplers = [*sd_samplers_kdiffusion.samplers_data_k_diffusion, *sd_samplers_timesteps.samplers_data_timesteps]
all_samplers_map = {data.name: data for data in all_samplers}


def find_sampler_config(name: str | None) -> Any:
    """Returns the data of a sampler, or None if it is unknown. Without a name, returns the first."""
    return all_samplers[0] if name is None else all_samplers_map.get(name)


def create_sampler(name: str | None, model: Any) -> sd_samplers_common.Sampler:
    """Creates a sampler for the caller."""
    config = find_sampler_config(name)
    if config is None:
        raise ValueError(f"there is no sampler {name!r}")
    sampler = config.constructor(model)
    sampler.config = config
    return sampler
