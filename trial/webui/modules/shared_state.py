"""Stand-in: the state of the running job for the page, and requests to stop it."""

import time
from typing import Any


class State:
    """The state that all parts of a job read and write."""

    def __init__(self) -> None:
        self.job_no = 0
        self.job_count = 0
        self.begin("")
        self.end()

    def begin(self, job: str = "(unknown)") -> None:
        """Resets the state. A job count of -1 means that it is not known yet."""
        self.job = job
        self.job_no = 0
        self.job_count = -1
        self.time_start = time.time()
        self.sampling_step = 0
        self.sampling_steps = 0
        self.current_latent: Any = None
        self.current_image: Any = None
        self.current_image_sampling_step = 0
        self.skipped = False
        self.interrupted = False
        self.stopping_generation = False
        self.textinfo: str | None = None

    def end(self) -> None:
        """Ends the job."""
        self.job = ""
        self.job_count = 0

    def nextjob(self) -> None:
        """Ends one part of the job."""
        self.job_no += 1
        self.sampling_step = 0
        self.current_image_sampling_step = 0

    def skip(self) -> None:
        """Asks to abandon this image."""
        self.skipped = True

    def interrupt(self) -> None:
        """Asks to stop now and keep the current result."""
        self.interrupted = True

    def progress(self) -> float:
        """Returns the completed share of the job, as the webui's page computes it."""
        if self.job_count <= 0:
            return 0.0
        share = self.sampling_step / self.sampling_steps if self.sampling_steps else 0.0
        return min((self.job_no + share) / self.job_count, 1.0)
