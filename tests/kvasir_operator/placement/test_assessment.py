"""Where a model fits, which product it is placed on, and when two services read the same model."""

from typing import Any

import pytest

from kvasir_operator.api.kubernetes import EnvVar
from kvasir_operator.api.model import Source
from kvasir_operator.api.v1alpha1 import InferenceServiceSpec
from kvasir_operator.placement.assessment import UNKNOWN, Assessment, assess, by_cost, least_memories
from kvasir_operator.placement.capacity import Fit, Misfit
from kvasir_operator.placement.inventory import Claim, DeviceDemand, DeviceNode, Inventory, read_node
from kvasir_operator.placement.rooms import Room, choose_products, is_misplaced, rooms_of
from kvasir_operator.placement.sources import is_inspectable, source_key
from kvasir_operator.settings import Settings
from kvasir_runtime.contract.memory import ModelShape
from tests.kvasir_operator.placement.models import BY_NAME
from tests.kvasir_operator.placement.nodes import GPU, gpu_node

L4, A100, H200 = "NVIDIA-L4", "NVIDIA-A100-SXM4-80GB", "NVIDIA-H200"
NODES = [
    read_node(gpu_node("l4-1", L4, 4, memory_mib=23034)),
    read_node(gpu_node("l4-2", L4, 2, memory_mib=22000)),
    read_node(gpu_node("a100", A100, 8, memory_mib=81920)),
    read_node(gpu_node("h200", H200, 8, memory_mib=143771)),
]
BARE = read_node({"metadata": {"name": "bare"}, "status": {"allocatable": {GPU: "2"}}})


def assessed(
    name: str,
    nodes: list[DeviceNode] | None = None,
    costs: dict[str, float] | None = None,
    model: dict[str, Any] | None = None,
    **more: Any,
) -> Assessment:
    given = {"model": {"source": {"uri": "hf://org/model"}, "maxModelLen": 8192, **(model or {})}}
    spec = InferenceServiceSpec.model_validate(given | {"accelerator": {"count": 1}} | more)
    settings = Settings(product_costs=costs or {})
    return assess(spec, ModelShape.from_hf_config(BY_NAME[name].config), NODES if nodes is None else nodes, settings)


def test_a_model_is_placed_on_what_it_fits_on_the_smallest_first() -> None:
    assert assessed("Llama-3.1-8B").products == (L4, A100, H200)
    assert assessed("Gemma-2-27B").products == (A100, H200)
    assert assessed("Mixtral-8x7B-v0.1").products == (H200,)
    assert isinstance(assessed("Mixtral-8x7B-v0.1").planned, Fit)


def test_costs_decide_where_they_are_known() -> None:
    """An H200 that is cheaper than an A100; what has no cost comes last."""
    assert assessed("Gemma-2-27B", costs={H200: 1.0, A100: 2.0}).products == (H200, A100)
    assert assessed("Llama-3.1-8B", costs={H200: 9.0}).products == (H200, L4, A100)
    assert by_cost({"b": 1, "a": 1, "c": 0}, {}) == ["c", "a", "b"]


def test_what_fits_nowhere_is_refused_with_the_numbers_of_the_largest() -> None:
    found = assessed("Llama-3.1-70B")
    assert isinstance(found.planned, Misfit)
    assert found.products == ()
    assert "140Gi" in found.planned.message
    assert "spec.model.quantization int8" in found.planned.message


def test_more_devices_for_each_replica_may_make_it_fit() -> None:
    assert assessed("Llama-3.1-70B", accelerator={"count": 4}).products == (A100, H200)


def test_the_smallest_memory_of_a_product_counts() -> None:
    assert least_memories(NODES, GPU)[L4] == 22000 * 2**20


def test_a_node_without_labels_leaves_the_choice_open() -> None:
    """It may have any memory: nothing is refused, and no product is demanded."""
    found = assessed("Llama-3.1-8B", [*NODES, BARE])
    assert isinstance(found.planned, Fit)
    assert found.products == ()
    assert assessed("Llama-3.1-70B", [*NODES, BARE]) == UNKNOWN


@pytest.mark.parametrize("nodes", [[], [BARE]])
def test_without_known_devices_nothing_is_planned(nodes: list[DeviceNode]) -> None:
    assert assessed("Llama-3.1-8B", nodes) == UNKNOWN


def test_slices_are_planned_with_their_own_memory() -> None:
    sliced = read_node(gpu_node("mig", A100, 0, memory_mib=81920, mig={"1g.10gb": 7}))
    mig: dict[str, Any] = {"accelerator": {"mig": "1g.10gb"}}
    assert isinstance(assessed("Llama-3.1-8B", [sliced], **mig).planned, Misfit)
    assert assessed("Llama-3.2-1B", [sliced], **mig).products == (A100,)


