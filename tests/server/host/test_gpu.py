"""A GPU is found by its driver or its device, without a library."""

from pathlib import Path

import pytest

from server.host.gpu import has_nvidia_gpu


@pytest.mark.parametrize("sign", ["proc/driver/nvidia/version", "dev/nvidiactl"])
def test_a_gpu_is_found_by_its_driver_or_its_device(tmp_path: Path, sign: str) -> None:
    assert not has_nvidia_gpu(tmp_path)
    (tmp_path / sign).parent.mkdir(parents=True)
    (tmp_path / sign).touch()
    assert has_nvidia_gpu(tmp_path)
