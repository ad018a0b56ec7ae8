"""Sets of pictures on which two models are compared: drawn ones, or thumbnails of a memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from memssl_core.data.images import decode_image
from memssl_core.errors import ModelError
from ui.galleries import last_name

if TYPE_CHECKING:
    from PIL import Image

    from ui.context import Context

DRAWN, OF_MEMORY = "drawn", "memory-"


@dataclass(frozen=True, eq=False)
class Probe:
    """Pictures by number, and what they are called."""

    id: str
    title: str
    words: str
    names: tuple[str, ...]
    read: Callable[[int], Image.Image]
    nbytes: int

    @property
    def count(self) -> int:
        return len(self.names)

    def facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("id", "title", "count", "words")}

    def picture(self, index: int) -> Image.Image:
        """ModelError for a number that no picture has."""
        if not 0 <= index < self.count:
            raise ModelError(f"There is no picture {index}; these pictures are 0 to {self.count - 1}.")
        return self.read(index)


def probe_of(context: Context, id: str) -> Probe:
    """`drawn`, or `memory-HANDLE` of a model that is open here. ModelError for anything else, or before the first
    model is open: drawing needs the heavy half, which is then still on its way."""
    context.opened()
    if id == DRAWN:
        return drawn()
    if not id.startswith(OF_MEMORY):
        raise ModelError("This set of pictures is not offered; choose one from the list.")
    found = context.probes.get(id)
    if found is None:
        found = remembered(context, id)
        context.probes.put(id, found)
    return found


def offered_probes(context: Context, model: str) -> list[Probe]:
    """The drawn pictures, and those of a model's memory if it has enough of them."""
    found = [probe_of(context, DRAWN)]
    with suppress(ModelError):
        found.append(probe_of(context, OF_MEMORY + model))
    return found


@lru_cache(1)
def drawn() -> Probe:
    from analysis.probe import PICTURES, probe_images

    images = probe_images(DRAWN, PICTURES)
    names = tuple(f"{images.class_name(index)}, drawn picture {index}" for index in range(len(images)))
    words = f"{len(names)} scenes that this program draws; its own model was trained on other ones."
    return Probe(DRAWN, "Drawn pictures", words, names, images.read, 0)


def remembered(context: Context, id: str) -> Probe:
    """Thumbnails of a memory, each picture once."""
    from analysis.probe import MIN_PICTURES, PICTURES, memory_slots

    model = context.opened().models[id.removeprefix(OF_MEMORY)].model
    memory, title = model.memory, f"Memory of {model.card['name']}"
    slots = [] if memory is None else memory_slots(memory, PICTURES).tolist()
    if memory is None or len(slots) < MIN_PICTURES:
        raise ModelError(f"{title}: there are too few thumbnails to compare on; choose other pictures.")
    files = [memory.thumbnail(slot) for slot in slots]
    known = zip(memory.class_name.take(slots).to_pylist(), memory.uri.take(slots).to_pylist(), slots, strict=True)
    names = tuple(f"{class_name or last_name(uri or 'picture')}, slot {slot}" for class_name, uri, slot in known)
    words = f"{len(files)} of the pictures that this memory holds, as thumbnails."
    return Probe(id, title, words, names, lambda index: decode_image(files[index]), sum(map(len, files)))
