"""The short form of the soak: a minute of mixed load under random faults, with an exact ledger."""

from pathlib import Path

import pytest

from tests.faults.soak import run

pytestmark = pytest.mark.e2e


def test_a_minute_of_faults_breaks_no_promise(tmp_path: Path) -> None:
    ledger = run(tmp_path, minutes=1.0, seed=20)
    table = ledger.table(1.0, 20)
    assert len(ledger.jobs) > 10, table
    assert ledger.waited[200] > 100, table
    assert ledger.clean, table
