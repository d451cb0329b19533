"""The reference implementations that distances are compared with, in a folder of their own (the Makefile's `metrics`).

It stands at the end of the path: torch-fidelity brings a package named `tests`, too.
"""

import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "metrics"
if str(FOLDER) not in sys.path:
    sys.path.append(str(FOLDER))

from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: E402
from torch_fidelity.metric_prc import calculate_precision_recall_part  # noqa: E402
from torchmetrics.image.fid import _compute_fid as compute_fid  # noqa: E402
from torchmetrics.image.kid import poly_mmd  # noqa: E402

__all__ = ["FeatureExtractorInceptionV3", "calculate_precision_recall_part", "compute_fid", "poly_mmd"]
