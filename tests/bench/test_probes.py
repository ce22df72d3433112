"""`python -m tests.bench.probes` works, and each of many simultaneous probes is answered."""

import pytest

from tests.bench.probes import main
from tests.serving import Served


@pytest.mark.large
def test_each_probe_is_answered(server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--server", f"127.0.0.1:{server.http_port}", "--count", "500", "--rounds", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["500 probes of /livez"] * 2
