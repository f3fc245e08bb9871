"""A tracker for Accelerate that writes the training log as one JSON object a line."""

import json
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, on_main_process

from ..hub.whole_files import whole_file


class JsonLinesTracker(GeneralTracker):
    """It appends every logged row to a file, `step` first, in the main process only."""

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
        """Remove the rows after `last_step`, from which a training goes on; 0 empties the log."""
        kept = [row for row in read_json_lines(self.path) if row["step"] <= last_step] if self.path.exists() else []
        with whole_file(self.path) as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in kept))

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a log, without a last line that a kill has cut short."""
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