def test_on_cpus_the_memory_limit_counts() -> None:
    cpu: dict[str, Any] = {"accelerator": {"vendor": "cpu"}}
    assert isinstance(assessed("Llama-3.2-1B", **cpu).planned, Misfit), "4Gi by default"
    assert isinstance(assessed("Llama-3.2-1B", resources={"limits": {"memory": "12Gi"}}, **cpu).planned, Fit)
    assert assessed("Llama-3.2-1B", resources={"requests": {"memory": "1Gi"}}, **cpu) == UNKNOWN


def test_a_type_that_the_formula_does_not_know_is_the_engines_affair() -> None:
    shape = ModelShape.from_hf_config(BY_NAME["Llama-3.2-1B"].config | {"torch_dtype": "float8_e5m2"})
    spec = InferenceServiceSpec.model_validate(
        {"model": {"source": {"uri": "hf://o/m"}}, "accelerator": {"vendor": "cpu"}}
    )
    assert assess(spec, shape, [], Settings()) == UNKNOWN


DEMAND = DeviceDemand(GPU, 2, {})


def test_room_is_counted_in_whole_replicas() -> None:
    """Three devices left on one node and one on another have room for one replica of two devices."""
    claims = (Claim("team/x", "l4-1", GPU, 1), Claim("team/x", "l4-2", GPU, 1))
    rooms = rooms_of((L4, A100, "absent"), DEMAND, Inventory(tuple(NODES), claims))
    assert rooms == (Room(L4, 1), Room(A100, 4), Room("absent", 0))


CHOICES: list[tuple[list[Room], int, list[tuple[str, ...]]]] = [
    ([], 2, [(), ()]),
    ([Room(L4, 2), Room(A100, 1)], 1, [(L4,)]),
    ([Room(L4, 1), Room(A100, 1)], 3, [(L4,), (A100,), (L4, A100)]),
    ([Room(L4, 0), Room(A100, 1)], 1, [(A100,)]),
    ([Room(L4, 0), Room(A100, 0)], 2, [(L4, A100), (L4, A100)]),
]


@pytest.mark.parametrize(("rooms", "replicas", "expected"), CHOICES)
def test_the_cheapest_product_with_room_is_taken(
    rooms: list[Room], replicas: int, expected: list[tuple[str, ...]]
) -> None:
    assert choose_products(rooms, replicas) == expected


@pytest.mark.parametrize(
    ("allowed", "rooms", "expected"),
    [
        ((L4,), [Room(L4, 0), Room(A100, 1)], True),
        ((L4,), [Room(L4, 1), Room(A100, 1)], False),
        ((L4,), [Room(L4, 0), Room(A100, 0)], False),
        ((L4, A100), [Room(L4, 0), Room(A100, 1)], False),
        ((), [Room(A100, 1)], False),
        ((L4,), [], False),
    ],
)
def test_a_pod_is_misplaced_when_only_others_products_have_room(
    allowed: tuple[str, ...], rooms: list[Room], expected: bool
) -> None:
    assert is_misplaced(allowed, rooms) == expected


def source(uri: str, **more: str) -> Source:
    return Source.model_validate({"uri": uri, **more})


def test_the_same_model_is_the_same_for_those_with_the_same_rights() -> None:
    public = source("hf://org/m")
    assert source_key(public, "a") == source_key(public, "b")
    private = source("s3://b/m", secretName="key")
    assert source_key(private, "a") != source_key(private, "b")
    claim = source("pvc://c/m")
    assert source_key(claim, "a") != source_key(claim, "b")
    assert source_key(public, "a", "mine:1") != source_key(public, "b", "mine:1")
    env = [EnvVar(name="HF_ENDPOINT", value="https://mirror.example")]
    assert source_key(public, "a", env=env) == source_key(public, "a", env=list(env))
    assert len({source_key(public, "a"), source_key(public, "a", env=env), source_key(public, "b", env=env)}) == 3
    keys = {source_key(each, "a") for each in (public, private, claim, source("hf://org/m", sha256="0" * 64))}
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://h/m", True),
        ("https://h/m.tar.gz", False),
        ("https://h/m.zip?sig=x", False),
        ("s3://b/m.zip", True),
        ("file:///m.tar", True),
    ],
)
def test_archives_cannot_be_looked_into(uri: str, expected: bool) -> None:
    assert is_inspectable(source(uri)) == expected
