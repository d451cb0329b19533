"""Where each part of a hybrid stands among the names of its weights."""

from hybridgen.paths.modality_experts import EXPERT

EMBEDDINGS, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
BACKBONE, TOWER = "model.language_model.", "model.vision_model."
PARTS_OF_PATH = {  # path -> prefixes of the weights that only it has
    "understanding": (TOWER, "model.aligner."),
    "diffusion": ("model.patch_embed.", "model.timestep_embedder.", "model.final_layer."),
    "vq": ("model.generation_embeddings.", "model.generation_aligner.", "model.generation_head."),
}


def is_of_path(name: str) -> bool:
    """Whether a path alone has a weight, whichever it is."""
    return name.startswith(sum(PARTS_OF_PATH.values(), ())) or is_of_diffusion(name)


def is_of_diffusion(name: str) -> bool:
    """Whether the diffusion path alone has a weight: a part of it, its alignment head, or a modality expert."""
    return name.startswith((*PARTS_OF_PATH["diffusion"], "model.alignment_head.")) or f".{EXPERT}." in name
