"""`hybridgen init`: a hybrid out of pretrained parts, to train from; `bridges.assemble` builds it."""

import argparse
from collections.abc import Iterator

from hybridgen.bridges.assemble import AssemblyOptions, assemble
from hybridgen.bridges.chat_templates import check_template
from hybridgen.checkpoints.loading import new_folder

STOPPED = "nothing was written: the new folder appears when all of it is"  # after Ctrl-C


def run(options: argparse.Namespace) -> Iterator[str]:
    """Yields the folder that was written."""
    if options.chat_template is not None:
        check_template(options.chat_template)
    assembly = AssemblyOptions(
        image_size=options.image_size,
        patch_size=options.patch_size,
        unet_channels=options.unet_channels,
        prediction_type=options.prediction,
        understanding_bidirectional=options.bidirectional,
        chat_template=options.chat_template,
        seed=options.seed,
    )
    with new_folder(options.folder) as unfinished:
        assemble(
            options.paths,
            backbone=options.backbone,
            gguf_file=options.gguf_file,
            vision=options.vision,
            vae=options.vae,
            vq=options.vq,
            from_janus=options.from_janus,
            options=assembly,
        ).save_pretrained(unfinished)
    yield str(options.folder)
