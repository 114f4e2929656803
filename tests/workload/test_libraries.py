"""hf:, timm: and torchvision: as workloads, with stand-ins for the libraries: hwprune needs none of them."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hwprune.errors import UsageError, WorkloadError
from hwprune.workload import libraries as model_libraries
from hwprune.workload import loading


class Encoder(nn.Module):
    """Takes three inputs, as transformers' models do; the mask is the third."""

    def __init__(self, width=8):
        super().__init__()
        self.table = nn.Embedding(50, width)
        self.fc = nn.Linear(width, 3)

    def forward(self, input_ids, token_type_ids=None, attention_mask=None):
        hidden = self.table(input_ids)
        if attention_mask is not None:
            hidden = hidden * attention_mask.unsqueeze(-1)
        return self.fc(hidden.mean(dim=1))


@pytest.fixture
def libraries(monkeypatch):
    monkeypatch.setattr(model_libraries, "_require_reachable", lambda _: None)

    def create(name, pretrained):
        if name != "tiny":
            raise RuntimeError(f"Unknown model ({name})")
        assert not pretrained, "no network here"
        return Encoder()

    config = SimpleNamespace(architectures=["Encoder"])
    Encoder.from_pretrained = classmethod(lambda cls, name, dtype: cls())
    Encoder._from_config = classmethod(lambda cls, config: cls())
    transformers = SimpleNamespace(AutoConfig=SimpleNamespace(from_pretrained=lambda name: config), Encoder=Encoder)
    models = SimpleNamespace(get_model=lambda name, weights: create(name, weights is not None))
    for name, module in (
        ("timm", SimpleNamespace(create_model=create)),
        ("torchvision", SimpleNamespace(models=models)),
        ("transformers", transformers),
    ):
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.npz"
    ids = np.arange(160).reshape(20, 8) % 50
    np.savez(path, input_ids=ids, attention_mask=np.ones((20, 8), np.float32), targets=np.arange(20) % 3)
    return path


def test_inputs_are_passed_by_name_where_they_are_not_the_first(libraries, data):
    workload = loading.load(f"hf:folder/encoder batch=2 data={data}")
    assert workload.name == "encoder" and workload.metric == "top1"
    assert isinstance(workload.model, model_libraries.ByName) and workload.model.names == ("input_ids", "attention_mask")
    assert [tuple(x.shape) for x in workload.example_inputs] == [(2, 8), (2, 8)]
    assert workload.model(*workload.example_inputs).shape == (2, 3)
    assert loading.load(workload.source).name == "encoder"  # a run finds it again


def test_weights_of_a_file(libraries, data, tmp_path):
    wanted = Encoder()
    torch.save(wanted.state_dict(), tmp_path / "w.pt")
    made = loading.load(f"timm:tiny weights={tmp_path / 'w.pt'} data={data}").model
    assert torch.equal(made.model.fc.weight, wanted.fc.weight)
    torch.save({"state_dict": wanted.state_dict()}, tmp_path / "w.pth")
    assert torch.equal(model_libraries.model_of("torchvision", "tiny", str(tmp_path / "w.pth")).fc.weight, wanted.fc.weight)
    from safetensors.torch import save_file

    save_file(wanted.state_dict(), tmp_path / "w.safetensors")
    assert torch.equal(model_libraries.model_of("hf", "x", str(tmp_path / "w.safetensors")).fc.weight, wanted.fc.weight)
    torch.save(wanted, tmp_path / "pickle.pt")
    with pytest.raises(WorkloadError, match="does not hold the weights"):
        model_libraries.model_of("timm", "tiny", str(tmp_path / "pickle.pt"))
    with pytest.raises(WorkloadError, match="does not hold the weights of Encoder"):
        torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
        model_libraries.model_of("timm", "tiny", str(tmp_path / "other.pt"))


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("timm:tiny weights=none", UsageError, "comes without data"),
        ("timm:tiny weights=missing.pt data=DATA", UsageError, "no file missing.pt"),
        ("timm:nothing weights=none data=DATA", WorkloadError, "Unknown model"),
        ("timm:tiny weights=none colour=red data=DATA", UsageError, "known: batch, metric, weights"),
        ("timm:tiny weights=none data=words", UsageError, "--data takes file.npz"),
    ],
)
def test_what_is_wrong_is_told(libraries, data, source, error, words):
    with pytest.raises(error, match=words):
        loading.load(source.replace("DATA", str(data)))


def test_arrays_that_the_model_does_not_take_are_told(libraries, tmp_path):
    np.savez(tmp_path / "d.npz", input_ids=np.zeros((4, 8), np.int64), pixels=np.zeros((4, 8)))
    with pytest.raises(UsageError, match="holds pixels, which the model does not take; it takes input_ids, token_type_ids"):
        loading.load(f"timm:tiny weights=none data={tmp_path / 'd.npz'}")
    np.savez(tmp_path / "d.npz", whatever=np.zeros((8, 8), np.int64))
    assert loading.load(f"timm:tiny weights=none data={tmp_path / 'd.npz'}").metric == "agreement"


def test_a_function_for_the_data(libraries, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\ndef data():\n    b = [(torch.zeros(4, 8, dtype=torch.long), torch.zeros(4, dtype=torch.long))]\n"
        "    return {'validation': b, 'test': b, 'metric': 'agreement'}\n"
    )
    workload = loading.load(f"timm:tiny weights=none data={tmp_path / 'mine.py'}:data")
    assert workload.metric == "agreement" and workload.test is not None and isinstance(workload.model, Encoder)


def test_a_library_that_is_not_there_is_told(monkeypatch, data):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="pip install timm"):
        loading.load(f"timm:resnet18 data={data}")


def test_a_name_that_nobody_can_be_asked_for(monkeypatch, tmp_path):
    """Without a network the answer comes at once; transformers would try again for half a minute."""
    constants = pytest.importorskip("huggingface_hub.constants")
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(model_libraries.urllib.request, "getproxies", dict)
    with pytest.raises(UsageError, match=r"no folder nosuch .*hub\.invalid can't be asked"):
        model_libraries.model_of("hf", "nosuch")
