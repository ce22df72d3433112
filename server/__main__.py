"""`python -m server`: read the settings, prepare the logs, serve, exit."""

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from server.config import cli
from server.config.settings import BadSetting, Settings
from server.errors import AffinityError
from server.host import standard_files
from server.observability import logs, native_lines

MISUSED, INTERRUPTED = 2, 130  # exit codes, as shells and argparse have them

log = logging.getLogger("server")


def main(argv: Sequence[str]) -> int:
    """Run the server. Returns the exit code: 0 after a requested stop, 1 if the server could not start.

    It is 2 if a setting is invalid.
    """
    as_json = cli.wants_json(argv, os.environ)
    logs.configure("info", "json" if as_json else "text")  # for errors of settings
    with native_lines.as_json(standard_files.STDERR) if as_json else nullcontext():
        try:
            settings = cli.parse(argv, os.environ)
        except BadSetting as error:
            log.error("%s; --help explains the settings", error)
            return MISUSED
        logs.configure(settings.log_level, settings.log_format)
        _report_ignored_variables()
        try:
            return _run(settings)
        except AffinityError as error:
            log.error("%s", error)
            return 1
        except KeyboardInterrupt:
            return INTERRUPTED
        except Exception:
            log.critical("the server ended because of a fault of its own", exc_info=True)
            return 1


def _run(settings: Settings) -> int:
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # otherwise each failed handshake is a line of the log
    import prometheus_client  # these imports take a second, and native code can write to stderr in them
    import uvloop

    from server.serving import serve

    gc.collect()
    gc.freeze()  # the modules are never garbage: a collection during a call does not look at them
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # omit the _created series
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings))
    return 0


def _report_ignored_variables() -> None:
    injected, unknown = cli.ignored_variables(os.environ)
    if injected:
        log.info("ignored, because they describe a Kubernetes service or a Docker link: %s", ", ".join(injected))
    if unknown:
        log.warning("ignored unknown environment variables: %s", ", ".join(unknown))


if __name__ == "__main__":
    sys.exit(standard_files.run(lambda: main(sys.argv[1:])))
