"""Pictures and questions -> answers, by any path that reads: the answering half of `HybridGenPipeline`.

How words are written is `sampling.text`'s. The fact a newcomer gets wrong: an image that is read by the diffusion path
is clean, at timestep 0; nothing is drawn, and nothing is random.
"""

import torch
from torch import Tensor

from hybridgen.configuration_hybridgen import require_path
from hybridgen.core.messages import without_reasoning
from hybridgen.pipeline_checks import check_counts
from hybridgen.processing_hybridgen import Document, left_pad
from hybridgen.sampling.text import write_text


class Answering:
    """The answering half of `HybridGenPipeline`."""

    @torch.no_grad()
    def answer(
        self,
        images,
        questions: str | list[str],
        path: str | list[str] = "understanding",
        max_new_tokens: int = 32,
        max_batch: int = 64,
    ) -> list[str]:
        """Answer questions about images: the likeliest words, so the same every time. A model that reasons first is
        given its time, and its reasoning is left out.

        Args:
            images, questions: equally many, or one of either for all of the other.
            path: by which the images are read: `understanding`, `diffusion` (clean) or `vq`; or several, one after the
                other, where the model was trained so (BAGEL).
            max_new_tokens: of each answer, its reasoning among them; one whose reasoning did not end is the reasoning.
            max_batch: questions at a time.

        Raises:
            ValueError: in one sentence, what is wrong.
        """
        for one in [path] if isinstance(path, str) else path:
            require_path(self.model.config.paths, one)
            self.check_codec(one)
        check_counts(max_new_tokens=max_new_tokens, max_batch=max_batch)
        answers = []
        asked = _pairs(images, questions)
        for start in range(0, len(asked), max_batch):
            documents = []
            for image, question in asked[start : start + max_batch]:
                content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
                documents.append(self.processor.prompt([{"role": "user", "content": content}], read=path))
                self.check_length(question, len(documents[-1]), max_new_tokens, "the answer")
            prompts, tokens = self._read(documents), self.processor.special_tokens
            written = write_text(self.model, self.processor.tokenizer, tokens, prompts, max_new_tokens)
            answers += map(without_reasoning, written)
        return answers

    def _read(self, documents: list[Document]) -> dict:
        """Documents with images -> what `prefill` takes, padded on the left."""
        batch, device = left_pad(documents, self.processor.special_tokens.pad), self._execution_device
        vectors = ("input_ids", "document_ids", "block_ids", "position_ids")
        inputs = {name: batch[name].to(device) for name in vectors}
        return inputs | self._media(batch)

    def _media(self, batch: dict) -> dict[str, Tensor]:
        """The images of a batch as `left_pad` makes it -> as `forward` takes them."""
        media, device = {}, self._execution_device
        if batch["pixel_values"] is not None:
            media["pixel_values"] = batch["pixel_values"].to(device)
        if batch["diffusion_images"]:
            media["latents"] = self.latent_codec.encode(torch.stack(batch["diffusion_images"]).to(device))
            media["timesteps"] = torch.zeros(len(media["latents"]), device=device)  # clean
        if batch["vq_images"]:
            media["codes"] = self.vq_codec.encode(torch.stack(batch["vq_images"]).to(device))
        return media


def _pairs(images, questions: str | list[str]) -> list[tuple]:
    """Images and questions side by side; one of either stands beside all of the other."""
    images = list(images) if isinstance(images, list | tuple) else [images]
    questions = [questions] if isinstance(questions, str) else list(questions)
    if not images or not questions:
        raise ValueError(
            f"{len(images)} images and {len(questions)} questions leave nothing to answer; give at least one of each"
        )
    if len(images) != len(questions) and 1 not in (len(images), len(questions)):
        raise ValueError(
            f"{len(images)} images and {len(questions)} questions do not pair; give equally many, or one of either"
        )
    count = max(len(images), len(questions))
    images = images * count if len(images) == 1 else images
    questions = questions * count if len(questions) == 1 else questions
    return list(zip(images, questions, strict=True))
