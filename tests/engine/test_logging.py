"""Records of a run: a loss or weight that is not finite is found and named, and the terminal shows what fits."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from segtailor.engine.logging import LossBuffer, check_weights
from segtailor.errors import SegtailorError

FABRIC = SimpleNamespace(world_size=1)


def test_means_since_the_last_line() -> None:
    buffer = LossBuffer()
    buffer.add(1, {"task": torch.tensor(1.0), "kt.lt": torch.tensor(4.0)})
    buffer.add(2, {"task": torch.tensor(3.0), "kt.lt": torch.tensor(0.0)})
    assert buffer.means(FABRIC, 0) == {"task": 2.0, "kt.lt": 2.0}
    assert buffer.means(FABRIC, 0) == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_step_term_and_last_good_checkpoint_are_named(value: float) -> None:
    buffer = LossBuffer()
    buffer.add(8, {"task": torch.tensor(1.0), "kt.lt": torch.tensor(1.0)})
    buffer.add(9, {"task": torch.tensor(1.0), "kt.lt": torch.tensor(value)})
    buffer.add(10, {"task": torch.tensor(value), "kt.lt": torch.tensor(value)})
    with pytest.raises(SegtailorError, match=r"step 9: the term 'kt.lt' became (nan|inf); .* of step 5"):
        buffer.means(FABRIC, 5)


def test_weights_that_are_not_finite_are_never_saved() -> None:
    net = nn.Linear(2, 2)
    check_weights(net, 3, 0)
    with torch.no_grad():
        net.bias[1] = float("inf")
    with pytest.raises(SegtailorError, match=r"step 3: the weight 'bias'.*no checkpoint was written yet"):
        check_weights(net, 3, 0)
