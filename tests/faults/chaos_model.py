"""A model whose input says what it does: it answers, takes its time, raises, or ends the process.

Each row is `[number, action, amount]`. Every start of a row with a number above 0 is noted in a file, by this
process, so starts are counted by nobody's word but the model's own. Warming up runs rows of zeros.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ANSWER, SLEEP, RAISE, KILL, KILL_ONCE = range(5)

Rows = npt.NDArray[Any]


class Model:
    """Answers `[number, process id]` for each row."""

    def __init__(self, folder: Path, parameters: Mapping[str, Any]) -> None:
        self._starts = Path(parameters["starts"])

    def run(self, inputs: dict[str, Rows]) -> dict[str, Rows]:
        """Do what each row says, in order; the rows of a batch live and die together."""
        rows = inputs["x"]
        known = set(self._starts.read_text().splitlines()) if self._starts.exists() else set()
        with self._starts.open("a") as starts:
            starts.writelines(f"{int(number)}\n" for number in rows[:, 0] if number > 0)
        for number, action, amount in rows:
            self._act(int(action), float(amount), started_before=str(int(number)) in known)
        pid = np.full(len(rows), os.getpid(), dtype=np.float64)
        return {"y": np.stack([rows[:, 0], pid], axis=1)}

    def _act(self, action: int, amount: float, *, started_before: bool) -> None:
        if action == SLEEP:
            time.sleep(amount)
        elif action == RAISE:
            raise ValueError("this row raises")
        elif action == KILL or (action == KILL_ONCE and not started_before):
            os._exit(9)
