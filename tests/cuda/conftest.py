"""Stand-ins for the CUDA libraries, built once."""

from pathlib import Path

import pytest

from tests.cuda import stub_libraries


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for LD_LIBRARY_PATH with which a machine appears to have CUDA."""
    if reason := stub_libraries.missing():
        pytest.skip(f"no stand-ins for the CUDA libraries: {reason}")
    folder = tmp_path_factory.mktemp("cuda")
    stub_libraries.build(folder)
    return folder
