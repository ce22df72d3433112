"""Sessions run the exported graph on the requested provider."""

import shutil

import numpy as np
import onnxruntime
import pytest

from server.artifact import Artifact, read_artifact
from server.config.settings import Settings
from server.errors import BadArtifact, ProviderUnavailable
from server.runtime.cuda import PROBE, cuda_problem
from server.runtime.golden_check import check_parity
from server.runtime.io_binding import BoundSession
from server.runtime.open import open_session
from server.runtime.providers import ProviderChoice, cpu_has_bf16, find_providers

NAMES = ["tiny-bert", "tiny-classifier", "tiny-embedder", "tiny-gpt", "tiny-vit", "tiny-mixer"]
CPU = ProviderChoice("cpu")
HAS_CUDA = cuda_problem(0) is None


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_model_is_within_the_tolerance(artifacts, name, record_property):
    artifact = read_artifact(artifacts / name / "1")
    session = open_session(artifact, CPU, Settings())
    assert (session.provider, session.precision) == ("cpu", "fp32")
    measured = check_parity(session, artifact)
    record_property("maximum error / standard deviation", measured.maximum)
    assert measured.measure == "maximum"
    assert measured.error == measured.maximum <= measured.tolerance == 1e-4
    assert measured.cases >= 3


def test_a_graph_slightly_out_of_tolerance_is_refused(artifacts, monkeypatch):
    """The difference between an erf-GELU and a tanh-GELU: 8e-4 standard deviations."""
    artifact = read_artifact(artifacts / "tiny-gpt" / "1")
    cases = artifact.golden()
    deviation = np.std(np.concatenate([case.outputs["logits"].ravel() for case in cases]))
    cases[1].outputs["logits"][0, 0] += 8e-4 * deviation
    monkeypatch.setattr(Artifact, "golden", lambda self: cases)
    with pytest.raises(BadArtifact, match=r"found maximum 0.0008 standard deviations, expected at most 0.0001"):
        check_parity(open_session(artifact, CPU, Settings()), artifact)


def test_an_output_of_nan_is_refused(artifacts, monkeypatch):
    artifact = read_artifact(artifacts / "tiny-vit" / "1")
    cases = artifact.golden()
    cases[0].inputs["pixel_values"][0, 0, 0, 0] = np.nan
    monkeypatch.setattr(Artifact, "golden", lambda self: cases)
    with pytest.raises(BadArtifact, match="found maximum nan"):
        check_parity(open_session(artifact, CPU, Settings()), artifact)


def test_a_graph_that_does_not_load_is_refused(artifacts, tmp_path):
    artifact = read_artifact(shutil.copytree(artifacts / "tiny-vit" / "1", tmp_path / "tiny-vit" / "1"))
    artifact.path("cpu.onnx").write_bytes(b"no graph")
    with pytest.raises(BadArtifact, match=r"cpu.onnx: does not load on cpu"):
        open_session(artifact, CPU, Settings())


def test_a_session_uses_only_its_threads_which_sleep_between_runs(artifacts):
    session = open_session(read_artifact(artifacts / "tiny-vit" / "1"), CPU, Settings(threads=1))
    options = session.ort.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "tiny-gpt"])
def test_a_bound_session_gives_the_same_outputs_and_does_not_change_earlier_ones(artifacts, name):
    """As on CUDA: runs of the same shapes share memory for inputs, and only requested outputs are copied."""
    artifact = read_artifact(artifacts / name / "1")
    session = open_session(artifact, CPU, Settings())
    bound = BoundSession(session.ort, provider="cpu", precision="fp32")
    assert check_parity(bound, artifact) == check_parity(session, artifact)
    feeds = dict(artifact.golden()[0].inputs)
    name = "input_ids" if "input_ids" in feeds else "pixel_values"
    changed = feeds | {name: feeds[name][::-1].copy()}
    for outputs in (session.output_names, session.output_names[-1:]):
        first, second = bound.run(feeds, outputs), bound.run(changed, outputs)
        for found, given in ((first, feeds), (second, changed)):
            expected = session.run(given, outputs)
            assert list(found) == list(expected)
            assert all(np.array_equal(found[output], expected[output]) for output in outputs)


