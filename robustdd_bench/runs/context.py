"""The context of a run: data, networks, method and attacks, made from the plan when first used.

Workers build their own from the plan and the folders.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustdd_bench.attacks import Attack, ThreatModel
from robustdd_bench.config import recorded_config
from robustdd_bench.distillers import DistilledSet, Distiller, DistillTask, Part, StagedDistiller
from robustdd_bench.errors import PluginError
from robustdd_bench.filenames import STORE_FOLDER, WORK_FOLDER
from robustdd_bench.files import read_safetensors
from robustdd_bench.guard import blame, blame_stranger
from robustdd_bench.plugins import Registry
from robustdd_bench.protocol.datasets import ImageData, Split, stratified_holdout
from robustdd_bench.protocol.loading import load_data, read_data
from robustdd_bench.protocol.networks import Networks, RegisteredNetworks
from robustdd_bench.protocol.preprocessing import Preprocessing
from robustdd_bench.protocol.tracks import NetworkSpec
from robustdd_bench.records.means import device_here
from robustdd_bench.records.plan import Plan, method_entry
from robustdd_bench.runs.folder import RunFolder
from robustdd_bench.runs.shared import SharedData
from robustdd_bench.seeds import Seeds, isolated_rng, seeded_globals
from robustdd_bench.signatures import warn_of_former
from robustdd_bench.toolkit.fast.compile import availability


class RunContext(RunFolder):
    """Everything cells need, made from the plan when first used.

    Args:
        plan: the run.
        registry: the installed plugins.
        out: the folder under which runs and the shared store live.
        data_root: where datasets are looked for.
        download: whether a missing dataset may be downloaded.
        witnesses: whether adversarial examples are kept.
        students: judge only so many of the track's students, from the first; None: all.
        examples: judge only on so many images from the start of the split; None: all.
        shared: data and layers of other runs in this process.
        data_file: the data themselves, of a process that lacks them; see `protocol.loading`.
    """

    def __init__(
        self,
        plan: Plan,
        registry: Registry,
        out: Path,
        data_root: Path,
        *,
        download: bool = False,
        witnesses: bool = False,
        students: int | None = None,
        examples: int | None = None,
        shared: SharedData | None = None,
        data_file: Path | None = None,
    ) -> None:
        out = out.absolute()  # whatever a plugin does to the working directory
        self.plan = plan
        self.registry = registry
        self.out = out
        super().__init__(plan.folder(out))
        self.store = out / STORE_FOLDER
        self.data_root = data_root.absolute()
        self.download = download
        self.witnesses = witnesses
        self._data_file = data_file
        self._judged = students
        self._examples = examples
        self.shared = SharedData() if shared is None else shared
        self.device = torch.device(device_here(plan.device))
        self.seeds = Seeds(plan.seed, plan.track.family, plan.method)
        """Of the judges: students and attacks take `seeds.shared()`."""
        self.method_seeds = self.seeds.for_method(plan.track.seed_scheme)

    @cached_property
    def _data(self) -> ImageData:
        return self.whole_data()

    def whole_data(self) -> ImageData:
        """Both splits of the dataset, on the CPU. They are not kept here: see `SharedData`."""
        track, file = self.plan.track, self._data_file

        def load() -> ImageData:
            if file is not None:
                return read_data(file)
            return load_data(track, self.registry, self.data_root, download=self.download)

        return self.shared.data(track.data, self._data_place, load)

    @property
    def _data_place(self) -> Path:
        return self._data_file or self.data_root

    @cached_property
    def _splits(self) -> tuple[Split, Split]:
        """What is trained on, and what is evaluated on; the test split is touched only here."""
        data, spec = self._data, self.plan.track.data
        if self.plan.split == "test":
            return data.train.alone(), data.test
        kept, held = stratified_holdout(
            data.train.labels, spec.validation_fraction, spec.split_seed
        )
        return data.train.take(kept), data.train.take(held)

    @cached_property
    def train(self) -> Split:
        """The training images, on the device; other runs have a copy of their own."""
        return self._splits[0].copy(self.device)

    @cached_property
    def evaluation(self) -> Split:
        """The images students are judged on, on the device."""
        whole = self.whole_evaluation
        if self._examples is None:
            return whole.copy(self.device)
        first = slice(self._examples)
        return Split(whole.images[first], whole.labels[first]).copy(self.device)

    @property
    def whole_evaluation(self) -> Split:
        """The split that students are judged on, all of it, on the CPU."""
        return self._splits[1]

    @cached_property
    def compile(self) -> bool:
        """Whether compiled kernels compute: the plan says so, and they can be had here."""
        return self.plan.compile and self.missing_kernels is None

    @property
    def missing_kernels(self) -> str | None:
        """Why the plan's compiled kernels cannot be had here, in one line."""
        if self.device.type != self.plan.device:  # other machines compute
            return None
        found = availability(self.device)
        return f"steps run eagerly: {found.reason}" if self.plan.compile > found.active else None

    @property
    def judged(self) -> range:
        """The students that are attacked and checked."""
        count = self.plan.track.students.count
        return range(count if self._judged is None else self._judged)

    @property
    def trained(self) -> range:
        """The students that are trained: those judged, or all if an attack transfers examples."""
        return range(
            max(len(self.needed_students(attack.name, self.judged)) for attack in self.plan.attacks)
        )

    @property
    def num_classes(self) -> int:
        """K."""
        return self._data.num_classes

    @property
    def shape_CHW(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self._data.train.images.shape[1:])

    @cached_property
    def data_hashes(self) -> tuple[str, str]:
        """Hashes of the training and the evaluation split."""
        return self.shared.hashes(self.plan, self._data_place, self._splits)

    @property
    def preprocessing(self) -> Preprocessing:
        """The track's preprocessing."""
        return Preprocessing(**self.plan.track.preprocessing.model_dump())

    def _networks(self, spec: NetworkSpec, **options: Any) -> Networks:
        entry = self.registry.get("networks", spec.name)
        return Networks(
            entry.load(),
            spec.options,
            self.num_classes,
            self.train.images,
            self.device,
            entry.plugin,
            f"network {spec.name!r}",
            **options,
        )

    @cached_property
    def _students(self) -> Networks:
        """Students are networks of their own: nothing that a plugin holds is a part of them."""
        track, layers = self.plan.track, {}
        if self.preprocessing.kind == "zca":  # whose fit takes seconds
            layers[self.preprocessing] = self.shared.layer(
                (self.data_hashes[0], self.plan.device, self.plan.threads),
                self.preprocessing,
                self.train.images,
            )
        return self._networks(track.student_network or track.network, separate=True, layers=layers)

    def network_code(self) -> contextlib.AbstractContextManager[None]:
        """Around work on students: their forward passes are code of the network's plugin."""
        spec = self.plan.track.student_network or self.plan.track.network
        owner = self.registry.get("networks", spec.name).plugin
        return blame_stranger(owner, f"network {spec.name!r}")

    def threat(self, eps: float) -> ThreatModel:
        """The track's threat model at an eps."""
        return ThreatModel(self.plan.track.threat.norm, eps)

    @cached_property
    def distiller(self) -> Distiller:
        """The method, configured."""
        plan = self.plan
        plugged = method_entry(self.registry, plan.method).load()
        config = recorded_config(plugged.Config, plan.config, f"method {plan.method!r}")
        with blame(plan.plugin, f"method {plan.method!r}"):
            distiller = plugged(config)
        if not isinstance(distiller, Distiller):
            raise PluginError(f"plugin {plan.plugin!r}: {plan.method!r} is not a Distiller")
        return distiller

    @property
    def reference(self) -> bool:
        """Whether the method is an end of the scale rather than a distilled set."""
        return bool(getattr(method_entry(self.registry, self.plan.method).load(), "reference", 0))

    def attack(self, name: str) -> Attack:
        """An attack of the suite, configured."""
        planned = next(a for a in self.plan.attacks if a.name == name)
        plugged = self.registry.get("attacks", name).load()
        config = recorded_config(plugged.Config, planned.config, f"attack {name!r}")
        with blame(planned.plugin, f"attack {name!r}"):
            attack = plugged(config)
            for declared in ("norms", "routed", "uses_sources", "stronger_than", "weaker_than"):
                getattr(attack, declared, None)  # what it declares is read unguarded later
        if not isinstance(attack, Attack):
            raise PluginError(f"plugin {planned.plugin!r}: {name!r} is not an Attack")
        return attack

    @cached_property
    def task(self) -> DistillTask:
        """What the method gets. Nothing in it leads to the evaluation split or to this object."""
        track = self.plan.track
        # A copy of the students' layer, which is fitted once; what a method does to it stays there.
        layer = copy.deepcopy(self._students(self.preprocessing).layer)
        networks = self._networks(track.network, layers={self.preprocessing: layer})
        work = self.folder / WORK_FOLDER
        work.mkdir(parents=True, exist_ok=True)
        facts = self.num_classes, self.train.images, self.device
        return DistillTask(
            images=self.train.images,
            labels=self.train.labels,
            num_classes=self.num_classes,
            ipc=track.data.ipc,
            network=networks(self.preprocessing),
            preprocessing=self.preprocessing,
            threat=self.threat(track.threat.headline),
            augmentation=track.students.augmentation,
            device=torch.device(self.plan.device),
            seeds=self.method_seeds,
            work_dir=work,
            store_dir=self.store,
            data_sha256=self.data_hashes[0],
            allow_flip=track.data.flip,
            network_with=networks,
            networks=RegisteredNetworks(
                self.registry.entries["networks"], *facts, {self.preprocessing: layer}
            ),
            compile=self.compile,
        )

    @property
    def limits(self) -> dict[str, int | None]:
        """On how much is judged, where that is not all; see the arguments."""
        return {"students": self._judged, "examples": self._examples}

    def let_go(self) -> None:
        """Free data, networks and method; what is used again is made again."""
        for name in ("train", "evaluation", "task", "distiller", "_students", "_splits", "_data"):
            self.__dict__.pop(name, None)

    def prepare(self) -> None:
        """Make whatever can be told to be missing or wrong before anything is computed.

        Raises:
            UsageError: data are missing, or do not fit the track's networks or images per class.
            PluginError: method or attacks cannot be made.
        """
        _ = self.train, self.evaluation, self.distiller
        self.task.network(0)
        self._students(self.preprocessing)(0)
        if not self.reference:
            self.task.required_ipc()
        for planned in self.plan.attacks:
            attack, info = self.attack(planned.name), self.registry.plugins.get(planned.plugin)
            source = info.distribution if info else ""
            warn_of_former(type(attack), planned.name, planned.plugin, source)

    @contextlib.contextmanager
    def method(self, what: str = "") -> Iterator[None]:
        """Run code of the method.

        It is blamed for what it raises; what it draws from the global generators is seeded; what
        it leaves changed is put back; and it must leave the training data, which students share,
        as they are.
        """
        plan, data = self.plan, (self.train.images, self.train.labels)
        before = [tensor._version for tensor in data]
        who = f"method {plan.method!r}{what}"
        seed = self.method_seeds.seed("global", what)
        with isolated_rng(seed), seeded_globals(seed), blame(plan.plugin, who):
            yield
        if [tensor._version for tensor in data] != before:
            raise PluginError(
                f"plugin {plan.plugin!r}: {who} wrote into the training images or labels; "
                "it has to work on a copy"
            )

    def distilled(self) -> DistilledSet:
        """The distilled set, read from its file."""
        return DistilledSet.load(self.set_path)

    def groups(self, attack: str) -> list[tuple[int, ...]]:
        """The students that an attack moves together: all of them where that is faster.

        On a GPU the kernels of one small network leave it idle. On the CPU students are attacked
        one by one, which is as fast (benchmarks/results/), loses less when the run is killed, and
        lets an executor spread them.
        """
        students = tuple(self.judged)
        routed = getattr(self.registry.get("attacks", attack).load(), "routed", False)
        together = routed and self.plan.device == "cuda"
        return [students] if together else [(r,) for r in students]

    def group_of(self, attack: str, index: int) -> tuple[int, ...]:
        """The group that a student is in."""
        return next(group for group in self.groups(attack) if index in group)

    def earlier(self, name: str) -> list[str]:
        """The attacks whose outcomes an attack needs: on survivors, those before it."""
        names = [attack.name for attack in self.plan.attacks]
        return names[: names.index(name)] if self.plan.track.attack(name).on == "survivors" else []

    def student_network(self, distilled: DistilledSet, seed: int) -> nn.Module:
        """A fresh student, behind the set's preprocessing or else the track's."""
        return self._students(distilled.preprocessing or self.preprocessing)(seed)

    def student(self, index: int) -> nn.Module:
        """A trained student, read from its file, in eval mode with frozen weights."""
        network = self.student_network(self.distilled(), 0)
        tensors, _ = read_safetensors(self.student_path(index))
        network.load_state_dict(tensors)
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        return network.eval()

    def student_facts(self, index: int) -> dict[str, Any]:
        """What is known of a trained student, from its file."""
        _, metadata = read_safetensors(self.student_path(index))
        facts: dict[str, Any] = json.loads(metadata["student"])
        return facts

    def parts(self) -> tuple[Part, ...]:
        """Independent work before the distillation, for methods that have any.

        Raises:
            PluginError: the method's parts are not told apart by name and output.
        """
        if not isinstance(self.distiller, StagedDistiller):
            return ()
        with self.method(", parts"):
            parts = tuple(self.distiller.parts(self.task))
        if len({p.name for p in parts}) < len(parts) or len({p.output for p in parts}) < len(parts):
            raise PluginError(
                f"plugin {self.plan.plugin!r}: two parts of method {self.plan.method!r} have one "
                "name or one output"
            )
        return parts

    @property
    def data_read(self) -> tuple[str, str]:
        """What cells read of the data; a part of the split is other data than the whole."""
        train, evaluation = self.data_hashes
        part = "" if self._examples is None else f"[:{self._examples}]"
        return train, evaluation + part

    def needed_students(self, attack: str, group: Sequence[int]) -> Sequence[int]:
        """The students an attack has to see: those attacked, or all if it transfers examples."""
        kind = self.registry.get("attacks", attack).load()
        uses = getattr(kind, "uses_sources", False)
        return range(self.plan.track.students.count) if uses else group
