"""A training log of one JSON object a line, as one of Accelerate's trackers."""

import json
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, on_main_process

from ..hub.whole_files import whole_file


class JsonLinesTracker(GeneralTracker):
    """Appends what is logged to a file, `step` first; of the main process only."""

    name = "json_lines"
    requires_logging_directory = False

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    @property
    def tracker(self) -> Path:
        return self.path

    @on_main_process
    def cut(self, last_step: int) -> None:
        """Drop what was logged after `last_step`, to go on from there; 0 empties the log."""
        kept = [row for row in read_json_lines(self.path) if row["step"] <= last_step] if self.path.exists() else []
        with whole_file(self.path) as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in kept))

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; a last line that a kill has cut short is left out."""
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
