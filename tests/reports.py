"""Collects the failures that are reported during a test, and compares them with the expected ones.

It reads them in all places where a user would see them: on the page, in the infotext and on the console.
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
"""The start of a comment that is no failure and that is not in the infotexts."""


class Reports(logging.Handler):
    """Collects the failures of one test. `expect` names the expected ones. Any other failure fails the test."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.failures: list[str] = []
        self.notes: list[str] = []
        self._expected: list[str] = []

    def expect(self, *texts: str) -> None:
        """Names expected failures by a part of their text. Each must be reported before the test ends."""
        self._expected += texts

    def emit(self, record: logging.LogRecord) -> None:
        """Collects a warning of the extension on the console."""
        self.failures.append(f"console: {record.getMessage()}")

    def see_console(self, message: str) -> None:
        """Collects an error that the host prints."""
        self.failures.append(f"console: {message}")

    def see_page(self, text: str) -> None:
        """Collects a failure that the page shows. `text` is the whole text under its images."""
        if ERROR in text:
            self.failures.append(f"page: {text[text.index(ERROR) :]}")

    def see(self, comments: str, infotexts: list[str]) -> None:
        """Collects the comments that a job shows under its images and the failures in their infotexts."""
        texts = [infotext_utils.parse_generation_parameters(text) for text in infotexts if text]
        notes = "; ".join(text[NOTE] for text in texts if NOTE in text)
        self.notes.append(notes)
        self.failures += [f"infotext: {text[ERROR]}" for text in texts if ERROR in text]
        for line in comments.splitlines():
            known = line.startswith((GALLERY, STOPPED)) or line.removeprefix(f"{PREFIX}: ") in notes
            if line.startswith(PREFIX) and not known:
                self.failures.append(f"page: {line}")

    def check(self) -> None:
        """Fails if a failure was not expected, or if an expected one was not reported."""
        unexpected = [text for text in self.failures if not any(part in text for part in self._expected)]
        assert unexpected == [], "the test does not name these failures"
        reported = [*self.failures, *self.notes]
        missing = [part for part in self._expected if not any(part in text for text in reported)]
        assert missing == [], "the test names failures that were not reported"


@pytest.fixture(autouse=True, name="reported")
def reports_of_test() -> Iterator[Reports]:
    """Collects the failures of the test's jobs. A failure without `expect` fails the test."""
    reports = Reports()
    report, process_images = errors.report, processing.process_images

    def noticed(message: str, *, exc_info: bool = False) -> None:
        reports.see_console(message)
        report(message, exc_info=exc_info)

    def looked_at(p: Any) -> Any:
        made = process_images(p)
        reports.see(made.comments, made.infotexts)
        return made

    logger = logging.getLogger(PREFIX)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errors, "report", noticed)
        patch.setattr(processing, "process_images", looked_at)
        logger.addHandler(reports)
        yield reports
        logger.removeHandler(reports)
    reports.check()
