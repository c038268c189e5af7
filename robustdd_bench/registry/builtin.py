"""The harness's own plugin: datasets, networks, tracks and the executor, by the hooks of all."""

from __future__ import annotations

from pathlib import Path

from robustdd_bench.hookspecs import Register, hookimpl

_TRACKS = Path(__file__).parents[1] / "protocol" / "tracks"
_SUBSETS = {
    "imagenette": "easy ones",
    "imagewoof": "dogs",
    "imagemeow": "cats",
    "imagesquawk": "birds",
    "imagefruit": "fruit",
    "imageyellow": "yellow things",
}


@hookimpl
def robustdd_register_datasets(register: Register) -> None:
    """Digits, torchvision's image sets, folders of images, Tiny ImageNet and ImageNet subsets."""
    module = "robustdd_bench.protocol.datasets"
    register("digits", f"{module}:load_digits", "scikit-learn's digits, 8x8, embedded")
    register("cifar10", f"{module}:load_cifar10", "CIFAR-10 (torchvision)")
    register("cifar100", f"{module}:load_cifar100", "CIFAR-100 (torchvision)")
    register("svhn", f"{module}:load_svhn", "SVHN, cropped (torchvision)")
    register("mnist", f"{module}:load_mnist", "MNIST (torchvision)")
    register("fashion-mnist", f"{module}:load_fashion_mnist", "Fashion-MNIST (torchvision)")
    register("folder", f"{module}:load_folder", "train/ and test/ with one folder a class")
    module = "robustdd_bench.protocol.imagenet.loaders"
    register("tiny-imagenet", f"{module}:load_tiny_imagenet", "Tiny ImageNet, 64x64, 200 classes")
    for name, classes in _SUBSETS.items():
        register(name, f"{module}:load_{name}", f"ten classes of ImageNet, 128x128: {classes}")


@hookimpl
def robustdd_register_networks(register: Register) -> None:
    """The field's ConvNet, and its pool of other architectures."""
    register(
        "convnet",
        "robustdd_bench.protocol.networks:convnet",
        "ConvNet of configurable depth and width, instance norm",
    )
    module = "robustdd_bench.protocol.architectures"
    register("mlp", f"{module}:mlp", "two hidden layers of 128 units")
    register("alexnet", f"{module}:alexnet", "AlexNet for small images, no norm")
    register("vgg11", f"{module}:vgg11", "VGG11, instance norm")
    register("resnet18", f"{module}:resnet18", "ResNet18, stem for small images, instance norm")
    register("resnet18-bn", f"{module}:resnet18_bn", "the same with batch norm, for students")
    register("vit-tiny", "robustdd_bench.protocol.vit:vit_tiny", "ViT-Ti, patches of 4x4 or 2x2")


@hookimpl
def robustdd_register_tracks(register: Register) -> None:
    """The embedded tracks, each with the summary that its file has."""
    for path in sorted(_TRACKS.glob("*.toml")):
        register(path.stem, f"robustdd_bench.protocol:tracks/{path.name}", _summary(path))


@hookimpl
def robustdd_register_executors(register: Register) -> None:
    """This process, several, or workers on a shared folder."""
    register("local", "robustdd_bench.executors:LocalExecutor", "one cell after the other, here")
    register(
        "processes",
        "robustdd_bench.runs.execution.processes:ProcessExecutor",
        "several cells at once, in processes of this machine (--jobs)",
    )
    register(
        "workers",
        "robustdd_bench.runs.execution.queue.executor:WorkersExecutor",
        "by every `robustdd worker` on the output folder, on any machine",
    )


def _summary(track: Path) -> str:
    """The line of a file that has it; reading all of 44 files would be felt in every command."""
    with track.open(encoding="utf-8") as file:
        line = next(line for line in file if line.startswith("summary = "))
    return line.partition('"')[2].rstrip().removesuffix('"')
