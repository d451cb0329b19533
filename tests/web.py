"""The web page's libraries, found in a folder of their own: gradio 6.31 asks for a Pillow below 13, and works with it.

Whoever imports this can import them, where they are there.
"""

import sys
from pathlib import Path

FOLDER = Path(sys.prefix) / "app"
if FOLDER.is_dir() and str(FOLDER) not in sys.path:
    sys.path.append(str(FOLDER))
