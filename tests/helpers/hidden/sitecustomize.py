"""On PYTHONPATH, makes a process find only what requirements-serve.txt installs."""

import sys
from importlib.machinery import PathFinder

HIDDEN = {"torch", "torchvision", "timm", "captum", "mlflow", "pandas", "sklearn", "scipy", "matplotlib", "onnx",
          "onnxscript", "onnx_ir", "cleanlab", "threadpoolctl", "pyarrow", "jinja2"}  # fmt: skip


class Serving(PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] in HIDDEN else super().find_spec(fullname, path, target)


sys.meta_path[:] = [Serving if finder is PathFinder else finder for finder in sys.meta_path]
