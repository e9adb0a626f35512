"""Pruned models on disk: what is saved comes back, in another process too, and damage is noticed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models_zoo import ZOO, forward, names
from safetensors.torch import load_file, save_file
from test_torch_shrink import mask, random_masks

from osscar_opt.errors import FormatError, InputError
from osscar_opt.torch import load_pruned, save_pruned, shrink, trace_coupling

TRANSFORMERS = names(transformers=True)


def pruned(name: str, *, uniform: bool, kinds: tuple[str, ...] = ("neurons", "heads", "channels")) -> Any:
    """A model of the zoo, two thirds of every site kept where that is to be uniform, else as chance will have it."""
    entry = ZOO[name]
    model = entry.build()
    coupling = trace_coupling(model, entry.batch())
    chosen = coupling.default_sites(kinds)  # type: ignore[arg-type]
    masks = random_masks(coupling, chosen, seed=3)
    if uniform:
        for site in chosen:
            n = coupling.sites[site].n
            masks[site] = np.random.default_rng(len(site)).permutation(np.arange(n) < max(1, 2 * n // 3))
    mask(model, coupling, masks)
    shrink(model, coupling, masks)
    return model


LOADER = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from models_zoo import ZOO, forward
from osscar_opt.torch import load_pruned

folder = Path(sys.argv[1])
outputs = {}
for path in sorted(folder.iterdir()):
    entry = ZOO[path.name]
    model = load_pruned(path, None if entry.transformers else entry.build())
    assert not model.training
    outputs[path.name] = forward(model, entry.batch(11)).contiguous()
save_file(outputs, sys.argv[2])
"""


