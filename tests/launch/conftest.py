"""`launch` is no installed package: it is imported from the working tree."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
