"""The harness's own plugin: datasets, networks, tracks and the executor, by the hooks of all."""

from __future__ import annotations

from robustdd_bench.hookspecs import Register, hookimpl

_TRACKS = {
    "digits-ipc1": "digits 8x8, 1 image per class; embedded, no download",
    "digits-ipc10": "digits 8x8, 10 images per class; embedded, no download (the default)",
    "digits-ipc10-at": "digits 8x8, 10 images per class; students by PGD-AT",
    "digits-ipc10-trades": "digits 8x8, 10 images per class; students by TRADES",
    "digits-ipc10-transfer-mlp": "digits 8x8, 10 images per class; students: MLP",
    "digits-ipc10-transfer-resnet18": "digits 8x8, 10 images per class; students: ResNet18",
    "digits-ipc10-transfer-vgg11": "digits 8x8, 10 images per class; students: VGG11",
    "digits-ipc10-transfer-vit-tiny": "digits 8x8, 10 images per class; students: ViT-tiny",
    "cifar10-ipc1": "CIFAR-10, 1 image per class",
    "cifar10-ipc5": "CIFAR-10, 5 images per class (0.1 % of the data)",
    "cifar10-ipc10": "CIFAR-10, 10 images per class",
    "cifar10-ipc10-at": "CIFAR-10, 10 images per class; students by PGD-AT",
    "cifar10-ipc10-trades": "CIFAR-10, 10 images per class; students by TRADES",
    "cifar10-ipc10-transfer-alexnet": "CIFAR-10, 10 images per class; students: AlexNet",
    "cifar10-ipc10-transfer-resnet18": "CIFAR-10, 10 images per class; students: ResNet18",
    "cifar10-ipc10-transfer-vgg11": "CIFAR-10, 10 images per class; students: VGG11",
    "cifar10-ipc10-transfer-vit-tiny": "CIFAR-10, 10 images per class; students: ViT-tiny",
    "cifar10-ipc50": "CIFAR-10, 50 images per class",
    "cifar10-small-ipc1": "CIFAR-10, 1 image per class; width 32, for machines without a GPU",
    "cifar10-small-ipc5": "CIFAR-10, 5 images per class; width 32, for machines without a GPU",
    "cifar10-small-ipc5-at": "CIFAR-10, 5 images per class; width 32, students by PGD-AT",
    "cifar10-small-ipc5-transfer-resnet18": (
        "CIFAR-10, 5 images per class; width 32; students: ResNet18"
    ),
    "cifar10-small-ipc10": "CIFAR-10, 10 images per class; width 32, for machines without a GPU",
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
    """The embedded tracks."""
    for name, summary in _TRACKS.items():
        register(name, f"robustdd_bench.protocol:tracks/{name}.toml", summary)


@hookimpl
def robustdd_register_executors(register: Register) -> None:
    """This process, or several."""
    register("local", "robustdd_bench.executors:LocalExecutor", "one cell after the other, here")
    register(
        "processes",
        "robustdd_bench.runs.execution.processes:ProcessExecutor",
        "several cells at once, in processes of this machine (--jobs)",
    )
