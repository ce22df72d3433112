"""The kind of CPU, as Linux describes it on different machines."""

import os

import pytest

from server.host.processor import Processor, is_overloaded, physical_cores, read_processor

X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 7R13 Processor
flags\t\t: fpu sse2 avx2
bugs\t\t: sysret_ss_attrs

processor\t: 1
model name\t: AMD EPYC 7R13 Processor
flags\t\t: fpu sse2 avx2
"""
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd bf16\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (X86, Processor("AMD EPYC 7R13 Processor", frozenset({"fpu", "sse2", "avx2"}), "AuthenticAMD")),
        (ARM, Processor("0xd40", frozenset({"fp", "asimd", "bf16"}))),
    ],
)
def test_the_name_and_the_instruction_sets_are_read(cpuinfo, expected, tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(cpuinfo)
    assert read_processor(tmp_path) == expected


@pytest.mark.parametrize(
    ("instruction_sets", "saturates"),
    [({"avx2"}, True), ({"avx2", "avx512f"}, True), ({"avx2", "avx_vnni"}, False), ({"avx2", "avx512_vnni"}, False)]
    + [({"asimd"}, False), (set(), False)],
)
def test_products_of_8_bit_numbers_saturate_without_vnni(instruction_sets, saturates):
    assert Processor("a CPU", frozenset(instruction_sets)).saturates == saturates


@pytest.mark.parametrize(("load", "overloaded"), [(0.0, False), (4.0, False), (5.1, True), (90.0, True)])
def test_a_machine_is_overloaded_with_more_running_threads_than_cpus(load, overloaded, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert is_overloaded() == overloaded


@pytest.mark.parametrize("cpuinfo", [None, "", "nonsense", ":\n"])
def test_without_a_description_there_is_a_name(cpuinfo, tmp_path):
    if cpuinfo is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc" / "cpuinfo").write_text(cpuinfo)
    found = read_processor(tmp_path)
    assert found.name
    assert not found.instruction_sets


@pytest.mark.parametrize(
    ("siblings", "cpus", "cores"),
    [
        ({0: "0", 1: "1"}, [0, 1], 2),
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, [0, 1, 2, 3], 2),
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, [0, 1], 2),
        ({0: "0-1", 1: "0-1"}, [0, 1], 1),
        ({}, [0, 1, 2], 3),
    ],
)
def test_two_cpus_of_one_core_count_once(siblings, cpus, cores, tmp_path):
    for cpu, text in siblings.items():
        topology = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(text + "\n")
    assert physical_cores(cpus, tmp_path) == cores


def test_this_machine_has_no_more_cores_than_cpus():
    assert 1 <= physical_cores() <= len(os.sched_getaffinity(0))
