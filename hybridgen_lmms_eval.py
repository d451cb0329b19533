"""What lmms-eval loads at each of its starts to know the model `hybridgen` (entry point `lmms_eval.models`).

It stands beside the package, as lmms-eval asks every plugin, also for runs of other models: nothing of hybridgen, whose
import takes seconds, is imported until the model is used.
"""


def manifest():
    """Where lmms-eval finds the model's two forms."""
    from lmms_eval.models.registry_v2 import ModelManifest

    adapter = "hybridgen.evaluation.harnesses.lmms_eval"
    return ModelManifest(
        model_id="hybridgen",
        simple_class_path=f"{adapter}.HybridGenSimple",
        chat_class_path=f"{adapter}.HybridGenChat",
    )
