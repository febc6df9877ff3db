"""Tests the simulated card itself.

The other tests in this folder only prove something if the simulated card raises the same errors as a real card.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from card.simulated import SimulatedCard
from torch import Tensor


@pytest.fixture
def card() -> Iterator[SimulatedCard]:
    with torch.no_grad(), SimulatedCard() as card:
        yield card


@pytest.fixture
def mps() -> Iterator[SimulatedCard]:
    with torch.no_grad(), SimulatedCard("mps") as card:
        yield card


WAYS_TO_THE_CARD: dict[str, Callable[[Tensor], Tensor]] = {
    "the name of the device": lambda x: x.to("cuda"),
    "the name of the device and a dtype": lambda x: x.to("cuda", torch.float16),
    "keyword arguments": lambda x: x.to(device="cuda", dtype=torch.float16),
    "torch.device": lambda x: x.to(torch.device("cuda")),
    "the name with a number": lambda x: x.to("cuda:0"),
    "another tensor": lambda x: x.to(torch.zeros(1, device="cuda")),
    "cuda": lambda x: x.cuda(),
    "torch.tensor": lambda x: torch.tensor([1.0, 2.0], device="cuda"),
    "torch.as_tensor": lambda x: torch.as_tensor([1.0, 2.0], device="cuda"),
    "new_tensor": lambda x: torch.zeros(1, device="cuda").new_tensor([1.0, 2.0]),
    "new_zeros": lambda x: torch.zeros(1, device="cuda").new_zeros(2),
    "zeros_like": lambda x: torch.zeros_like(x, device="cuda"),
    "torch.nn.Parameter": lambda x: torch.nn.Parameter(x.cuda(), requires_grad=False),
}


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("way", WAYS_TO_THE_CARD)
def test_a_tensor_on_the_card_reports_the_card_as_its_device(way: str) -> None:
    assert WAYS_TO_THE_CARD[way](torch.ones(2)).device == torch.device("cuda", 0)


@pytest.mark.usefixtures("card")
def test_numbers_are_unchanged_after_a_round_trip() -> None:
    x = torch.arange(6.0).reshape(2, 3).cuda()
    assert x.to("cuda") is x
    back = x.cpu()
    assert type(back) is torch.Tensor
    assert torch.equal(back, torch.arange(6.0).reshape(2, 3))
    assert (float(x[1, 2]), x[0].tolist(), [len(row) for row in x]) == (5, [0, 1, 2], [3, 3])


@pytest.mark.usefixtures("card")
def test_indexing_reads_and_writes_in_place() -> None:
    x = torch.zeros(3, 4, device="cuda")
    x[1:, ::2] = 5
    x[0] = torch.arange(4.0, device="cuda")
    x[:, -1] += 1
    x[x == 5] = 6
    view = x[..., None, :2]
    view.mul_(2)
    assert x.tolist() == [[0, 2, 2, 4], [12, 0, 6, 1], [12, 0, 6, 1]]
    x.copy_(torch.ones(4, device="cuda", dtype=torch.float16))
    assert x.sum().item() == 12


OPERATIONS_THAT_MIX: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a sum": lambda x, y: x + y,
    "a product": lambda x, y: x @ y.T,
    "a list": lambda x, y: torch.cat([x, y]),
    "a convolution": lambda x, y: F.conv2d(x[None, None], y[None, None]),
    "attention": lambda x, y: F.scaled_dot_product_attention(x[None], y[None], y[None]),
    "an index on the card": lambda x, y: y[x.long()],
    "another type": lambda x, y: x @ y.T.cuda().half(),
    "a list of single numbers": lambda x, y: torch.stack([x[0, 0], y[0, 0]]),
}


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("operation", OPERATIONS_THAT_MIX)
def test_operations_that_mix_devices_or_types_raise_an_error(operation: str) -> None:
    with pytest.raises(RuntimeError, match=r"device|type"):
        OPERATIONS_THAT_MIX[operation](torch.ones(2, 2, device="cuda"), torch.ones(2, 2))


@pytest.mark.usefixtures("card")
def test_a_cpu_tensor_without_dimensions_can_be_used_with_a_tensor_on_the_card() -> None:
    x = torch.ones(2, device="cuda")
    assert (x * torch.tensor(3.0) + torch.tensor(1.0)).tolist() == [4, 4]


@pytest.mark.usefixtures("card")
def test_a_generator_works_only_on_its_device() -> None:
    assert torch.randn(2, device="cuda", generator=torch.Generator("cuda").manual_seed(1)).device.type == "cuda"
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(2, device="cuda", generator=torch.Generator().manual_seed(1))
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(2, generator=torch.Generator("cuda"))


@pytest.mark.usefixtures("card")
def test_torchs_own_autocast_works_on_the_card() -> None:
    x = torch.ones(2, 2, device="cuda")
    half = x.half()
    with torch.autocast("cuda"):
        assert (x @ x).dtype == torch.float16
        assert F.conv2d(x[None, None], half[None, None]).dtype == torch.float16
        assert F.scaled_dot_product_attention(x[None], x[None], x[None]).dtype == torch.float16
        assert half.exp().dtype == half.sum().dtype == torch.float32
        assert (x + half).dtype == torch.float32
        with torch.autocast("cuda", enabled=False):
            assert (x @ x).dtype == torch.float32
    assert (half @ half).dtype == torch.float16


def test_means_and_convolutions_in_half_precision_behave_as_on_a_card(card: SimulatedCard) -> None:
    # if a sum of ones were computed in half precision, it would never exceed 2048
    assert torch.ones(4096, device="cuda", dtype=torch.float16).mean().item() == 1
    with pytest.raises(RuntimeError, match="type"):
        F.conv2d(card.put(torch.ones(1, 1, 2, 2)), card.put(torch.ones(1, 1, 1, 1).half()))


def test_memory_is_counted_and_limited(card: SimulatedCard) -> None:
    x = torch.empty(1000, device="cuda")
    assert card.allocated == 4000
    view = x[:10]
    del x
    assert card.allocated == 4000
    del view
    assert card.allocated == 0
    assert torch.cuda.max_memory_allocated() == 4000
    card.reserve = 5000
    kept = torch.empty(1000, device="cuda")
    with pytest.raises(torch.cuda.OutOfMemoryError):
        torch.empty(1000, device="cuda")
    del kept
    assert torch.empty(1000, device="cuda").numel() == 1000


def test_the_allocation_chosen_by_fail_in_fails(card: SimulatedCard) -> None:
    card.fail_in = 1
    torch.empty(1, device="cuda")
    with pytest.raises(torch.cuda.OutOfMemoryError):
        torch.empty(1, device="cuda")
    torch.empty(1, device="cuda")


def test_waits_for_the_card_are_recorded(card: SimulatedCard) -> None:
    x = torch.ones(3, device="cuda")
    y = x * 2 + x[1:2]
    assert card.waits == []
    float(y[0])
    y.cpu()
    torch.ones(3).cuda()
    torch.ones(3).to("cuda", non_blocking=True)
    y[y > 0].sum()
    y[torch.tensor([0, 1])].sum()
    bool((y > 0).any())
    y.tolist()
    x.copy_(torch.ones(3))
    waits = ["read", "copy from the card", "copy to the card", "index", "index", "read", "copy from the card", "copy"]
    assert [wait.kind for wait in card.waits] == waits
    assert {wait.place.split(":")[0] for wait in card.waits} == {"tests/card/test_simulated.py"}
    assert not any(wait.ours for wait in card.waits)


@pytest.mark.usefixtures("mps")
def test_apples_gpu_has_no_double_precision() -> None:
    x = torch.ones(4, device="mps")
    assert x.device == torch.device("mps", 0)
    assert x.cpu().double().dtype == torch.float64
    for way in (
        lambda: x.double(),
        lambda: torch.ones(4, dtype=torch.float64).to("mps"),
        lambda: x.to("cpu", torch.double),
    ):
        with pytest.raises(TypeError, match="float64"):
            way()


@pytest.mark.usefixtures("mps")
def test_apples_gpu_supports_adaptive_pooling_only_with_areas_of_equal_size() -> None:
    assert F.adaptive_avg_pool2d(torch.ones(1, 1, 8, 8, device="mps"), 4).shape[-1] == 4
    with pytest.raises(RuntimeError, match="divisible"):
        F.adaptive_avg_pool2d(torch.ones(1, 1, 9, 8, device="mps"), 4)


def test_a_tensor_above_the_limit_of_apples_gpu_is_an_error(mps: SimulatedCard) -> None:
    mps.largest = 1000
    with pytest.raises(RuntimeError, match="would end the process"):
        torch.empty(251, device="mps")


def test_the_functions_of_torch_are_restored_after_the_simulation() -> None:
    before = {name: getattr(torch.cuda, name) for name in SimulatedCard().driver()}
    to, generator = torch.Tensor.to, torch.Generator
    with torch.no_grad(), SimulatedCard():
        assert torch.cuda.is_available()
        left = torch.ones(1, device="cuda")
    assert {name: getattr(torch.cuda, name) for name in before} == before
    assert (torch.Tensor.to, torch.Generator) == (to, generator)
    with pytest.raises(RuntimeError, match="no longer exists"):
        left + 1
