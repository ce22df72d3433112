"""One line says what the server runs on, and what would be faster."""

from dataclasses import replace

import pytest

from server.host.processor import Processor
from server.runtime.summary import INTEL, Facts, instructions, summary

AMD = Processor("AMD EPYC", frozenset({"avx2", "avx512f", "avx512_vnni"}), "AuthenticAMD")
XEON = Processor("Intel Xeon", frozenset({"avx2", "avx512_vnni", "amx_int8"}), INTEL)
ON_AMD = Facts(providers={"cpu"}, cpu=AMD, cpus=2, requested="auto")
ON_INTEL = Facts(providers={"cpu"}, cpu=XEON, cpus=2, requested="auto", openvino_installed=True)
ON_GPU = Facts(providers={"cuda"}, cpu=XEON, cpus=8, requested="auto", devices=(0, 1), gpu_found=True)
UNUSED_GPU = replace(ON_GPU, providers={"cpu"})
EXPORT = "export with --target cpu=fp32,cpu=int8-dynamic"


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        (ON_AMD, "runs on cpu: AMD EPYC, 2 CPUs, AVX512-VNNI"),
        (
            replace(ON_AMD, only_fp32={"vit": "classify-image", "bert": "fill-mask"}),
            f"runs on cpu: AMD EPYC, 2 CPUs, AVX512-VNNI; faster: {EXPORT} (bert, vit)",
        ),
        (
            replace(
                ON_AMD, cpu=replace(AMD, instruction_sets=frozenset({"avx2"})), only_fp32={"bert": "fill-mask"}, cpus=1
            ),
            "runs on cpu: AMD EPYC, 1 CPU, AVX2",
        ),
        (
            replace(ON_AMD, cpu=Processor("aarch64", frozenset({"asimd"})), only_fp32={"bert": "fill-mask"}),
            "runs on cpu: aarch64, 2 CPUs",
        ),
        (
            replace(ON_AMD, only_fp32={"gpt": "generate", "bert": "fill-mask"}),
            f"runs on cpu: AMD EPYC, 2 CPUs, AVX512-VNNI; faster: {EXPORT} (bert), "
            "or export with --target cpu=fp32,cpu=int8-weights (gpt)",
        ),
        (ON_INTEL, "runs on cpu: Intel Xeon, 2 CPUs, AMX"),
        (
            replace(ON_INTEL, providers={"openvino", "cpu"}, only_fp32={"bert": "fill-mask"}),
            f"runs on cpu and openvino: Intel Xeon, 2 CPUs, AMX; faster: {EXPORT} (bert)",
        ),
        (
            replace(ON_INTEL, openvino_installed=False, only_fp32={"bert": "fill-mask"}),
            f"runs on cpu: Intel Xeon, 2 CPUs, AMX; faster: pip install onnxruntime-ep-openvino, or {EXPORT} (bert)",
        ),
        (
            replace(ON_INTEL, openvino_installed=False, requested="cpu"),  # openvino was not wanted
            "runs on cpu: Intel Xeon, 2 CPUs, AMX",
        ),
        (replace(ON_AMD, openvino_installed=False), "runs on cpu: AMD EPYC, 2 CPUs, AVX512-VNNI"),
        (ON_GPU, "runs on cuda: GPU 0, 1"),
        (
            replace(ON_GPU, providers={"cuda", "cpu"}, only_fp32={"bert": "fill-mask"}),
            "runs on cpu and cuda: Intel Xeon, 8 CPUs, AMX",
        ),
        (
            replace(UNUSED_GPU, requested="cpu"),
            "runs on cpu: Intel Xeon, 8 CPUs, AMX; a GPU was found, but --provider is cpu",
        ),
        (
            UNUSED_GPU,
            "runs on cpu: Intel Xeon, 8 CPUs, AMX; a GPU was found, but no model runs on it",
        ),
    ],
)
def test_the_line_follows_from_the_facts(facts: Facts, line: str) -> None:
    assert summary(facts) == (line, False)


def test_a_gpu_that_cannot_be_used_is_a_warning_with_the_reason() -> None:
    line, is_warning = summary(replace(UNUSED_GPU, cuda_problem="libcudnn.so.9 is missing", openvino_installed=False))
    assert is_warning
    assert line == (
        "runs on cpu: Intel Xeon, 8 CPUs, AMX; "
        "a GPU was found, but provider cuda cannot run here: libcudnn.so.9 is missing"
    )


def test_without_models_there_is_a_line_too() -> None:
    assert summary(replace(ON_AMD, providers=())) == ("runs on nothing yet: AMD EPYC, 2 CPUs, AVX512-VNNI", False)


@pytest.mark.parametrize(
    ("flags", "best"),
    [
        ("avx2 avx512f avx512_vnni amx_tile amx_bf16", "AMX"),
        ("avx2 avx512f avx512_vnni", "AVX512-VNNI"),
        ("avx2 avx_vnni", "AVX-VNNI"),
        ("avx2 avx512f", "AVX512"),
        ("avx avx2", "AVX2"),
        ("sse4_2", ""),
        ("", ""),
    ],
)
def test_the_best_instructions_are_named(flags: str, best: str) -> None:
    assert instructions(Processor("any", frozenset(flags.split()))) == best
