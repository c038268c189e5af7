"""`robustdd show`: one method, attack, track or run in full; the stored experts."""

from __future__ import annotations

import datetime
import inspect
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustdd_bench.cli.shared.arguments import RegisteredName, out_option
from robustdd_bench.cli.shared.group import Group
from robustdd_bench.cli.shared.output import (
    json_option,
    print_json,
    print_table,
    print_text,
)
from robustdd_bench.cli.shared.session import Session, pass_session
from robustdd_bench.errors import PluginError
from robustdd_bench.filenames import RECORD_FILE
from robustdd_bench.guard import blame
from robustdd_bench.plugins import SINGULAR, PluginWarning, Registry
from robustdd_bench.text.terminal import duration_text, one_line, size_text

if TYPE_CHECKING:
    from robustdd_bench.executors import Process
    from robustdd_bench.records.record import Record


def describe_entry(registry: Registry, kind: str, name: str) -> dict[str, Any]:
    """Everything about a method or an attack, as JSON values.

    Args:
        registry: what the plugins registered.
        kind: "distillers" or "attacks".
        name: its name.

    Raises:
        UsageError: unknown name.
        PluginError: its module does not import.
    """
    from robustdd_bench.citations import citations
    from robustdd_bench.cli.shared.config_fields import describe_config

    entry = registry.get(kind, name)
    target = entry.load()
    info = registry.plugins.get(entry.plugin)
    config = getattr(target, "Config", None)
    with blame(entry.plugin, f"{SINGULAR[kind]} {name!r}"):
        fields = [] if config is None else describe_config(config)
    try:
        papers = citations(entry)
    except PluginError as error:  # no reason not to show the rest
        warnings.warn(str(error), PluginWarning, stacklevel=2)
        papers = ()
    return {
        "kind": SINGULAR[kind],
        "name": name,
        "summary": entry.summary,
        "plugin": entry.plugin,
        "distribution": info.distribution if info else "",
        "version": info.version if info else "",
        "target": entry.target,
        "citations": [citation.content() for citation in papers],
        "doc": "\n\n".join(_docs(target)),
        "config": [
            {
                "name": field.name,
                "type": field.type,
                "range": field.range,
                "default": field.default,
                "doc": field.doc,
                "added": field.added,
                "group": field.group,
            }
            for field in fields
        ],
    }


def describe_presets(registry: Registry, method: str) -> list[dict[str, Any]]:
    """The presets of a method and what a run by each costs here, as JSON values; takes seconds.

    Raises:
        UsageError: unknown name.
        PluginError: the presets are damaged.
    """
    from robustdd_bench.records.means import resolve_device
    from robustdd_bench.sweeps.presets import preset_costs

    device = resolve_device("auto")
    return [
        {
            "preset": one.preset,
            "tracks": one.tracks,
            "track": one.example,
            "device": device,
            "seconds": None if one.cost is None else one.cost.wall_s,
            "operations": None if one.cost is None else one.cost.operations,
        }
        for one in preset_costs(registry, method, device)
    ]


def _type(item: Mapping[str, Any]) -> str:
    """The type of a setting, and the interval of the numbers that it takes."""
    return " ".join(filter(None, (item["type"], item["range"])))


def _doc(item: Mapping[str, Any]) -> str:
    """What a setting is, and since when there is one that came later."""
    since = f"Since {item['added']}." if item["added"] else ""
    return " ".join(filter(None, (item["doc"], since)))


def _docs(target: Any) -> Iterator[str]:
    """The docstrings of a class and of its module, which names paper, equation and deviation."""
    for what in (target, inspect.getmodule(target)):
        text = what and inspect.getdoc(what)
        if text:
            yield text


def describe_track(registry: Registry, name: str) -> dict[str, Any]:
    """Everything about a track, as JSON values.

    Args:
        registry: what the plugins registered.
        name: a registered track, a path that ends in .toml, or a record or the folder of a run.

    Raises:
        UsageError: unknown name, missing file or ill-formed track.
    """
    from robustdd_bench.protocol.tracks import load_track, read_track_text, record_of

    track = load_track(name, registry)
    entry = registry.entries["tracks"].get(name)
    record = record_of(name)
    return {
        "kind": "track",
        "name": track.name,
        "id": track.id,
        "sha256": track.sha256(),
        "summary": track.summary,
        "plugin": entry.plugin if entry else "",
        "source": str(record) if record else read_track_text(name, registry)[1],
        "command": shlex.join(["robustdd", "run", "--method", "mat", "--track", name]),
        "fields": track.model_dump(mode="json"),
    }


