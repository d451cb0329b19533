"""Charts of runs, each kind drawn once: one takes half a second, as long as a run of the tests. Not a test itself.

A run with other curves than all before it is drawn in full, as users see it; one with the same gets the same picture.
"""

from pathlib import Path

from hybridgen.core.figures import read_curves
from hybridgen.core.files import whole_file
from hybridgen.training.monitor import charts, diagnostics

_DRAWN: dict[frozenset[str], bytes] = {}  # names of a run's curves -> its picture


def draw_each_kind_once() -> None:
    """From now on, in this process."""
    diagnostics.draw = _draw


def _draw(metrics: Path, picture: Path) -> bool:
    names = frozenset(read_curves(metrics))
    if names in _DRAWN:
        with whole_file(picture) as aside:
            aside.write_bytes(_DRAWN[names])
        return True
    if drawn := charts.draw(metrics, picture):
        _DRAWN[names] = picture.read_bytes()
    return drawn
