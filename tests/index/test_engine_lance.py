"""The engine in a folder: what all engines do, and what a folder can be asked."""

import pytest
from engine_suite import EngineSuite

lance = pytest.importorskip("polyvec.index.engines.lance")


class TestLance(EngineSuite):
    @pytest.fixture
    def kind(self):
        return lance.LanceEngine

    @pytest.fixture
    def where(self, tmp_path):
        return str(tmp_path / "index")