def flatten(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings; a list of mappings is numbered."""
    for key, value in fields.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
            for number, item in enumerate(value):
                yield from flatten(item, f"{prefix}{key}.{number}.")
        else:
            yield f"{prefix}{key}", value


def _show_entry(session: Session, kind: str, name: str, as_json: bool) -> None:
    found = describe_entry(session.registry, kind, name)
    if as_json:
        if kind == "distillers":
            found["presets"] = describe_presets(session.registry, name)
        print_json(found)
        return
    heads = [(key, found[key]) for key in ("name", "summary", "plugin", "distribution", "target")]
    if found["version"]:
        heads[3] = ("distribution", f"{found['distribution']} {found['version']}")
    heads += [("paper", paper["text"]) for paper in found["citations"]]
    print_table((found["kind"], ""), heads)
    print_text(found["doc"])
    groups: dict[str, list[tuple[object, ...]]] = {}
    for item in found["config"]:
        line = (item["name"], _type(item), item["default"], _doc(item))
        groups.setdefault(item["group"], []).append(line)
    settings = "settings (--set key=value)" if kind == "distillers" else "settings"
    for group, lines in reversed(groups.items() or {"": []}.items()):  # its own come first
        title = f"{settings}: {group}" if len(groups) > 1 else settings
        print_table(("key", "type", "default", "meaning"), lines, title=title, whole=("key",))
    if kind == "distillers":
        sys.stdout.flush()
        _print_presets(describe_presets(session.registry, name))


def _print_presets(presets: list[dict[str, Any]]) -> None:
    """Print a table of presets, each with what a run by it takes."""
    rows = []
    for one in presets:
        about = "unknown" if one["seconds"] is None else duration_text(one["seconds"])
        where = one["track"] if one["track"] != one["tracks"] else ""
        rows.append((one["preset"], one["tracks"] or "all others", about, where))
    device = presets[0]["device"]
    print_table(
        ("preset", "for tracks of", "a run takes about", "estimated for"),
        rows,
        title=f"presets (--preset NAME), on this machine's {device.upper()}, cell after cell",
        right=("a run takes about",),
    )


@click.group(cls=Group)
def show() -> None:
    """Show one method, attack, track or run, or stored experts."""


@show.command("method")
@click.argument("name", type=RegisteredName("distillers"))
@json_option
@pass_session
def show_method(session: Session, name: str, as_json: bool) -> None:
    """Show a method: where it comes from, what it does, its settings, what its presets cost."""
    _show_entry(session, "distillers", name, as_json)


@show.command("attack")
@click.argument("name", type=RegisteredName("attacks"))
@json_option
@pass_session
def show_attack(session: Session, name: str, as_json: bool) -> None:
    """Show an attack: where it comes from, what it does, its configuration."""
    _show_entry(session, "attacks", name, as_json)


@show.command("track")
@click.argument("name", type=RegisteredName("tracks"))
@json_option
@pass_session
def show_track(session: Session, name: str, as_json: bool) -> None:
    """Show a track: every field, its hash, and the command that runs it.

    NAME is a registered track, a path that ends in .toml, or a run (its folder or its record).
    """
    from robustdd_bench.protocol.tracks import eps_label

    found = describe_track(session.registry, name)
    if as_json:
        print_json(found)
        return
    values = dict(flatten(found["fields"]))
    values["threat.ladder"] = ", ".join(map(eps_label, values["threat.ladder"]))
    values["threat.headline"] = eps_label(values["threat.headline"])
    for key in ("sha256", "plugin", "source"):
        values[key] = found[key]
    print_table(("field", "value"), list(values.items()))
    print(f"\n{found['command']}")


@show.command("run")
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN")
@json_option
def show_run(folder: Path, as_json: bool) -> None:
    """Show a run: its table, its settings, its checks.

    RUN is the folder of a run, or its record.json.
    """
    from robustdd_bench.cli.run import print_result
    from robustdd_bench.entrance import summary
    from robustdd_bench.records.record import read_record

    record = read_record(folder if folder.suffix == ".json" else folder / RECORD_FILE)
    if as_json:
        print_json(summary(record))
        return
    if record.aggregates is not None:
        print_result(record)
    facts = [("run id", record.run_id), ("status", record.status)]
    if record.failure is not None:
        facts.append(("failure", f"{record.failure.cell}: {record.failure.reason}"))
    if record.costs.adopted is not None:
        origin = record.costs.adopted
        facts.append(("distilled set", f"taken from run {origin.run_id} (torch {origin.torch})"))
    facts += [("warning", text) for text in record.remarks]
    facts += [
        ("command", record.command_to_repeat),
        ("failed checks", ", ".join(summary(record)["failed_checks"]) or "none"),
        *((f"  {key}", str(value)) for key, value in record.method.config.items()),
        *((stage.stage, f"{stage.wall_s:.1f} s") for stage in record.costs.stages),
        *_processes(record),
    ]
    print_table(("", "run"), facts)


def _processes(record: Record) -> list[tuple[str, str]]:
    """What did the work, a line where it is one and the same for all of it."""
    costs = record.costs
    rows = {
        item.stage: "; ".join(
            _process(one.process) for one in costs.processes if one.stage == item.stage
        )
        for item in costs.processes
    }
    if len(set(rows.values())) == 1 and not costs.mixed:
        return [("made by", next(iter(rows.values())))]
    return [(f"{stage} by", text) for stage, text in rows.items()]


def _process(found: Process) -> str:
    commit = "no commit" if found.commit is None else f"commit {found.commit.sha[:12]}"
    changed = " with changes" if found.commit is not None and found.commit.dirty else ""
    return (
        f"robustdd-bench {found.harness} ({commit}{changed}), torch {found.torch}, "
        f"{found.device}, machine {found.host}"
    )


def describe_experts(out: Path) -> list[dict[str, Any]]:
    """The stored experts under an output folder, as JSON values, by key."""
    from robustdd_bench.runs.cleaning import list_experts

    return [
        {
            "key": one.key,
            "folder": one.folder,
            "track": one.fact("seeds", "track"),
            "seed": one.fact("seeds", "base"),
            "flavour": one.fact("recipe", "flavour"),
            "eps": one.fact("recipe", "eps"),
            "ema": one.fact("recipe", "ema"),
            "epochs": one.epochs,
            "weights": one.weights,
            "experts": one.experts,
            "train_accuracy": one.train_accuracy,
            "bytes": one.bytes,
            "written": datetime.datetime.fromtimestamp(one.written, datetime.UTC).isoformat(
                timespec="seconds"
            ),
            "description": one.description,
            "damaged": one.damaged,
        }
        for one in list_experts(out)
    ]


@show.command("experts")
@out_option
@json_option
def show_experts(out: Path, as_json: bool) -> None:
    """Show the experts that runs have stored: what they are, how many, how large.

    A damaged file is named; `robustdd clean --experts KEY` deletes what belongs to a key.
    """
    found = describe_experts(out)
    if as_json:
        print_json(found)
        return
    columns = ("key", "track", "seed", "flavour", "eps", "ema", "epochs", "experts")
    rows = []
    for one in found:
        accuracy = one["train_accuracy"]
        shown = "" if accuracy is None else f"{100 * accuracy:.1f}"
        facts = [_short(one[name]) for name in columns]
        rows.append([*facts, shown, size_text(one["bytes"]), one["written"]])
    headings = (*columns, "train acc %", "size", "written")
    print_table(
        headings,
        rows,
        right=headings[2:3] + headings[4:10],
        whole=("key", "track", "written"),
        minor=("written", "train acc %", "ema", "epochs", "flavour"),
    )
    for one in found:
        for line in one["damaged"]:
            print(one_line(f"warning: {one['folder']}: {line}"), file=sys.stderr)


def _short(value: object) -> object:
    """A number without the noise of its binary form."""
    return f"{value:.4g}" if isinstance(value, float) else value
