"""The sessions that a model runs in on a provider: one for each device, and checked there."""

import logging

from server.artifact import Artifact
from server.concurrency.stop_signal import StopSignal
from server.config.settings import Settings
from server.errors import BadArtifact, ProviderUnavailable
from server.runtime.golden_check import Measured, measure
from server.runtime.open import open_session
from server.runtime.providers import ProviderChoice, cpu_has_bf16
from server.runtime.session import Session

log = logging.getLogger(__name__)

CheckedSession = tuple[Session, Measured]


def open_sessions(
    artifact: Artifact, choice: ProviderChoice, settings: Settings, *, stop: StopSignal
) -> list[CheckedSession]:
    """BadArtifact or ProviderUnavailable says why the provider cannot run the model as it was exported."""
    if choice.provider == "openvino":
        return [_open_openvino(artifact, choice, settings)]
    has_cache = artifact.manifest.HasField("cache")  # its decode steps are captured
    sessions = []
    for device in choice.devices:
        stop.check()
        sessions.append(
            _checked(open_session(artifact, choice, settings, device=device, enable_cuda_graph=has_cache), artifact)
        )
    return sessions


def _open_openvino(artifact: Artifact, choice: ProviderChoice, settings: Settings) -> CheckedSession:
    """OpenVINO computes in bf16 where that is fast and near enough to PyTorch; what is rounded stays as it is."""
    if artifact.manifest.HasField("cache"):  # there GroupQueryAttention is handed lengths that are out of range
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
    return session, measure(session, artifact)
