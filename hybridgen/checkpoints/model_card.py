"""The model card: the README.md that is saved with a checkpoint, with the metadata by which the hub files it.

It says what the model is and how to load it, from its config alone; what it was trained on and how well it does are for
the people who trained it to add; a card that is there is never overwritten.
"""

from hybridgen.configuration_hybridgen import HybridGenConfig

_WAYS = {
    "understanding": ("SigLIP features", "-"),
    "diffusion": ("clean latents", "denoising"),
    "vq": ("codes", "next-code prediction"),
}


def pipeline_tag(config: HybridGenConfig) -> str:
    """The task that the hub files the model under."""
    writes = {"diffusion", "vq"} & set(config.paths)
    if "understanding" in config.paths:
        return "any-to-any" if writes else "image-text-to-text"
    return "text-to-image" if writes else "text-generation"


def model_card(config: HybridGenConfig, parameters: int, title: str = "A hybridgen model") -> str:
    """The text of README.md."""
    text = config.text_config
    writing = [path for path in config.paths if path != "understanding"]
    rows = "\n".join(f"| `{path}` | {_WAYS[path][0]} | {_WAYS[path][1]} |" for path in config.paths)
    use = ["from hybridgen import HybridGenPipeline", "", 'pipe = HybridGenPipeline.from_pretrained("PATH OR NAME")']
    use += [f'image = pipe("a prompt", path="{path}", seed=0).images[0]' for path in writing]
    use += [f'pipe.answer(image, "what is this?", path="{path}")' for path in config.paths[:1]]
    task = "any-to-any" if writing else "image-text-to-text"
    return f"""---
library_name: hybridgen
pipeline_tag: {pipeline_tag(config)}
tags:
- hybridgen
- transformers
- diffusers
---

# {title}

One transformer for text and images: a `{text.model_type}` backbone of {text.num_hidden_layers} layers, width
{text.hidden_size}; {parameters:,} parameters with all that reads and writes images, codecs not counted.

| path | reads images as | writes images by |
|---|---|---|
{rows}

```python
{chr(10).join(use)}
```

With transformers, after `import hybridgen`: `pipeline("{task}", model="PATH OR NAME")`.

## Training data, results, limits

To be added by those who trained it.
"""
