"""Which ways to run a model are measured, and which kept choices are possible."""

from dataclasses import replace

import pytest

from server.tuning.candidates import (
    EXACT_PRODUCTS,
    SHRINKING_BLOCKS,
    Candidate,
    Choice,
    Machine,
    Sizes,
    batch_stages,
    chunk_stages,
    is_possible,
    option_candidates,
    others,
    thread_candidates,
    ways,
)
from server.tuning.search import Measurement, search

DEFAULT = Candidate(provider="cpu", graph="fp32", precision="fp32", threads=8)
OPENVINO = ("fp32", "bf16", "int8-weights")


@pytest.mark.parametrize(
    ("providers", "graphs", "bf16", "has_cache", "expected"),
    [
        (["cpu"], ["fp32"], False, False, ["cpu fp32 fp32"]),
        (["cpu"], ["fp32", "int8-dynamic"], True, False, ["cpu fp32 fp32", "cpu int8-dynamic int8-dynamic"]),
        (["openvino", "cpu"], ["fp32"], False, False, ["openvino fp32 fp32", "cpu fp32 fp32"]),
        (["openvino"], ["fp32"], True, False, ["openvino fp32 bf16", "openvino fp32 fp32"]),
        (["openvino"], ["int8-weights", "int8-dynamic"], True, False, ["openvino int8-weights int8-weights"]),
        (["openvino", "cpu"], ["fp32"], True, True, ["cpu fp32 fp32"]),
    ],
)
def test_every_provider_runs_every_graph_that_it_knows(providers, graphs, bf16, has_cache, expected):
    found = ways(providers, graphs, openvino=OPENVINO, bf16=bf16, has_cache=has_cache)
    assert [" ".join(way) for way in found] == expected


def test_the_default_is_not_its_own_challenger():
    found = others(DEFAULT, [("cpu", "fp32", "fp32"), ("cpu", "int8-weights", "int8-weights")])
    assert found == [replace(DEFAULT, graph="int8-weights", precision="int8-weights")]


def test_where_products_saturate_exact_ones_are_tried_too():
    ways = [("cpu", "fp32", "fp32"), ("cpu", "int8-dynamic", "int8-dynamic"), ("openvino", "fp32", "fp32")]
    dynamic = replace(DEFAULT, graph="int8-dynamic", precision="int8-dynamic")
    openvino = replace(DEFAULT, provider="openvino")
    assert others(DEFAULT, ways) == [dynamic, openvino]
    assert others(DEFAULT, ways, saturates=True) == [dynamic, replace(dynamic, options=(EXACT_PRODUCTS,)), openvino]


@pytest.mark.parametrize(
    ("cpus", "cores", "small", "threads"),
    [
        (2, 2, False, []),
        (2, 2, True, [1]),
        (8, 4, False, [4]),
        (8, 4, True, [4, 1]),
        (64, 32, False, [32]),
        (64, 32, True, [32, 4, 1]),
        (1, 1, True, []),
    ],
)
def test_fewer_threads_are_tried_for_shared_cores_and_small_models(cpus, cores, small, threads):
    best = replace(DEFAULT, threads=cpus)
    found = thread_candidates(best, Machine(cpus=cpus, cores=cores), small=small)
    assert [each.threads for each in found] == threads


def test_options_are_tried_once_and_with_several_threads_only():
    (found,) = option_candidates(DEFAULT)
    assert found.options == (SHRINKING_BLOCKS,)
    assert option_candidates(found) == []
    assert option_candidates(replace(DEFAULT, threads=2)) == []
    assert option_candidates(replace(DEFAULT, provider="openvino")) == []


def best_size(default, stages, *, seconds):
    """The size that a search finds if a unit of work takes so many seconds; and all sizes that were tried."""

    def compare(best, challenger):
        tried.append(challenger)
        return [Measurement("work", ((seconds[best], seconds[challenger]),))]

    tried = []
    return search(default, stages, compare).best, tried


@pytest.mark.parametrize(
    ("seconds", "best", "tried"),
    [
        ({1024: 1, 512: 1, 2048: 1}, 1024, [512, 2048]),
        ({1024: 1, 512: 0.8, 256: 0.7}, 256, [512, 256]),
        ({1024: 1, 512: 0.8, 256: 0.8}, 512, [512, 256]),
        ({1024: 1, 512: 1.2, 2048: 0.8}, 2048, [512, 2048]),
    ],
)
def test_smaller_and_larger_batches_are_tried(seconds, best, tried):
    assert best_size(1024, batch_stages(1024, smallest=128), seconds=seconds) == (best, tried)


def test_a_batch_holds_the_longest_text():
    assert best_size(1024, batch_stages(1024, smallest=1024), seconds={1024: 1, 2048: 1}) == (1024, [2048])
    assert best_size(1024, batch_stages(1024, smallest=512), seconds={1024: 1, 512: 0.5}) == (512, [512])


@pytest.mark.parametrize(
    ("seconds", "largest", "best", "tried"),
    [
        ({64: 1, 128: 1}, 900, 64, [128]),
        ({64: 1, 128: 0.8, 256: 0.7}, 900, 256, [128, 256]),
        ({64: 1, 128: 0.8}, 200, 128, [128]),
        ({64: 1}, 100, 64, []),
    ],
)
def test_larger_chunks_of_a_prompt_are_tried_while_they_win(seconds, largest, best, tried):
    assert best_size(64, chunk_stages(64, largest=largest), seconds=seconds) == (best, tried)


@pytest.mark.parametrize(
    ("changes", "threads", "possible"),
    [
        ({}, 0, True),
        ({"threads": 4}, 0, True),
        ({"threads": 4}, 8, False),  # --threads 8
        ({"threads": 9}, 0, False),
        ({"threads": 0}, 0, False),
        ({"provider": "openvino"}, 0, False),
        ({"graph": "int8-weights"}, 0, False),
        ({"options": (SHRINKING_BLOCKS,)}, 0, True),
        ({"options": (("session.dynamic_block_base", "9"),)}, 0, False),
        ({"options": (("session.optimized_model_filepath", "/somewhere"),)}, 0, False),
    ],
)
def test_a_kept_choice_must_be_one_of_the_candidates(changes, threads, possible):
    choice = Choice(candidate=replace(DEFAULT, **changes))
    machine = Machine(cpus=8, cores=4)
    assert is_possible(choice, [("cpu", "fp32", "fp32")], machine, threads=threads) == possible


def test_a_choice_reads_as_a_sentence():
    faster = Choice(candidate=DEFAULT, sizes=Sizes(max_batch_tokens=512), speedup=1.5)
    assert str(faster) == "cpu in fp32, 8 threads, 1.50 times as fast as the default, max_batch_tokens=512"
    assert str(Choice(candidate=DEFAULT)) == "cpu in fp32, 8 threads, the default"
    assert str(replace(DEFAULT, threads=1)) == "cpu in fp32, 1 thread"