def test_a_bound_session_frees_the_least_recently_used_shapes(artifacts, monkeypatch):
    monkeypatch.setattr("server.runtime.io_binding.MAX_BOUND_SHAPES", 8)
    session = open_session(read_artifact(artifacts / "tiny-bert" / "1"), CPU, Settings(threads=1))
    bound = BoundSession(session.ort, provider="cpu", precision="fp32")
    for count in range(1, 80):
        feeds = {
            "input_ids": np.full((1, 1 + count % 60), 7),
            "position_ids": np.arange(1 + count % 60)[None],
            "lengths": np.array([1 + count % 60], np.int32),
            "token_type_ids": np.zeros((1, 1 + count % 60), np.int64),
            "selected": np.zeros(1 + count // 60, np.int64),
        }
        assert len(bound.run(feeds, ["logits"])["logits"]) == 1 + count // 60
    assert bound.shapes == 8


def test_the_memory_of_a_bound_session_is_limited(artifacts):
    session = open_session(read_artifact(artifacts / "tiny-vit" / "1"), CPU, Settings(threads=1))
    size = int(np.prod(session.ort.get_inputs()[0].shape[1:])) * 4
    bound = BoundSession(session.ort, provider="cpu", precision="fp32", max_bytes=6 * size)
    held = []
    for rows in (1, 2, 3, 1, 4, 1, 9, 2):
        pixels = {"pixel_values": np.zeros((rows, *session.ort.get_inputs()[0].shape[1:]), np.float32)}
        assert len(bound.run(pixels, ["logits"])["logits"]) == rows
        held.append(bound.shapes)
    assert held == [1, 2, 3, 3, 2, 2, 1, 1]  # 9 alone are more than it may hold: they run nevertheless


def test_the_cpu_can_always_be_chosen():
    assert find_providers(Settings(provider="cpu")).choices == (CPU,)


@pytest.mark.skipif(HAS_CUDA, reason="CUDA can be used here")
def test_auto_falls_back_and_says_why_but_a_provider_named_is_required(capfd):
    providers = find_providers(Settings())
    assert providers.choices[-1] == CPU
    assert providers.reason.startswith("provider cuda cannot run here: ")
    with pytest.raises(ProviderUnavailable, match="provider cuda cannot run here: "):
        find_providers(Settings(provider="cuda"))
    assert capfd.readouterr() == ("", "")  # the runtime would have filled a screen


@pytest.mark.skipif(HAS_CUDA, reason="CUDA can be used here")
def test_a_session_that_silently_fell_back_to_the_cpu_is_refused(artifacts):
    artifact = read_artifact(artifacts / "tiny-vit" / "1")
    artifact.manifest.graphs[0].target = "cuda"
    with pytest.raises(ProviderUnavailable, match="found provider cpu, expected cuda"):
        open_session(artifact, ProviderChoice("cuda"), Settings())


@pytest.mark.usefixtures("openvino")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_openvino_is_within_the_tolerance(artifacts, name, precision):
    artifact = read_artifact(artifacts / name / "1")
    (choice,) = find_providers(Settings(provider="openvino")).choices
    session = open_session(artifact, choice, Settings(), precision=precision)
    assert session.provider == "openvino"
    assert check_parity(session, artifact).error > 0


def test_the_probe_is_a_graph_that_doubles_a_number():
    session = onnxruntime.InferenceSession(PROBE, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.array([3], np.float32)})[0] == 6


@pytest.mark.parametrize(
    ("flags", "has"), [("fpu avx512_bf16", False), ("fpu amx_bf16 amx_tile", True), ("fpu avx2", False), (None, False)]
)
def test_bf16_is_detected_by_the_flags_of_the_cpu(flags, has, tmp_path):
    if flags is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc" / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")
    assert cpu_has_bf16(tmp_path) == has
