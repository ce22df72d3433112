"""Opens the sessions of a model on a provider, one on each device, and checks each with the golden inputs."""

import logging
from dataclasses import dataclass

from server.artifact import Artifact
from server.concurrency.stop_signal import StopSignal
from server.config.settings import Settings
from server.errors import BadArtifact, ProviderUnavailable
from server.runtime.golden_check import Parity, check_parity
from server.runtime.open import open_session
from server.runtime.providers import ProviderChoice, cpu_has_bf16
from server.runtime.session import Session

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedSession:
    """A session, and its errors against PyTorch."""

    session: Session
    parity: Parity


def open_sessions(
    artifact: Artifact, choice: ProviderChoice, settings: Settings, *, stop: StopSignal
) -> list[CheckedSession]:
    """Open the sessions. Raises BadArtifact or ProviderUnavailable with the reason, and NotReady after a stop."""
    if choice.provider == "openvino":
        return [_open_openvino(artifact, choice, settings)]
    has_cache = artifact.manifest.HasField("cache")  # then decode steps are captured
    sessions = []
    for device in choice.devices:
        stop.check()
        sessions.append(
            _checked(open_session(artifact, choice, settings, device=device, enable_cuda_graph=has_cache), artifact)
        )
    return sessions


def _open_openvino(artifact: Artifact, choice: ProviderChoice, settings: Settings) -> CheckedSession:
    """OpenVINO computes graphs in fp32 in bf16 where that is faster and within the tolerance."""
    if artifact.manifest.HasField("cache"):  # OpenVINO passes lengths out of range to GroupQueryAttention
        raise ProviderUnavailable(
            f"{artifact.name}: found provider openvino, expected cpu or cuda: generation over a cache does not run on "
            "OpenVINO (--models says which models to serve)"
        )
    if artifact.graph(choice.target).precision == "fp32" and cpu_has_bf16():
        try:
            return _checked(open_session(artifact, choice, settings, precision="bf16"), artifact)
        except BadArtifact as error:
            log.warning("%s; computing in fp32 instead", error)
    return _checked(open_session(artifact, choice, settings), artifact)


def _checked(session: Session, artifact: Artifact) -> CheckedSession:
    return CheckedSession(session, check_parity(session, artifact))