@pytest.mark.parametrize("uniform", [True, False])
def test_every_family_comes_back_in_a_fresh_process(uniform: bool, tmp_path: Path) -> None:
    chosen = [name for name in names() if ZOO[name].available]
    expected, plain = {}, {}
    (tmp_path / "models").mkdir()
    for name in chosen:
        model = pruned(name, uniform=uniform)
        expected[name] = forward(model, ZOO[name].batch(11))
        plain[name] = save_pruned(model, tmp_path / "models" / name)
    command = [sys.executable, "-c", LOADER, str(tmp_path / "models"), str(tmp_path / "outputs.safetensors")]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "outputs.safetensors")
    assert set(found) == set(expected)
    for name, output in expected.items():
        torch.testing.assert_close(found[name], output, rtol=1e-6, atol=1e-6, msg=name)
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in (tmp_path / "models").rglob("*"))
    if uniform:
        assert all(
            plain[name] for name in ("llama", "qwen2", "qwen3", "mistral", "gemma", "phi3") if name in plain
        )
    assert not any(plain[name] for name in chosen if not ZOO[name].transformers)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_uniform_neurons_are_a_plain_checkpoint_with_the_right_configuration(
    name: str, tmp_path: Path
) -> None:
    entry = ZOO[name]
    if not entry.available or "neurons" not in entry.config:
        pytest.skip("no neurons in the configuration of this family")
    transformers = pytest.importorskip("transformers")
    model = pruned(name, uniform=True, kinds=("neurons",))
    assert save_pruned(model, tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    width = next(n for kind, n in entry.sites.values() if kind == "neurons")
    assert written[entry.config["neurons"]] == 2 * width // 3
    again = getattr(transformers, type(model).__name__).from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(forward(again, entry.batch(5)), forward(model, entry.batch(5)))


@pytest.mark.parametrize("name", [n for n in TRANSFORMERS if "heads" in ZOO[n].config])
def test_uniform_heads_are_a_plain_checkpoint_where_the_configuration_can_say_it(
    name: str, tmp_path: Path
) -> None:
    if not ZOO[name].available:
        pytest.skip("transformers is not installed")
    transformers = pytest.importorskip("transformers")
    model = pruned(name, uniform=True)
    assert save_pruned(model, tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (written["num_attention_heads"], written["num_key_value_heads"]) == (4, 2)
    again = getattr(transformers, type(model).__name__).from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(forward(again, ZOO[name].batch(5)), forward(model, ZOO[name].batch(5)))


def test_a_pruned_language_model_still_generates(tmp_path: Path) -> None:
    if not ZOO["llama"].available:
        pytest.skip("transformers is not installed")
    for uniform in (True, False):
        model = pruned("llama", uniform=uniform)
        save_pruned(model, tmp_path / str(uniform))
        again: Any = load_pruned(tmp_path / str(uniform))
        prompt = ZOO["llama"].batch(2)["input_ids"]  # type: ignore[index,call-overload]
        made = [m.generate(prompt, max_new_tokens=6, do_sample=False) for m in (model, again)]
        assert torch.equal(*made)
        with torch.no_grad():  # the cache of keys and values is used, and does not change the answer
            whole = model(input_ids=made[0], use_cache=False).logits[:, prompt.shape[1] - 1 : -1]
        assert torch.equal(whole.argmax(-1), made[0][:, prompt.shape[1] :])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("uniform", [True, False])
def test_the_dtype_stays(dtype: torch.dtype, uniform: bool, tmp_path: Path) -> None:
    if not ZOO["llama"].available:
        pytest.skip("transformers is not installed")
    model = pruned("llama", uniform=uniform).to(dtype)
    save_pruned(model, tmp_path / "saved")
    again = load_pruned(tmp_path / "saved")
    assert {parameter.dtype for parameter in again.parameters()} == {dtype}
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    if not ZOO["llama"].available:
        pytest.skip("transformers is not installed")
    for uniform in (True, False):
        save_pruned(pruned("llama", uniform=uniform), tmp_path / str(uniform))
        again: Any = load_pruned(tmp_path / str(uniform))
        assert again.lm_head.weight is again.model.embed_tokens.weight


def test_report_and_tokenizer_lie_beside_the_weights(tmp_path: Path) -> None:
    class Tokenizer:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "tokenizer.json").write_text("{}")

    class Report:
        def to_dict(self) -> dict[str, Any]:
            return {"sites": []}

    save_pruned(torch.nn.Linear(3, 2), tmp_path / "saved", report=Report(), tokenizer=Tokenizer())
    assert json.loads((tmp_path / "saved" / "pruning.json").read_text()) == {"sites": []}
    assert (tmp_path / "saved" / "tokenizer.json").exists()
    assert all(path.stat().st_mode & 0o044 for path in (tmp_path / "saved").rglob("*")), "others may read it"


# ----------------------------------------------------------------------------------------------------------- errors


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("")
    layer = torch.nn.Linear(3, 2)
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        save_pruned(layer, tmp_path / "full")
    with pytest.raises(InputError, match="there is no directory"):
        save_pruned(layer, tmp_path / "no" / "such")

    class Broken:
        def save_pretrained(self, folder: Path) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_pruned(layer, tmp_path / "new", tokenizer=Broken())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    (tmp_path / "empty").mkdir()
    save_pruned(layer, tmp_path / "empty")
    assert isinstance(load_pruned(tmp_path / "empty", torch.nn.Linear(9, 9)), torch.nn.Linear)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_pruned(pruned("perceptron", uniform=False), tmp_path / "saved")
    return tmp_path / "saved"


def test_folders_that_are_none(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"not a folder with a pruned model: it has no config\.json"):
        load_pruned(tmp_path)
    with pytest.raises(InputError, match="build a dense one and pass it as model="):
        load_pruned(saved)
    with pytest.raises(InputError, match="and the model given is a Linear"):
        load_pruned(saved, torch.nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-20], "is damaged"),
        (lambda text: "[]", "is damaged"),
        (
            lambda text: json.dumps({**json.loads(text), "format": "other"}),
            "does not describe a pruned model",
        ),
        (lambda text: json.dumps({**json.loads(text), "version": "2.0"}), "written in version 2.0"),
        (
            lambda text: json.dumps({**json.loads(text), "tensors": {"other": [[1], "float32"]}}),
            "do not hold the same tensors",
        ),
    ],
    ids=["cut off", "a list", "another format", "a later version", "other tensors"],
)
def test_damaged_structure(saved: Path, damage: Any, message: str) -> None:
    path = saved / "structure.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(FormatError, match=message):
        load_pruned(saved, ZOO["perceptron"].build())


def test_damaged_weights(saved: Path) -> None:
    weights = load_file(saved / "weights.safetensors")
    name = next(name for name, weight in weights.items() if weight.ndim == 2)
    save_file(weights | {name: weights[name][:1].clone()}, saved / "weights.safetensors")
    with pytest.raises(FormatError, match="do not fit its structure"):
        load_pruned(saved, ZOO["perceptron"].build())
    (saved / "weights.safetensors").write_bytes(b"nonsense")
    with pytest.raises(FormatError, match="could not be read"):
        load_pruned(saved, ZOO["perceptron"].build())
