"""What the webui shows beside its bar: the total of the bar on its console, and the live previews."""

from __future__ import annotations

from typing import Any

from modules import shared


class Console:
    """The total of the webui's bar on the console, which counts the sampler's callbacks.

    Every sampler counts in its own way, and a stage may be cut short: when a part ends, what was done takes the place
    of what was planned. The webui counts `of_base` steps for an iteration, whatever it runs.
    """

    def __init__(self, of_base: int, of_stages: int):
        self._planned = of_base, of_stages
        self._counted: int | None = None

    def announce(self, jobs: int, iterations: int) -> None:
        """Adds the stages' steps; where nobody has told of any, also those of the webui's own `jobs`."""
        if _bar() is None:
            shared.total_tqdm.updateTotal(self._planned[0] * jobs)
        self._counted = getattr(_bar(), "n", None)
        self._replace(-iterations * self._planned[1])

    def base_done(self) -> None:
        """Takes note that the webui's own passes of an iteration are done."""
        self._replace(self._planned[0])

    def stages_done(self) -> None:
        """Takes note that the stages of an iteration are done, or given up."""
        self._replace(self._planned[1])

    def _replace(self, planned: int) -> None:
        bar = _bar()
        if bar is not None and self._counted is not None:
            shared.total_tqdm.updateTotal(bar.total + bar.n - self._counted - planned)
            self._counted = bar.n


def _bar() -> Any:
    # there is no public way to read it
    return getattr(shared.total_tqdm, "_tqdm", None)


def begin_job() -> None:
    """Begins a job of the webui's without counting anew the steps to the next preview: a stage may have fewer.

    What is due by now waits for the stage's own first latent.
    """
    state = shared.state
    since = state.sampling_step + 1 - state.current_image_sampling_step
    # shows the finished image where previews are asked for at the end only
    state.nextjob()
    state.current_image_sampling_step, state.current_latent = -since, None
