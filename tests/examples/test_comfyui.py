"""examples/comfyui as ComfyUI would run it: nodes found by its mappings, inputs checked against INPUT_TYPES, run in
inference mode in the order of their links, kept while inputs and IS_CHANGED stay the same."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hybridgen.pipeline_hybridgen import load_pipeline

FOLDER = Path(__file__).parents[2] / "examples" / "comfyui"
PROMPT = "a gray robe"


@pytest.fixture(scope="module")
def pack():
    """The folder as a package, as ComfyUI imports each folder of `custom_nodes`."""
    spec = importlib.util.spec_from_file_location(
        "comfy_pack", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["comfy_pack"] = module
    spec.loader.exec_module(module)
    yield module
    for name in [name for name in sys.modules if name.split(".")[0] == "comfy_pack"]:
        del sys.modules[name]


class SaveImage:
    """In place of ComfyUI's own."""

    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "save", True, "image"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})}}

    def save(self, images, filename_prefix):
        assert images.dtype == torch.float32
        assert images.ndim == 4
        assert images.shape[-1] == 3
        assert 0 <= images.min() <= images.max() <= 1
        return {"ui": {"images": [filename_prefix] * len(images)}}


class Executor:
    """What ComfyUI does with a prompt in its API form, without its GPU parts."""

    def __init__(self, classes: dict):
        self.classes, self.outputs, self.ran = classes | {"SaveImage": SaveImage}, {}, []

    def run(self, prompt: dict) -> dict:
        """The outputs of each node. `ran` says which were not kept from the last prompt."""
        self.ran, kept, self.outputs = [], self.outputs, {}
        with torch.inference_mode():
            for node in prompt:
                self._run(node, prompt, kept)
        return {node: output for node, (_, output) in self.outputs.items()}

    def _run(self, node: str, prompt: dict, kept: dict) -> tuple:
        if node in self.outputs:
            return self.outputs[node]
        kind, inputs = self.classes[prompt[node]["class_type"]], prompt[node]["inputs"]
        self._validate(kind, inputs, prompt)
        given, signature = {}, [prompt[node]["class_type"]]
        for name, value in inputs.items():
            if isinstance(value, list):
                made_by, outputs = self._run(value[0], prompt, kept)
                given[name] = outputs[value[1]]
                signature.append((name, made_by, value[1]))
            else:
                given[name] = value
                signature.append((name, value))
        if hasattr(kind, "IS_CHANGED"):
            signature.append(kind.IS_CHANGED(**given))
        signature = tuple(signature)
        if node in kept and kept[node][0] == signature:
            self.outputs[node] = kept[node]
        else:
            self.ran.append(node)
            made = getattr(kind(), kind.FUNCTION)(**given)
            assert isinstance(made, dict) or len(made) == len(kind.RETURN_TYPES)
            self.outputs[node] = signature, made
        return self.outputs[node]

    def _validate(self, kind, inputs: dict, prompt: dict) -> None:
        types_of = kind.INPUT_TYPES()
        assert set(types_of["required"]) <= set(inputs)
        for name, value in inputs.items():
            wanted = {**types_of["required"], **types_of.get("optional", {})}[name]
            options = wanted[1] if len(wanted) > 1 else {}
            if isinstance(value, list):
                assert self.classes[prompt[value[0]]["class_type"]].RETURN_TYPES[value[1]] == wanted[0]
            elif isinstance(wanted[0], list):
                assert value in wanted[0]
            else:
                assert isinstance(value, {"STRING": str, "INT": int, "FLOAT": float}[wanted[0]])
                if wanted[0] != "STRING":
                    assert options["min"] <= value <= options["max"]


@pytest.fixture
def prompt(tiny_checkpoint) -> dict:
    prompt = json.loads((FOLDER / "workflow_api.json").read_text())
    prompt["1"]["inputs"]["checkpoint"] = str(tiny_checkpoint)
    prompt["2"]["inputs"] |= {"prompt": PROMPT, "steps": 2}
    prompt["3"]["inputs"]["max_new_tokens"] = 4
    return prompt


