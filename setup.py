"""The one step of the build that pyproject.toml cannot say: the wheel brings the training scripts of `examples/` along.

`na-ssl train` runs them from there. In a checkout and in an editable installation it finds them in `examples/` itself.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

TRAINING_SCRIPTS = ("train_na_distillation.py", "finetune_discriminative.py", "pretrain_tiny_base.py")


class BuildWithTrainingScripts(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, destination in self.training_scripts().items():
                self.mkpath(str(Path(destination).parent))
                self.copy_file(source, destination)

    def training_scripts(self) -> dict[str, str]:
        folder = Path(self.build_lib, "na_ssl_hf", "training_scripts")
        return {str(Path("examples", name)): str(folder / name) for name in TRAINING_SCRIPTS}

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *self.training_scripts().values()]

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *self.training_scripts()]


setup(cmdclass={"build_py": BuildWithTrainingScripts})
