"""How the experiments divide networks and batches over devices."""

import jax
import pytest

from experiments.shared import devices
from experiments.shared.devices import largest_divisor, place_networks
from experiments.shared.options import InputError


@pytest.mark.parametrize("number", [1, 7, 12, 24])
@pytest.mark.parametrize("most", range(1, 9))
def test_the_largest_divisor_is_the_most_equal_shares(number, most):
    divisor = largest_divisor(number, most)
    assert number % divisor == 0
    assert divisor <= most
    assert all(number % larger for larger in range(divisor + 1, most + 1))


@pytest.fixture
def four_devices(monkeypatch):
    """Four devices as far as the placing can see; a mesh is the list of its devices."""

    class Mesh(list):
        size = property(len)

    monkeypatch.setattr(jax, "devices", lambda: ["cpu"] * 4)
    monkeypatch.setattr(devices, "data_mesh", Mesh)


@pytest.mark.parametrize(
    ("networks", "batch_size", "asked", "size", "networks_split"),
    [
        (8, 6, None, 4, True),  # all devices, by default
        (6, 6, None, 3, True),
        (6, 6, 2, 2, True),
        (1, 6, None, 1, True),  # a batch is split only where it is asked for
        (1, 6, 4, 3, False),
        (5, 8, 3, 2, False),
        (5, 1, 4, 1, False),  # and where it can be
    ],
)
def test_networks_are_divided_evenly_or_else_the_batch_is(
    four_devices, networks, batch_size, asked, size, networks_split
):
    placement = place_networks(networks, batch_size, asked)
    assert (placement.mesh.size, placement.networks_split) == (size, networks_split)


def test_more_devices_than_there_are_are_refused(four_devices):
    with pytest.raises(InputError, match="--devices is 5, but there are 4"):
        place_networks(8, 6, 5)
