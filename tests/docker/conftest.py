"""What `make docker-test` prints at its end."""

import pytest

FACTS = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FACTS] = []


@pytest.fixture(scope="session")
def facts(pytestconfig: pytest.Config) -> list[str]:
    """Lines for the summary."""
    return pytestconfig.stash[FACTS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[FACTS]:
        terminalreporter.section("images")
        for line in config.stash[FACTS]:
            terminalreporter.line(line)