def test_the_workflow_draws_and_asks_as_the_pipeline_does(pack, prompt, tiny_checkpoint):
    outputs = Executor(pack.NODE_CLASS_MAPPINGS).run(prompt)
    pipe = load_pipeline(tiny_checkpoint)
    images = torch.from_numpy(
        pipe([PROMPT, PROMPT], path="diffusion", num_inference_steps=2, seed=[0, 1], output_type="np").images
    )
    assert torch.equal(outputs["2"][0], images.float())
    pictures = [Image.fromarray((one * 255).round().to(torch.uint8).numpy()) for one in images]
    assert outputs["3"][0] == pipe.answer(pictures, "what creature is this?", max_new_tokens=4)
    assert outputs["4"]["ui"]["images"] == ["hybridgen"] * 2


def test_what_is_the_same_is_not_drawn_again_and_what_was_written_is_read_again(
    pack, prompt, tiny_checkpoint, tmp_path
):
    import shutil

    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    prompt["1"]["inputs"]["checkpoint"] = str(folder)
    executor = Executor(pack.NODE_CLASS_MAPPINGS)
    executor.run(prompt)
    assert executor.ran == ["1", "2", "3", "4"]
    executor.run(prompt)
    assert executor.ran == []
    prompt["3"]["inputs"]["question"] = "what color?"
    executor.run(prompt)
    assert executor.ran == ["3"]
    prompt["2"]["inputs"]["seed"] = 7
    executor.run(prompt)
    assert executor.ran == ["2", "3", "4"]
    file = folder / "model" / "model.safetensors"
    save_file({name: one + 1e-3 for name, one in load_file(file).items()}, file, {"format": "pt"})
    executor.run(prompt)
    assert executor.ran == ["1", "2", "3", "4"]


def test_by_codes_offloaded_after_a_picture_in_another_size_and_by_words_that_are_drawn(pack, prompt, monkeypatch):
    executor = Executor(pack.NODE_CLASS_MAPPINGS)
    monkeypatch.setitem(pack.nodes.OFFLOADS, "model", lambda pipe: pipe.enable_model_cpu_offload(device="cpu"))
    prompt["1"]["inputs"] |= {"offload": "model", "dtype": "bfloat16"}
    prompt["2"]["inputs"] |= {"path": "vq", "batch_size": 1, "negative": "red", "temperature": 0.5}
    prompt["2"]["inputs"] |= {"seed": (1 << 64) - 1, "guidance": 1.5}
    prompt["3"]["inputs"] |= {"path": "vq", "temperature": 1.0, "seed": (1 << 64) - 1}
    outputs = executor.run(prompt)
    assert len(outputs["2"][0]) == 1
    after = {"class_type": "HybridGenDraw", "inputs": {**prompt["2"]["inputs"], "image": ["2", 0]}}
    assert executor.run({**prompt, "5": after})["5"][0].shape == outputs["2"][0].shape


def test_several_pictures_before_one_prompt_and_wrong_values_are_refused_in_a_sentence(pack, prompt):
    prompt["5"] = {"class_type": "HybridGenDraw", "inputs": {**prompt["2"]["inputs"], "image": ["2", 0]}}
    with pytest.raises(ValueError, match="image has 2 pictures; a prompt takes one before it"):
        Executor(pack.NODE_CLASS_MAPPINGS).run(prompt)
    prompt["2"]["inputs"]["width"] = 33
    with pytest.raises(ValueError, match="33"):
        Executor(pack.NODE_CLASS_MAPPINGS).run(prompt)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_of_any_channels(pack, channels):
    values = torch.rand(2, 4, 6, channels)
    seen = pack.nodes.pictures(values)
    assert [one.size for one in seen] == [(6, 4)] * 2
    back = torch.tensor(list(seen[0].tobytes())).view(4, 6, channels)
    assert torch.equal(back, (values[0] * 255).round().long())


def test_the_bar_advances_and_cancel_ends_a_drawing(pack, prompt, monkeypatch):
    shown, stopped = [], []

    class ProgressBar:
        def __init__(self, total):
            shown.append(total)

        def update_absolute(self, value, total):
            shown.append((value, total))

    def interrupted():
        if stopped:
            raise KeyboardInterrupt

    comfy, utils, management = (types.ModuleType(f"comfy{part}") for part in ("", ".utils", ".model_management"))
    utils.ProgressBar, management.throw_exception_if_processing_interrupted = ProgressBar, interrupted
    for module in (comfy, utils, management):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    Executor(pack.NODE_CLASS_MAPPINGS).run(prompt)
    assert shown == [2, (1, 2), (2, 2)]
    stopped.append(True)
    with pytest.raises(KeyboardInterrupt):
        Executor(pack.NODE_CLASS_MAPPINGS).run(prompt)
    assert len(shown) == 3
