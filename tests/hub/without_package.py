"""The first lines of a script that runs as if the package were not installed."""

WITHOUT_PACKAGE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "na_ssl_hf":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
"""
