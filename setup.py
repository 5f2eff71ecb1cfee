"""Packages of the tree: fastgan/ itself, and the two top-level folders that are installed inside it."""

from setuptools import find_packages, setup

OUTSIDE = {"kernels": "kernels", "benchmarks": "benchmarks"}  # name under fastgan -> folder at the top of the tree

packages = ["fastgan"]
packages += [f"fastgan.{name}" for name in find_packages("fastgan", exclude=[f"{name}*" for name in OUTSIDE])]
package_dir = {"fastgan": "fastgan"}
for name, folder in OUTSIDE.items():
    package_dir[f"fastgan.{name}"] = folder
    packages += [f"fastgan.{name}", *(f"fastgan.{name}.{sub}" for sub in find_packages(folder))]

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={
        "fastgan": ["py.typed"],
        "fastgan.data": ["*.npz", "*.md"],
        "fastgan.kernels": ["tuned/*.json"],
        "fastgan.benchmarks": ["*.json"],
    },
)
