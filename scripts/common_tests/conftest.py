"""What of the common tests does not fit hybridgen, and why. Everything else must pass.

hybridgen is imported before the libraries' tests: it mends torchvision beside a CPU build of torch.
"""

import pytest

import hybridgen  # noqa: F401

# class -> test (without the parameters' part of its name) -> reason
CODECS = "without its VAE or tokenizer a path cannot draw, and scheduler=None becomes the noise process' own"
REASONS: dict[str, dict[str, str]] = {
    "Processor": {
        "test_chat_template_save_loading": "a template that writes no images is refused when the processor is made",
    },
    "Images": {
        "test_call_numpy_4_channels": "pictures become RGB: what is transparent shows white",
        "test_new_models_require_torchvision_backend": "PIL alone, as DeepSeek's Janus: pixels do not depend on what is"
        " installed",
        "test_pil_can_run_without_torchvision": "a process of its own that does not import hybridgen (and hybridgen "
        "needs torchvision)",
    },
    "Diffusion": {"test_save_load_optional_components": CODECS},
    "VQ": {"test_save_load_optional_components": CODECS},
    "Pixels": {"test_save_load_optional_components": CODECS},
    **{f"Test{kind}": {"test_save_load_optional_components": CODECS} for kind in ("Diffusion", "VQ", "Pixels")},
}


def pytest_collection_modifyitems(items):
    for item in items:
        for name, reason in REASONS.get(item.cls.__name__ if item.cls else "", {}).items():
            if item.originalname == name or item.name.split("[")[0].startswith(name):
                item.add_marker(pytest.mark.skip(reason=reason))
