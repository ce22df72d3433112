"""Whether this machine has an NVIDIA GPU, without any library of NVIDIA."""

from pathlib import Path


def has_nvidia_gpu(root: Path = Path("/")) -> bool:
    """Whether NVIDIA's driver runs here, or its devices were given to this container."""
    return (root / "proc/driver/nvidia/version").exists() or (root / "dev/nvidiactl").exists()
