"""The sessions that a model runs in: on the best provider that can run it, one for each device, and checked there."""

import logging

from server.artifact import Artifact
from server.errors import BadArtifact, ProviderUnavailable
from server.golden import Measured, measure
from server.providers import ProviderChoice, Providers, cpu_has_bf16
from server.session import Session, open_session
from server.settings import Settings

log = logging.getLogger(__name__)

CheckedSession = tuple[Session, Measured]


def open_sessions(artifact: Artifact, providers: Providers, settings: Settings) -> list[CheckedSession]:
    """A session on each device of the first provider that can run the model as it was exported.

    BadArtifact or ProviderUnavailable says why the last of them cannot. Why the others could not is in the log.
    """
    *better, last = providers.choices
    for choice, instead in zip(better, providers.choices[1:], strict=True):
        try:
            return _open(artifact, choice, settings)
        except (BadArtifact, ProviderUnavailable) as error:
            log.warning("%s; running on %s instead", error, instead.provider)
    return _open(artifact, last, settings)


def _open(artifact: Artifact, choice: ProviderChoice, settings: Settings) -> list[CheckedSession]:
    if choice.provider == "openvino":
        return [_open_openvino(artifact, choice, settings)]
    return [_checked(open_session(artifact, choice, settings, device=device), artifact) for device in choice.devices]


def _open_openvino(artifact: Artifact, choice: ProviderChoice, settings: Settings) -> CheckedSession:
    """OpenVINO computes in bf16 where that is fast and near enough to PyTorch; what is rounded stays as it is."""
    if artifact.manifest.task == "generate":  # there GroupQueryAttention is handed lengths that are out of range
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
