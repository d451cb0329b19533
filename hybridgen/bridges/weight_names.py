"""Where each part of a hybrid stands among the names of its weights."""

EMBEDDINGS, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
BACKBONE, TOWER = "model.language_model.", "model.vision_model."
PARTS_OF_PATH = {  # path -> prefixes of the weights that only it has
    "understanding": (TOWER, "model.aligner."),
    "diffusion": ("model.patch_embed.", "model.timestep_embedder.", "model.final_layer."),
    "vq": ("model.generation_embeddings.", "model.generation_aligner.", "model.generation_head."),
}
