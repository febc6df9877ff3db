"""Collects the failures that the extension reports during a test, and compares them with the expected failures.

Users see failures on the page, in the infotext and on the console. The failures are collected from all three.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import stand_in  # noqa: F401 (adds the folders of the stand-in)
from modules import errors, infotext_utils, processing

from lib_demofusion.host.common.messages import STOPPED

PREFIX = "DemoFusion"
ERROR, NOTE = f"{PREFIX} error", f"{PREFIX} note"
GALLERY = f"{PREFIX}: the gallery shows"
"""The first words of the message about a very large image, of which the gallery shows a smaller copy.

The page shows this message, but the infotext does not contain it.
"""


class Reports(logging.Handler):
    """Collects the failures of one test. If a test causes failures on purpose, it passes their texts to `expect`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.failures: list[str] = []
        self.notes: list[str] = []
        self._expected: list[str] = []

    def expect(self, *texts: str) -> None:
        """Adds parts of the texts of expected failures or notes. The test fails if one of them is not reported."""
        self._expected += texts

    def emit(self, record: logging.LogRecord) -> None:
        """Collects a warning or an error that the extension logs to the console."""
        self.failures.append(f"console: {record.getMessage()}")

    def see_console(self, message: str) -> None:
        """Collects an error that the webui prints with `modules.errors.report`."""
        self.failures.append(f"console: {message}")

    def see_page(self, text: str) -> None:
        """Collects an error that a real page shows. `text` is the whole text below the images."""
        if ERROR in text:
            self.failures.append(f"page: {text[text.index(ERROR) :]}")

    def see(self, comments: str, infotexts: list[str]) -> None:
        """Collects the failures in the comments and the infotexts of a job. The page shows the comments.

        A comment of DemoFusion is a failure, unless it repeats a note of the infotexts or begins with GALLERY or
        STOPPED.
        """
        texts = [infotext_utils.parse_generation_parameters(text) for text in infotexts if text]
        notes = "; ".join(text[NOTE] for text in texts if NOTE in text)
        self.notes.append(notes)
        self.failures += [f"infotext: {text[ERROR]}" for text in texts if ERROR in text]
        for line in comments.splitlines():
            known = line.startswith((GALLERY, STOPPED)) or line.removeprefix(f"{PREFIX}: ") in notes
            if line.startswith(PREFIX) and not known:
                self.failures.append(f"page: {line}")

    def check(self) -> None:
        """Raises AssertionError if an unexpected failure was reported, or an expected text was not reported."""
        unexpected = [text for text in self.failures if not any(part in text for part in self._expected)]
        assert unexpected == [], "the test did not expect these failures"
        reported = [*self.failures, *self.notes]
        missing = [part for part in self._expected if not any(part in text for text in reported)]
        assert missing == [], "the test expected these failures or notes, but they were not reported"


@pytest.fixture(autouse=True, name="reported")
def reports_of_test() -> Iterator[Reports]:
    """Collects the failures of all jobs of a test, and calls `Reports.check` after the test."""
    reports = Reports()
    report, process_images = errors.report, processing.process_images

    def collecting_report(message: str, *, exc_info: bool = False) -> None:
        reports.see_console(message)
        report(message, exc_info=exc_info)

    def collecting_process(p: Any) -> Any:
        made = process_images(p)
        reports.see(made.comments, made.infotexts)
        return made

    logger = logging.getLogger(PREFIX)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errors, "report", collecting_report)
        patch.setattr(processing, "process_images", collecting_process)
        logger.addHandler(reports)
        yield reports
        logger.removeHandler(reports)
    reports.check()
