"""Packages of the tree: fastgan/ itself, two top-level folders that are installed inside it, and what csrc/ becomes.

The CUDA C++ extension is built where nvcc, g++, ninja and a torch are (FASTGAN_BUILD_CUDA=auto), never (0), or else the
installation fails (1). Where it is absent, fastgan/ops/built/absent.txt says why, and ``fastgan doctor`` reads it.
"""

import sys
import sysconfig
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
OUTSIDE = {"kernels": "kernels", "benchmarks": "benchmarks"}  # name under fastgan -> folder at the top of the tree

packages = ["fastgan"]
packages += [f"fastgan.{name}" for name in find_packages("fastgan", exclude=[f"{name}*" for name in OUTSIDE])]
package_dir = {"fastgan": "fastgan"}
for name, folder in OUTSIDE.items():
    package_dir[f"fastgan.{name}"] = folder
    packages += [f"fastgan.{name}", *(f"fastgan.{name}.{sub}" for sub in find_packages(folder))]


def build_extension(package: Path) -> bool:
    """Build the extension into a package's folder, where its sources are there; whether it was built."""
    if not (ROOT / "csrc").is_dir() or not (ROOT / "tools" / "cuda_extension.py").exists():
        return False
    sys.path.insert(0, str(ROOT / "tools"))
    import cuda_extension

    return cuda_extension.build_or_say(package / "ops" / "built")


class BuildWithExtension(build_py):
    """Builds the extension beside the Python files; with an editable installation in the tree."""

    built = False

    def run(self) -> None:
        """Build."""
        super().run()
        package = ROOT / "fastgan" if self.editable_mode else Path(self.build_lib, "fastgan")
        BuildWithExtension.built = build_extension(package)


class Wheel(bdist_wheel):
    """A wheel for this platform where the extension is in it, and for all otherwise; for any Python both."""

    def get_tag(self) -> tuple[str, str, str]:
        """Name what it runs on."""
        if BuildWithExtension.built:
            self.plat_name, self.plat_name_supplied = sysconfig.get_platform(), True
        return super().get_tag()


setup(
    packages=packages,
    package_dir=package_dir,
    package_data={
        "fastgan": ["py.typed"],
        "fastgan.data": ["*.npz", "*.md"],
        "fastgan.kernels": ["tuned/*.json"],
        "fastgan.benchmarks": ["*.json"],
    },
    cmdclass={"build_py": BuildWithExtension, "bdist_wheel": Wheel},
)
