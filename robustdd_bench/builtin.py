"""The harness's own plugin: datasets, networks, tracks and the executor, by the hooks of all."""

from __future__ import annotations

from robustdd_bench.hookspecs import Register, hookimpl

_TRACKS = {
    "digits-ipc1": "digits 8x8, 1 image per class; embedded, no download",
    "digits-ipc10": "digits 8x8, 10 images per class; embedded, no download (the default)",
    "cifar10-ipc1": "CIFAR-10, 1 image per class",
    "cifar10-ipc5": "CIFAR-10, 5 images per class (0.1 % of the data)",
    "cifar10-ipc10": "CIFAR-10, 10 images per class",
    "cifar10-ipc50": "CIFAR-10, 50 images per class",
    "cifar100-ipc1": "CIFAR-100, 1 image per class",
    "cifar100-ipc10": "CIFAR-100, 10 images per class",
    "cifar100-ipc50": "CIFAR-100, 50 images per class",
}


@hookimpl
def robustdd_register_datasets(register: Register) -> None:
    """Digits, torchvision's image sets, and folders of images."""
    module = "robustdd_bench.protocol.datasets"
    register("digits", f"{module}:load_digits", "scikit-learn's digits, 8x8, embedded")
    register("cifar10", f"{module}:load_cifar10", "CIFAR-10 (torchvision)")
    register("cifar100", f"{module}:load_cifar100", "CIFAR-100 (torchvision)")
    register("svhn", f"{module}:load_svhn", "SVHN, cropped (torchvision)")
    register("mnist", f"{module}:load_mnist", "MNIST (torchvision)")
    register("fashion-mnist", f"{module}:load_fashion_mnist", "Fashion-MNIST (torchvision)")
    register("folder", f"{module}:load_folder", "train/ and test/ with one folder a class")


@hookimpl
def robustdd_register_networks(register: Register) -> None:
    """The field's ConvNet."""
    register(
        "convnet",
        "robustdd_bench.protocol.networks:convnet",
        "ConvNet of configurable depth and width, instance norm",
    )


@hookimpl
def robustdd_register_tracks(register: Register) -> None:
    """The embedded tracks."""
    for name, summary in _TRACKS.items():
        register(name, f"robustdd_bench.protocol:{name}.toml", summary)


@hookimpl
def robustdd_register_executors(register: Register) -> None:
    """The executor that runs every cell in this process."""
    register(
        "local", "robustdd_bench.runs.executors:LocalExecutor", "one cell after the other, here"
    )
