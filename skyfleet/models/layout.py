"""Which of a bucket's objects make up a model.

A folder with a `config.json` is a model, with all that lies below it; a folder with GGUF files and no `config.json` is
one, or as many as there are files of different names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from skyfleet.domain.model_bucket import SkippedPath

CONFIG: Final = "config.json"
INDEX: Final = "model.safetensors.index.json"

_WEIGHTS: Final = (".safetensors", ".gguf", ".bin", ".pth", ".pt", ".ckpt", ".onnx", ".h5", ".msgpack")
_TOLD: Final = 5  # examples in one line
#: `name-00001-of-00003.gguf`: one of the files that a model was split into.
_PART: Final = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class Object:
    """An object of the bucket. `path` is its key; `version` changes when its content does."""

    path: str
    size: int
    version: str

    @property
    def name(self) -> str:
        """The last part of its key."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model, `path` being its place below the bucket's prefix ('' for the prefix itself).

    `config` and `index` are None where there are none; `weights` are all weight files of the form that counts.
    """

    path: str
    config: Object | None
    index: Object | None
    weights: tuple[Object, ...]

    @property
    def safetensors(self) -> bool:
        """Whether its weights can be looked into; else their size is all that is known."""
        return self.weights[0].name.endswith(".safetensors")

    @property
    def gguf(self) -> bool:
        """Whether it is one file of llama.cpp's format (or the parts of one)."""
        return self.weights[0].name.endswith(".gguf")


class NotAModel(Exception):
    """A folder that looks like a model's and is none; the text says why."""


@dataclass
class _Folder:
    files: dict[str, Object] = field(default_factory=dict)  # what could belong to a model
    weights: int = 0
    others: int = 0

    def named(self, ending: str) -> list[Object]:
        return [self.files[name] for name in sorted(self.files) if name.endswith(ending)]


def models_in(objects: Iterable[Object], prefix: str) -> tuple[list[ModelFiles], list[SkippedPath]]:
    """The models among the objects whose keys begin with `prefix`, by path, and what only looks like one."""
    folders: dict[str, _Folder] = {}
    for item in objects:
        relative = item.path.removeprefix(prefix).lstrip("/")
        place, _, name = relative.rpartition("/")
        folder = folders.setdefault(place, _Folder())
        if name.endswith((*_WEIGHTS, ".json")):
            folder.files[name] = item
            folder.weights += name.endswith(_WEIGHTS)
        elif item.size:  # an empty object stands for a folder
            folder.others += 1
    return _sorted_out(folders)


def _sorted_out(folders: dict[str, _Folder]) -> tuple[list[ModelFiles], list[SkippedPath]]:
    found: list[ModelFiles] = []
    skipped: list[SkippedPath] = []
    strangers: list[str] = []
    whole: set[str] = set()  # folders that are something as a whole: what lies below belongs to it
    for place in sorted(folders):
        if any(above in whole for above in _above(place)):
            continue
        folder = folders[place]
        try:
            if CONFIG in folder.files or "model_index.json" in folder.files or "adapter_config.json" in folder.files:
                whole.add(place)
                found.append(_of_folder(place, folder))
            elif ggufs := _ggufs(folder):
                found += _of_ggufs(place, ggufs)
            elif folder.weights:
                raise NotAModel(f"weights, and no {CONFIG} beside them")
            elif folder.files or folder.others:
                strangers.append(place)
        except NotAModel as reason:
            skipped.append(SkippedPath(path=place, reason=str(reason)))
    # A README beside models is nothing to tell about.
    told_of = [*(model.path for model in found), *(item.path for item in skipped)]
    around = {above for place in told_of for above in _above(place)}
    strangers = [place for place in strangers if place not in around]
    if strangers:
        told = ", ".join(place or "/" for place in strangers[:_TOLD]) + (", …" if len(strangers) > _TOLD else "")
        noun = "folder has" if len(strangers) == 1 else "folders have"
        skipped.append(SkippedPath(path="", reason=f"{len(strangers)} {noun} neither a {CONFIG} nor weights: {told}"))
    return found, skipped


def _above(place: str) -> list[str]:
    """The folders that hold this one, the prefix ('') included."""
    if not place:
        return []
    parts = place.split("/")
    return ["", *("/".join(parts[:count]) for count in range(1, len(parts)))]


def _of_folder(place: str, folder: _Folder) -> ModelFiles:
    if "model_index.json" in folder.files:
        raise NotAModel("a diffusion pipeline, not a language model")
    if CONFIG not in folder.files:
        raise NotAModel("an adapter (LoRA), not a model: it has an adapter_config.json and no config.json")
    config, index = folder.files[CONFIG], folder.files.get(INDEX)
    # Mistral publishes the same weights once more in its own form.
    tensors = [item for item in folder.named(".safetensors") if not item.name.startswith("consolidated")]
    if index is not None:
        if not tensors:
            raise NotAModel(f"its {INDEX} names weights that are not there")
        return ModelFiles(place, config, index, tuple(tensors))
    if "model.safetensors" in folder.files:
        return ModelFiles(place, config, None, (folder.files["model.safetensors"],))
    if len(tensors) > 1:
        raise NotAModel(f"{len(tensors)} .safetensors files, and no {INDEX} that says how they belong together")
    weights = tensors or [item for item in folder.named(".bin") if item.name.startswith("pytorch_model")]
    if weights:
        return ModelFiles(place, config, None, tuple(weights))
    ggufs = _ggufs(folder)
    if len(ggufs) == 1:
        return ModelFiles(place, config, None, tuple(next(iter(ggufs.values()))))
    if ggufs:
        raise NotAModel(f"{len(ggufs)} GGUF models beside one {CONFIG}: which of them it describes cannot be told")
    raise NotAModel(f"a {CONFIG}, and no weights beside it")


def _of_ggufs(place: str, ggufs: dict[str, list[Object]]) -> list[ModelFiles]:
    if len(ggufs) == 1 and place:
        return [ModelFiles(place, None, None, tuple(parts)) for parts in ggufs.values()]
    inside = f"{place}/" if place else ""
    return [ModelFiles(f"{inside}{stem}", None, None, tuple(parts)) for stem, parts in ggufs.items()]


def _ggufs(folder: _Folder) -> dict[str, list[Object]]:
    """GGUF models by name, each with its parts in order. Projectors of images are parts of a model, not models."""
    groups: dict[str, list[Object]] = {}
    for item in folder.named(".gguf"):
        if not item.name.startswith("mmproj"):
            groups.setdefault(stem_of(item), []).append(item)
    return groups


def stem_of(gguf: Object) -> str:
    """The name of the model that a GGUF file is, or is a part of."""
    return _PART.sub("", gguf.name.removesuffix(".gguf"))
