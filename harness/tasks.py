"""Tasks: a YAML file (strict, fingerprinted) -> three splits with labels. What a sample is positive for never depends on a backbone.

Roles are fixed: `train` is fitted on, `cal` is chosen on, `test` decides nothing. Content is hashed here (ids, image bytes, text,
regions): the datasets library's fingerprint does not change when the pixels behind a path do.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.errors import HarnessError, unknown
from harness.registry import Reference, Registry, check_options
from harness.types import LEVELS, SPLITS, Modality, Sample

MODALITIES = ("image", "text", "tokens")
NAMED = 10
"""How many ids a note names; the count is always the whole."""
STATED = ("source", "license", "citation")
"""What `metadata` must say for `harness validate`; a run does not ask for it."""


@dataclass(frozen=True)
class TaskFile:
    """A task as declared: what a `tasks/*.yaml` may hold, key by key.

    task: the name. version: raised when the meaning changes. modality: image, text or tokens (embeddings with no raw input).
    dataset: {name, ...options}. concepts: a list, or null for all in the data set. min_positive: the positives a concept needs in
    each split. backbone: the default one. image_size: pixels. levels: sparsity levels. metadata: source, license, citation, ...
    """

    task: str
    dataset: Mapping[str, Any]
    modality: Modality
    version: int = 1
    description: str = ""
    concepts: tuple[str, ...] | None = None
    min_positive: Mapping[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(SPLITS, 1))
    backbone: str | None = None
    image_size: int | None = None
    levels: tuple[float, ...] = LEVELS
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Split:
    """One split: ids, labels [S, C] bool, annotated [S] bool, content hashes, and the samples themselves, read when asked for."""

    def __init__(self, name: str, rows: Any, concepts: Sequence[str], hashes: Sequence[str], modality: Modality) -> None:
        import numpy as np

        self.name, self.modality, self.concepts = name, modality, tuple(concepts)
        self.hashes = tuple(hashes)
        self.ids: tuple[str, ...] = tuple(rows["id"])
        self._rows = rows
        column = {concept: c for c, concept in enumerate(concepts)}
        self.labels = np.zeros((len(self.ids), len(column)), bool)
        for i, present in enumerate(rows["concepts"]):
            self.labels[i, [column[name] for name in present if name in column]] = True
        self.annotated = np.array([regions is not None for regions in rows["regions"]], bool)

    def __len__(self) -> int:
        return len(self.ids)

    def sample(self, i: int) -> Sample:
        """Sample i without its labels; the image decoded to RGB."""
        if self.modality == "tokens":
            return Sample(self.ids[i])
        if self.modality == "text":
            return Sample(self.ids[i], text=self._rows[i]["text"])
        return Sample(self.ids[i], image=decode(_image_bytes(self._rows[i]["image"])))

    def samples(self, index: Iterable[int]) -> list[Sample]:
        """The samples at the given places."""
        return [self.sample(i) for i in index]

    def only(self, index: Sequence[int]) -> Split:
        """The split with the samples at the given places alone."""
        hashes = [self.hashes[i] for i in index]
        return Split(self.name, self._rows.select(list(index)), self.concepts, hashes, self.modality)

    def regions(self, i: int) -> list[dict[str, Any]] | None:
        """Where each concept is in sample i: `{concept, rle}` or `{concept, start, end}`; None = not annotated."""
        regions: list[dict[str, Any]] | None = self._rows[i]["regions"]
        return regions


@dataclass(frozen=True)
class Task:
    """A loaded task. `fingerprint` identifies content, labels and regions; `notes` counts and names everything that was left out."""

    file: TaskFile
    name: str
    concepts: tuple[str, ...]
    splits: Mapping[str, Split]
    fingerprint: str
    limit: int | None
    notes: Mapping[str, Any]

    @property
    def modality(self) -> Modality:
        """image, text or tokens."""
        return self.file.modality

    def describe(self) -> dict[str, Any]:
        """The task as a result states it."""
        counts = {name: split.labels.sum(0).tolist() for name, split in self.splits.items()}
        return {
            "name": self.name,
            "version": self.file.version,
            "fingerprint": self.fingerprint,
            "modality": self.modality,
            "limit": self.limit,
            "samples": {name: len(split) for name, split in self.splits.items()},
            "positives": {c: {name: counts[name][i] for name in counts} for i, c in enumerate(self.concepts)},
        }


def find_tasks(registry: Registry) -> dict[str, Path]:
    """Task name -> file: the bundled ones, then those of plugins. Two files of one name are an error that names both."""
    bundled = Path(__file__).parent / "_tasks"
    folders = [bundled if bundled.is_dir() else Path(__file__).parent.parent / "tasks", *registry.task_dirs()]
    found: dict[str, Path] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("*.yaml"))):
        if path.stem in found:
            raise HarnessError(f"two tasks are named {path.stem!r}; {found[path.stem]} and {path}; rename one of the files")
        found[path.stem] = path
    return found


def read_task(path: Path) -> TaskFile:
    """The declared task; every mistake names the file, the key and what is allowed."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HarnessError(f"cannot read task file {path}; {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise HarnessError(f"task file {path} is not YAML; {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise HarnessError(f"task file {path} holds {type(raw).__name__}, not a mapping; see `harness show toy` for an example")
    allowed = [field.name for field in dataclasses.fields(TaskFile)]
    for key in raw:
        if key not in allowed:
            raise unknown("key", str(key), allowed, f"task file {path}")
    for key in ("task", "dataset", "modality"):
        if key not in raw:
            raise HarnessError(f"task file {path} has no key {key!r}; it is required")
    _check_values(raw, path)
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    return TaskFile(**values)


def _check_values(raw: dict[str, Any], path: Path) -> None:
    def need(ok: bool, key: str, allowed: str) -> None:
        if not ok:
            raise HarnessError(f"task file {path}: bad value for key {key!r}: {raw[key]!r}; allowed: {allowed}")

    def strings(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(item, str) and item for item in value)

    need(isinstance(raw["task"], str) and bool(raw["task"]), "task", "a name")
    need(raw["modality"] in MODALITIES, "modality", ", ".join(MODALITIES))
    named = isinstance(raw["dataset"], dict) and isinstance(raw["dataset"].get("name"), str)
    need(named, "dataset", "a mapping with `name` and options")
    for key, kind, allowed in (("description", str, "a text"), ("backbone", str, "a name"), ("metadata", dict, "a mapping")):
        need(raw.get(key) is None or isinstance(raw[key], kind), key, allowed)
    if raw.get("concepts") is not None:
        need(
            strings(raw["concepts"]) and len(raw["concepts"]) > 0,
            "concepts",
            "a list of names (quote yes, no, on, off), or null",
        )
        twice = [name for name, n in Counter(raw["concepts"]).items() if n > 1]
        if twice:
            raise HarnessError(f"task file {path}: key 'concepts' names {twice[0]!r} twice; every concept once")
    if "version" in raw:
        need(_whole(raw["version"]), "version", "a whole number from 1")
    if "min_positive" in raw:
        value = raw["min_positive"]
        need(isinstance(value, dict), "min_positive", "a mapping of split to a whole number from 1")
        for key, n in value.items():
            if key not in SPLITS:
                raise unknown("split", str(key), SPLITS, f"task file {path}, key 'min_positive'")
            need(_whole(n), "min_positive", "a mapping of split to a whole number from 1")
        raw["min_positive"] = {split: value.get(split, 1) for split in SPLITS}
    if "levels" in raw:
        levels = raw["levels"]
        ok = (
            isinstance(levels, list)
            and all(isinstance(x, float) and 0 < x < 1 for x in levels)
            and levels == sorted(set(levels))
        )
        need(ok and len(levels) > 0, "levels", "rising fractions between 0 and 1")
    if "image_size" in raw:
        need(_whole(raw["image_size"]), "image_size", "a whole number of pixels")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def task_file(registry: Registry, reference: str) -> TaskFile:
    """The declared task of a name (`coco`), a name with data-set options (`coco:split=paper`) or a path to a YAML file."""
    if reference.endswith((".yaml", ".yml")):
        return read_task(Path(reference).expanduser())
    name, argument, options = Reference.parse(reference)
    found = find_tasks(registry)
    if name in registry.entries("datasets") and argument is not None:
        return _folder_task(name, argument, options)
    if name not in found:
        raise unknown("task", name, found, hint="see `harness list tasks`, or give the path of a task file")
    declared = read_task(found[name])
    return dataclasses.replace(declared, dataset={**declared.dataset, **options})


def _folder_task(dataset: str, folder: str, options: Mapping[str, Any]) -> TaskFile:
    """`embeddings:<folder>`: the folder is the task, its name the task's name."""
    path = Path(folder).expanduser()
    declared = {"name": dataset, "folder": str(path), **options}
    stated = dict.fromkeys(STATED, "a folder of the user's own")
    return TaskFile(path.resolve().name, declared, modality="tokens", backbone=f"{dataset}:{folder}", metadata=stated)


def check_stated(declared: TaskFile) -> None:
    """Raises where the task does not say whose data it is: for `harness validate`; a run is not stopped by it."""
    for key in STATED:
        if not str(declared.metadata.get(key) or "").strip():
            near = difflib.get_close_matches(key, [str(other) for other in declared.metadata], n=1)
            instead = (
                f"it has {near[0]!r}; write {key!r}"
                if near
                else f"add `metadata: {{{key}: ...}}`, with `none` where there is none"
            )
            raise HarnessError(f"task {declared.task!r} states no {key} in `metadata`; {instead}")


def check_apart(task: Task) -> None:
    """Raises where a sample stands in two splits, texts compared without case and space: for `harness validate`; a run notes it."""
    content = {name: {_compared(split, i): split.ids[i] for i in range(len(split))} for name, split in task.splits.items()}
    for first, second in (("train", "cal"), ("train", "test"), ("cal", "test")):
        if both := [key for key in content[second] if key in content[first]]:
            raise HarnessError(
                f"splits {first} and {second} of task {task.name!r} overlap: {len(both)} samples have the same content, such as "
                f"{content[first][both[0]]!r} and {content[second][both[0]]!r}; a sample may stand in one split alone; leave out the others"
            )


def _compared(split: Split, i: int) -> str:
    return " ".join((split.sample(i).text or "").casefold().split()) if split.modality == "text" else split.hashes[i]


def load_task(registry: Registry, reference: str, limit: int | None = None, cache_dir: Path | None = None) -> Task:
    """The task with its splits read, checked, limited and fingerprinted.

    An unreadable image or an empty text leaves the task, for every backbone alike; a concept with too few positives leaves too.
    Both are counted and named in `notes`.
    """
    declared = task_file(registry, reference)
    rows = _load_rows(registry, declared)
    about = rows["train"].info.description
    notes: dict[str, Any] = {"data set": about} if about else {}
    hashes = {split: [_content_hash(row, declared) for row in rows[split]] for split in SPLITS}
    _check_ids(rows, hashes, notes)
    rows, hashes = _drop_unreadable(rows, hashes, declared, cache_dir, notes)
    _check_regions(rows, declared)
    concepts = _enough_positives(_all_concepts(rows, declared), rows, declared, notes)
    if limit is not None:
        keep = {split: _spread(rows[split], concepts, limit) for split in SPLITS}
        rows = {split: rows[split].select(keep[split]) for split in SPLITS}
        hashes = {split: [hashes[split][i] for i in keep[split]] for split in SPLITS}
        concepts = _enough_positives(
            concepts, rows, dataclasses.replace(declared, min_positive=dict.fromkeys(SPLITS, 1)), notes
        )
    splits = {split: Split(split, rows[split], concepts, hashes[split], declared.modality) for split in SPLITS}
    _note_contradictions(splits, notes)
    return Task(declared, declared.task, concepts, splits, _fingerprint(declared, concepts, splits), limit, notes)


def _load_rows(registry: Registry, declared: TaskFile) -> dict[str, Any]:
    """Split -> datasets.Dataset with undecoded images; the columns and splits are checked."""
    import datasets

    options = {key: value for key, value in declared.dataset.items() if key != "name"}
    where = f"task {declared.task!r}"
    loader = registry.target("datasets", declared.dataset["name"], where)
    check_options(loader, options, f"data set {declared.dataset['name']!r} of {where}")
    loaded = loader(**options)
    needed = {"image": ["image"], "text": ["text"], "tokens": []}[declared.modality]
    for split in SPLITS:
        if split not in loaded:
            raise HarnessError(
                f"data set {declared.dataset['name']!r} of {where} has no split {split!r}; it has {', '.join(loaded)}"
            )
        for column in ["id", "concepts", "regions", *needed]:
            if column not in loaded[split].column_names:
                has = ", ".join(loaded[split].column_names)
                raise HarnessError(f"split {split!r} of {where} has no column {column!r}; it has {has}")
        if len(loaded[split]) == 0:
            raise HarnessError(f"split {split!r} of {where} is empty; every split needs samples")
    if declared.modality == "image":
        loaded = {split: loaded[split].cast_column("image", datasets.Image(decode=False)) for split in SPLITS}
    return {split: loaded[split] for split in SPLITS}


def _image_bytes(image: Mapping[str, Any] | None) -> bytes:
    if image is None:
        raise FileNotFoundError("no image")
    data: bytes | None = image["bytes"]
    return data if data is not None else Path(image["path"]).read_bytes()


def decode(data: bytes) -> Any:
    """The image as RGB, in its stored orientation (the masks' one); transparency is dropped."""
    import PIL.Image

    return PIL.Image.open(io.BytesIO(data)).convert("RGB")


def _content_hash(row: Mapping[str, Any], declared: TaskFile) -> str:
    if declared.modality == "image":
        try:
            return hashlib.sha256(_image_bytes(row["image"])).hexdigest()
        except OSError as error:  # not there, or not to be read: it is noted as unreadable
            return hashlib.sha256(f"unreadable {row['id']}: {error}".encode()).hexdigest()
    if declared.modality == "text":
        return hashlib.sha256((row["text"] or "").encode()).hexdigest()
    return hashlib.sha256(json.dumps([dict(declared.dataset), row["id"]], sort_keys=True).encode()).hexdigest()


def _check_ids(rows: Mapping[str, Any], hashes: Mapping[str, Sequence[str]], notes: dict[str, Any]) -> None:
    """Raises on an id that is there twice; notes content that stands in two splits."""
    twice = [name for name, n in Counter(name for split in SPLITS for name in rows[split]["id"]).items() if n > 1]
    if twice:
        raise HarnessError(
            f"sample id {twice[0]!r} is there twice ({len(twice)} such ids); every sample needs an id of its own"
        )
    for first, second in (("train", "cal"), ("train", "test"), ("cal", "test")):
        shared = set(hashes[first])
        same = [name for name, content in zip(rows[second]["id"], hashes[second], strict=True) if content in shared]
        if same:
            notes[f"same content in {first} and {second}"] = _named(same)


def _named(ids: Sequence[str]) -> dict[str, Any]:
    return {"count": len(ids), "ids": list(ids[:NAMED])}


def _drop_unreadable(
    rows: dict[str, Any], hashes: dict[str, list[str]], declared: TaskFile, cache_dir: Path | None, notes: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Rows without unreadable images and empty texts; each image is decoded once, and the verdict kept beside the cache."""
    bad = _unreadable(rows, hashes, declared, cache_dir)
    for split in SPLITS:
        ids = [name for name, content in zip(rows[split]["id"], hashes[split], strict=True) if content in bad]
        if ids:
            notes[f"{'unreadable image' if declared.modality == 'image' else 'empty text'} in {split}, left out"] = _named(ids)
            keep = [i for i, content in enumerate(hashes[split]) if content not in bad]
            if not keep:
                raise HarnessError(f"no sample of split {split!r} of task {declared.task!r} can be read; e.g. {ids[0]!r}")
            rows[split] = rows[split].select(keep)
            hashes[split] = [hashes[split][i] for i in keep]
    return rows, hashes


def _unreadable(
    rows: Mapping[str, Any], hashes: Mapping[str, Sequence[str]], declared: TaskFile, cache_dir: Path | None
) -> set[str]:
    if declared.modality == "tokens":
        return set()
    if declared.modality == "text":
        empty = ((h, text) for split in SPLITS for h, text in zip(hashes[split], rows[split]["text"], strict=True))
        return {content for content, text in empty if not (text or "").strip()}
    key = hashlib.sha256("".join(h for split in SPLITS for h in hashes[split]).encode()).hexdigest()
    known = cache_dir / "verified" / f"{key[:32]}.json" if cache_dir else None
    if known and known.is_file():
        return set(json.loads(known.read_text()))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = (row["image"] for split in SPLITS for row in rows[split])
        readable = list(pool.map(_readable, images))
    bad = {h for h, ok in zip((h for split in SPLITS for h in hashes[split]), readable, strict=True) if not ok}
    if known:
        from harness.results import write_atomic

        write_atomic(known, json.dumps(sorted(bad)).encode())
    return bad


def _readable(image: Mapping[str, Any]) -> bool:
    import PIL

    try:
        decode(_image_bytes(image))
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):  # what PIL raises on broken files
        return False
    return True


def _check_regions(rows: Mapping[str, Any], declared: TaskFile) -> None:
    """Raises where a mask has not the size of its image, or a span leaves its text: it would be placed wrongly, without a word."""
    for split in SPLITS if declared.modality == "text" else ():
        for row in rows[split]:
            for region in row["regions"] or ():
                if not 0 <= region["start"] < region["end"] <= len(row["text"] or ""):
                    raise HarnessError(
                        f"a region of sample {row['id']!r} of split {split!r} is outside its text: {region['concept']!r} from character "
                        f"{region['start']} to {region['end']}, the text has {len(row['text'])}; 0 <= start < end <= length is allowed"
                    )
    for split in SPLITS if declared.modality == "image" else ():
        for row in rows[split]:
            sizes = {tuple(region["rle"]["size"]) for region in row["regions"] or ()}
            if sizes and sizes != {image_size(row["image"])}:
                raise HarnessError(
                    f"a mask of sample {row['id']!r} of split {split!r} has (height, width) {min(sizes)}, its image has "
                    f"{image_size(row['image'])}; masks are in the pixels of the stored image, not rotated by EXIF"
                )


def image_size(image: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) from the header, without decoding."""
    import PIL.Image

    with PIL.Image.open(image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])) as opened:
        return opened.height, opened.width


def _all_concepts(rows: Mapping[str, Any], declared: TaskFile) -> list[str]:
    """The declared concepts, else all there are. A declared one that no sample has is a typo where a name that is there is near."""
    there = {name for split in SPLITS for names in rows[split]["concepts"] for name in names}
    for name in set(declared.concepts or ()) - there:
        if difflib.get_close_matches(name, there - set(declared.concepts or ()), cutoff=0.8) or not there.intersection(
            declared.concepts or ()
        ):
            raise unknown("concept", name, there, f"task {declared.task!r}: no sample of the data set has it")
    return list(declared.concepts or sorted(there))


def _enough_positives(
    concepts: Sequence[str], rows: Mapping[str, Any], declared: TaskFile, notes: dict[str, Any]
) -> tuple[str, ...]:
    """The concepts with at least `min_positive` positives in every split, and fewer than all; the others are noted with their counts."""
    counts = {split: Counter(name for names in rows[split]["concepts"] for name in set(names)) for split in SPLITS}
    dropped: dict[str, Any] = {}
    for concept in concepts:
        few = {
            split: f"{counts[split][concept]} positives, needs {declared.min_positive[split]}"
            for split in SPLITS
            if counts[split][concept] < declared.min_positive[split]
        }
        if few:
            dropped[concept] = few
    if dropped:
        notes["concepts left out, too few positives"] = {**notes.get("concepts left out, too few positives", {}), **dropped}
    kept = tuple(concept for concept in concepts if concept not in dropped)
    if not kept:
        raise HarnessError(
            f"no concept of task {declared.task!r} has enough positives in every split; needs {dict(declared.min_positive)}; "
            f"lower `min_positive` in the task file, raise --limit or bring more data"
        )
    return kept


def _spread(rows: Any, concepts: Sequence[str], limit: int) -> list[int]:
    """At most `limit` places, spread over concepts: in sha256(id) order each concept in turn takes one, then samples without any."""
    ids, present = list(rows["id"]), [set(names) for names in rows["concepts"]]
    order = sorted(range(len(ids)), key=lambda i: hashlib.sha256(ids[i].encode()).digest())
    queues: list[Iterator[int]] = [iter([i for i in order if concept in present[i]]) for concept in concepts]
    queues.append(iter([i for i in order if not present[i].intersection(concepts)]))
    taken: dict[int, None] = {}
    while queues and len(taken) < limit:
        for queue in list(queues):
            fresh = next((i for i in queue if i not in taken), None)
            if fresh is None:
                queues.remove(queue)
            elif len(taken) < limit:
                taken[fresh] = None
    return sorted(taken)


def _note_contradictions(splits: Mapping[str, Split], notes: dict[str, Any]) -> None:
    """Counts labels without a mask and masks without a label; the label wins, such a mask is not used."""
    for name, split in splits.items():
        unmasked, unlabelled = [], []
        for i, sample_id in enumerate(split.ids):
            regions = split.regions(i)
            if regions is None:
                continue
            masked = {region["concept"] for region in regions}
            labelled = {concept for c, concept in enumerate(split.concepts) if split.labels[i, c]}
            unmasked += [f"{sample_id}: {concept}" for concept in sorted(labelled - masked)]
            unlabelled += [f"{sample_id}: {concept}" for concept in sorted(masked & set(split.concepts) - labelled)]
        if unmasked:
            notes[f"label without a mask in {name}, detection only"] = _named(unmasked)
        if unlabelled:
            notes[f"mask without a label in {name}, mask not used"] = _named(unlabelled)


def _fingerprint(declared: TaskFile, concepts: Sequence[str], splits: Mapping[str, Split]) -> str:
    """sha256 over everything a number depends on: concepts, ids, content, labels, regions, levels."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        digest.update(json.dumps(value, sort_keys=True).encode() + b"\n")

    add([declared.task, declared.version, declared.modality, list(concepts), list(declared.levels)])
    for name, split in splits.items():
        for i, sample_id in enumerate(split.ids):
            add([name, sample_id, split.hashes[i], split.labels[i].tolist(), split.regions(i)])
    return digest.hexdigest()
