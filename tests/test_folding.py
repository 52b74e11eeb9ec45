"""A folded encoder: the same embeddings up to rounding, or none."""

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch
from torch import nn

from fastreid_ice.engine import ICETrainer
from fastreid_ice.modeling.folding import fold_encoder
from tests.conftest import ice_config

OSNET = {"MODEL__BACKBONE__NAME": "build_osnet_backbone", "MODEL__BACKBONE__FEAT_DIM": 128}


def used(encoder: nn.Module) -> nn.Module:
    """With statistics and affine parameters that are not those of the start, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor, low, high in (
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.5, 2),
                    (module.weight.data, 0.5, 1.5),
                    (module.bias.data, -0.5, 0.5),
                ):
                    tensor.uniform_(low, high)
    return encoder.eval()


def normalisations(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


@pytest.mark.parametrize("overrides", [{}, OSNET, {**OSNET, "MODEL__ICE__EVAL_ENCODER": "online"}])
def test_equal_up_to_rounding(overrides):
    model = used(ICETrainer.build_model(ice_config(**overrides)))
    encoder, images = model.evaluated_encoder(), torch.randn(4, 3, 64, 32)
    before = [value.clone() for value in encoder.state_dict().values()]
    folded = fold_encoder(encoder, images)
    # what stays is the bottleneck of the head, behind the pooling
    assert folded is not encoder and normalisations(encoder) > 1 == normalisations(folded)
    with torch.no_grad():
        torch.testing.assert_close(folded(images), model.encode(images), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, encoder.state_dict().values()))


def test_a_normalisation_behind_something_else_stays():
    """In place, the tensor is the convolution's, but no longer what the convolution gave."""
    layers = used(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(4)))
    folded = fold_encoder(layers, torch.randn(2, 3, 8, 8))
    assert normalisations(folded) == 1 and folded is not layers


def test_a_convolution_that_is_used_twice_stays():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.shared(self.norm(self.shared(x)))

    assert normalisations(fold_encoder(used(Twice()), torch.randn(2, 3, 8, 8))) == 1


def test_what_would_differ_is_not_folded(caplog):
    """The output of the convolution is used beside its normalisation: only the comparison can tell."""

    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            x = self.convolution(x)
            return x + self.norm(x)

    beside = used(Beside())
    assert fold_encoder(beside, torch.randn(2, 3, 8, 8)) is beside
    assert "cannot be folded" in caplog.text


def test_folded_within_autocast():
    """It is compared in float32: in a shorter type rounding is larger than what tells a wrong fold."""
    encoder = used(ICETrainer.build_model(ice_config(**OSNET)).evaluated_encoder())
    images = torch.randn(4, 3, 64, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        folded = fold_encoder(encoder, images)
    assert folded is not encoder
    assert normalisations(folded) < normalisations(encoder)
