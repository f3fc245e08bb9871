from types import SimpleNamespace

import pytest
from fleet_of_machines import make_fleet, run


@pytest.fixture(scope="session")
def fleet(tmp_path_factory) -> SimpleNamespace:
    """Three machines, fitted by `na-ssl fleet fit`; tests do not change them."""
    pytest.importorskip("pyarrow")
    fleet = make_fleet(tmp_path_factory.mktemp("fleet"))
    fleet.fitted = fleet.folder / "fitted"
    assert run("fleet", "fit", "--machines", fleet.table, "--out", fleet.fitted, "--engine", "local") == 0
    return fleet
