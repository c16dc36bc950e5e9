"""Checkpoints of others: the features are those of torchvision's own forward pass."""

import argparse
import pickle

import pytest
import torch
from safetensors.torch import save_file

from stml_semi.models.image_size import resize
from stml_semi.models.resnet_weights import open_resnet50
from stml_semi.run_folder.recipe import build_config
from stml_semi.sharing.origin import find_origin


@pytest.fixture(scope="module")
def reference():
    """torchvision's ResNet-50 with batch statistics that are not those of a fresh one."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)  # pyright: ignore[reportArgumentType]
            torch.nn.init.uniform_(module.running_var, 0.7, 1.4)  # pyright: ignore[reportArgumentType]
            torch.nn.init.uniform_(module.weight, 0.5, 1.1)
            torch.nn.init.uniform_(module.bias, -0.1, 0.1)
    return model.eval()


def files(state):
    """How torchvision, SwAV, MoCo v2 and v3, and DINO write it."""
    other = {key: torch.zeros_like(value) for key, value in state.items()}

    def prefixed(prefix, weights=state):
        return {prefix + key: value for key, value in weights.items()}

    moco2 = prefixed("module.encoder_q.") | prefixed("module.encoder_k.", other) | {"module.queue": torch.zeros(2, 3)}
    moco3 = prefixed("module.momentum_encoder.", other) | prefixed("module.base_encoder.")
    return {
        "torchvision": state,
        "swav": prefixed("module.") | {"module.prototypes.weight": torch.zeros(3, 128)},
        "moco2": {"epoch": 800, "arch": "resnet50", "state_dict": moco2},
        "moco3": {"state_dict": moco3},
        "dino": {
            "student": prefixed("module.backbone.", other),
            "teacher": prefixed("backbone."),
            "args": argparse.Namespace(lr=0.1),
        },
    }


@torch.inference_mode()
def features(model, pixels):
    x = model.maxpool(model.relu(model.bn1(model.conv1(pixels))))
    return model.layer4(model.layer3(model.layer2(model.layer1(x))))


@pytest.mark.slow
def test_features_are_those_of_torchvision(reference, tmp_path):
    pixels = torch.randn(2, 3, 64, 64)
    expected = features(reference, pixels)
    for name, content in files(reference.state_dict()).items():
        torch.save(content, tmp_path / f"{name}.pth")
        model, _ = open_resnet50(str(tmp_path / f"{name}.pth"))
        with torch.inference_mode():
            found = model(pixel_values=pixels).last_hidden_state
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        (tmp_path / f"{name}.pth").unlink()
    save_file(reference.state_dict(), tmp_path / "r.safetensors")
    model, processor = resize(open_resnet50(str(tmp_path / "r.safetensors")), 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(pixel_values=pixels).last_hidden_state, expected, rtol=1e-4, atol=1e-4)
    assert processor.crop_size["height"] == 64


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/never-written", "w"))


@pytest.mark.slow
def test_what_is_no_resnet50_is_refused(reference, tmp_path):
    import torchvision

    def refused(content, match):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=match):
            open_resnet50(str(tmp_path / "x.pth"))

    refused({"a": torch.zeros(1)}, "holds no ResNet-50 in torchvision's layout")
    refused(torchvision.models.resnet18(weights=None).state_dict(), "holds no ResNet-50")
    state = reference.state_dict()
    refused(
        {key: value for key, value in state.items() if key != "layer2.0.bn1.bias"}, "is missing or of another shape"
    )
    refused(state | {"layer3.6.conv1.weight": torch.zeros(1)}, "more layers")
    with pytest.raises(ValueError, match="no such file"):
        open_resnet50(str(tmp_path / "nothing.pth"))
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": Evil()}))
    with pytest.raises(ValueError, match="cannot be read without running code"):
        open_resnet50(str(tmp_path / "evil.pth"))


def test_the_configuration_knows_it(tmp_path):
    from stml_semi.training.resolve import resolve

    config = resolve("sup", {"labeled": "kanji", "backbone_weights": str(tmp_path / "swav.pth")})
    assert config.backbone == "resnet50"
    assert find_origin(config).base_model is None
    assert find_origin(config).license is None
    with pytest.raises(ValueError, match="--backbone-weights is for a ResNet-50"):
        build_config({"labeled": "kanji", "backbone_weights": "x.pth", "backbone": "facebook/dinov2-small"})
