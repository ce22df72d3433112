"""Opens the sessions of a model on a provider, one on each device, and checks each with the golden inputs."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from server.artifact import Artifact
from server.concurrency.stop_signal import StopSignal
from server.config.settings import Settings
from server.errors import BadArtifact, ProviderUnavailable
from server.runtime.golden_check import Parity, check_parity
from server.runtime.open import OPENVINO_PRECISIONS, open_session
from server.runtime.providers import ProviderChoice, cpu_has_bf16
from server.runtime.session import Session

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedSession:
    """A session, and its errors against PyTorch."""

    session: Session
    parity: Parity


def open_sessions(
    artifact: Artifact, choice: ProviderChoice, settings: Settings, *, graph_precision: str = "", stop: StopSignal
) -> list[CheckedSession]:
    """Open the sessions, of the default graph or of that in `graph_precision`.

    Raises BadArtifact or ProviderUnavailable with the reason, and NotReady after a stop.
    """
    if choice.provider == "openvino":
        return [_open_openvino(artifact, choice, settings, graph_precision)]
    sessions = []
    for device in choice.devices:
        stop.check()
        session = open_unchecked(artifact, choice, settings, device=device, graph_precision=graph_precision)
        sessions.append(check_session(session, artifact))
    return sessions


def check_session(session: Session, artifact: Artifact) -> CheckedSession:
    """Run the golden inputs. Raises BadArtifact if the outputs are out of tolerance."""
    return CheckedSession(session, check_parity(session, artifact))


def open_unchecked(
    artifact: Artifact,
    choice: ProviderChoice,
    settings: Settings,
    *,
    device: int = 0,
    graph_precision: str = "",
    precision: str | None = None,
    config: Sequence[tuple[str, str]] = (),
) -> Session:
    """Open one session as `open_session` does. Raises BadArtifact or ProviderUnavailable."""
    has_cache = artifact.manifest.HasField("cache")  # then decode steps are captured
    if choice.provider == "openvino":
        _check_openvino(artifact, artifact.graph(choice.target, graph_precision).precision)
    return open_session(
        artifact,
        choice,
        settings,
        device=device,
        graph_precision=graph_precision,
        precision=precision,
        config=config,
        enable_cuda_graph=has_cache,
    )


def _check_openvino(artifact: Artifact, graph_precision: str) -> None:
    """Raise ProviderUnavailable for models and graphs that do not run on OpenVINO."""
    if artifact.manifest.HasField("cache"):  # OpenVINO passes lengths out of range to GroupQueryAttention
        raise ProviderUnavailable(
            f"{artifact.name}: found provider openvino, expected cpu or cuda: generation over a cache does not run on "
            "OpenVINO (--models says which models to serve)"
        )
    if graph_precision not in OPENVINO_PRECISIONS:
        raise ProviderUnavailable(
            f"{artifact.name}: found provider openvino and a graph in {graph_precision}, expected cpu: OpenVINO runs "
            "graphs in fp32, int8-weights and int4-weights"
        )


def _open_openvino(
    artifact: Artifact, choice: ProviderChoice, settings: Settings, graph_precision: str
) -> CheckedSession:
    """OpenVINO computes graphs in fp32 in bf16 where that is faster and within the tolerance.

    Where the settings name fp32, it computes in fp32.
    """
    if not graph_precision and artifact.graph(choice.target).precision == "fp32" and cpu_has_bf16():
        try:
            return check_session(open_unchecked(artifact, choice, settings, precision="bf16"), artifact)
        except BadArtifact as error:
            log.warning("%s; computing in fp32 instead", error)
    return check_session(open_unchecked(artifact, choice, settings, graph_precision=graph_precision), artifact)
