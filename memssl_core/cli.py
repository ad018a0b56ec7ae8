"""The command line: `python -m memssl_core VERB`. Results on standard output, talk on standard error."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from memssl_core.config import PRESETS, TrainConfig
from memssl_core.errors import ConfigError, MemsslError
from memssl_core.paths import without_folders

if TYPE_CHECKING:
    from memssl_core.data.streams import Stream
    from memssl_core.jobs import Work
    from memssl_core.sources import Model

Job = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
Preset = Literal["vit-s16-800ep", "vit-b16-400ep", "resnet50-100ep", "demo", "smoke"]
Asked = TypeVar("Asked")
Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]


@dataclass(frozen=True)
class Train:
    """Train a model with a memory; the same command goes on with a run that was interrupted."""

    data: str
    """class folder, flat folder, FILE.parquet, wds:SHARDS, hf:OWNER/NAME or drawn:SEED:COUNT; several joined by +"""
    run_dir: Path
    """where the run's config, events, checkpoints and bundle are kept"""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    preset: Preset = "demo"
    """the settings to start from; any field below changes one of them"""
    track: Literal["trackio", "tensorboard", "wandb"] | None = None
    """also send the numbers to an experiment tracker, whose package is to be installed"""
    at_once: int | None = None
    """wait until fewer runs than this are left before it in the same folder of runs; None does not wait"""
    stop_after_hours: float | None = None
    """save and stop then; the same command goes on"""

    def __post_init__(self) -> None:
        for name, value in (("at_once", self.at_once), ("stop_after_hours", self.stop_after_hours)):
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}; it must be above 0.")


@dataclass(frozen=True)
class Draw:
    """Draw pictures of the drawn gallery into a class folder."""

    source: tyro.conf.Positional[str]
    """drawn:SEED:COUNT[:SIZE]"""
    out: Path
    """a folder that is empty or does not exist yet"""
    sheet: Path | None = None
    """also write a contact sheet of the first pictures here"""


@dataclass(frozen=True)
class Plan:
    """Say what a training run would need, and whether it can run here."""

    data: str
    """class folder, flat folder, FILE.parquet, wds:SHARDS, hf:OWNER/NAME or drawn:SEED:COUNT; several joined by +"""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    preset: Preset = "demo"
    """the settings to start from; any field below changes one of them"""
    processes: int = 1
    """that torchrun would start"""
    quick: bool = False
    """only count; no step is trained to measure time and memory"""
    json: bool = False
    """print it for a program"""
    job: Job = None
    """a folder to tell others in how far it is; what was found is its result.json"""


def train(argv: list[str]) -> None:
    wanted = _with_preset("train", argv, lambda config, preset: Train(tyro.MISSING, tyro.MISSING, config, preset))
    from memssl_core.jobs import JobFolder
    from memssl_core.training.start import failures_told

    stop = StopOnSignal("Stopping after this step and saving…")
    with failures_told(wanted.run_dir):
        bundle = _train(wanted, stop)
    if os.environ.get("RANK", "0") != "0":
        return
    if (JobFolder(wanted.run_dir).status() or {}).get("state") == "finished":
        print(bundle)
    else:
        print(f"Saved. The same command goes on with {wanted.run_dir}.", file=sys.stderr)


def _train(wanted: Train, stop: Callable[[], bool]) -> Path:
    """The bundle's folder, which is there when the run is finished."""
    from memssl_core.training.loop import is_finished
    from memssl_core.training.loop import train as run_training
    from memssl_core.training.start import your_turn
    from memssl_core.training.terminal import progress
    from memssl_core.training.track import tracker

    config, data, run_dir = wanted.config, wanted.data, wanted.run_dir
    sends = tracker(wanted.track, run_dir, asdict(config)) if wanted.track else None

    def hear(event: str, *, step: int, **facts: Any) -> None:
        for listener in filter(None, (listen, sends)):
            listener(event, step=step, **facts)

    with progress() as listen, ExitStack() as held:
        if wanted.at_once and not is_finished(run_dir, config, data):
            held.enter_context(your_turn(run_dir, wanted.at_once, stop, device=config.device))
        end = time.monotonic() + 3600 * (wanted.stop_after_hours or float("inf"))
        should_stop = lambda: stop() or time.monotonic() > end
        return run_training(config, data, run_dir, listen=hear, should_stop=should_stop)


def plan(argv: list[str]) -> None:
    wanted = _with_preset("plan", argv, lambda config, preset: Plan(tyro.MISSING, config, preset))
    with _at_work(wanted.job, resource="training") as work:
        from memssl_core.training.plan import as_json, planned, table

        told = planned(wanted.config, wanted.data, work, wanted.processes, quick=wanted.quick, folder=wanted.job)
    if wanted.json:
        return print(as_json(*told))
    for name, words in table(*told):
        print(f"{name:<18} {words}")
    if told[0].problems:
        raise MemsslError("It cannot run so; see above.")


def _with_preset(verb: str, argv: list[str], make: Callable[[TrainConfig, Any], Asked]) -> Asked:
    """What was asked for; fields that are not given are those of the preset that is."""
    preset = next((b for a, b in zip(argv, argv[1:], strict=False) if a == "--preset"), "demo")
    preset = next((a.split("=", 1)[1] for a in argv if a.startswith("--preset=")), preset)
    default = make(PRESETS.get(preset, TrainConfig()), preset)
    return tyro.cli(type(default), args=argv, prog=f"python -m memssl_core {verb}", default=default)


def replay(
    capsule: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CAPSULE")], json: bool = False
) -> None:
    """Run a step that could not be applied again, and say where it stops being finite.

    Args:
        capsule: a file of a run's bad-steps folder
        json: print it for a program
    """
    from json import dumps

    from memssl_core.training.capsule import replay as run_again

    told = run_again(capsule)
    if json:
        return print(dumps(told, allow_nan=False))
    words = lambda value: "not finite" if value is None else f"{value:.6g}"
    print(
        f"Step {told['step']}, process {told['rank']}: loss {words(told['loss'])}, gradient {words(told['grad_norm'])}"
    )
    places = {
        "weights": told["bad_weights"],
        "memory slots": told["memory_bad_rows"],
        "outputs of": told["bad_modules"],
        "gradients of": told["bad_gradients"],
    }
    for what, where in places.items():
        if where:
            more = f" and {len(where) - 3} more" if len(where) > 3 else ""
            print(f"Not finite: {what} {', '.join(map(str, where[:3]))}{more}")
    if not any(places.values()):
        print("All is finite in float32 on a CPU: the precision of the run may be the cause; try --precision fp32.")
    for name, size in told["largest"].items():
        print(f"largest output of {name}: {size:.4g}")


def draw(argv: list[str]) -> None:
    wanted = tyro.cli(Draw, args=argv, prog="python -m memssl_core draw")
    from rich.console import Console
    from rich.progress import track

    from memssl_core.data.datasets import open_images
    from memssl_core.errors import DataError

    if not wanted.source.startswith("drawn:"):
        raise DataError(f"{wanted.source!r} is not a drawn source; write drawn:SEED:COUNT or drawn:SEED:COUNT:SIZE.")
    if wanted.out.exists() and any(wanted.out.iterdir()):
        raise DataError(f"{wanted.out} is not empty; choose another --out.")
    images = open_images(wanted.source)
    digits = len(str(len(images) - 1))
    for i in track(range(len(images)), description="Drawing", console=Console(stderr=True)):
        path = wanted.out / (images.class_name(i) or "") / f"{i:0{digits}d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.read(i).save(path)
    if wanted.sheet:
        from memssl_core.data.drawn import sheet

        seed, count, *size = (int(x) for x in wanted.source.split(":")[1:])
        sheet(seed, min(count, 64), *size).save(wanted.sheet)
    print(wanted.out)


def remember(model: Source, data: str, out: Path, slots: int = 131_072, device: str = "auto", job: Job = None) -> None:
    """Give a model a memory: a new bundle that remembers the pictures of a data source, with thumbnails.

    Args:
        model: embedded, a bundle folder, hub:OWNER/NAME, timm:NAME, random:NAME or run:NAME
        data: any data source of `train`; an hf: set is streamed
        out: the bundle's folder; a bundle that is there is replaced
        slots: pictures to remember at most; of more a random sample is taken
        device: auto, cpu, cuda or mps
        job: a folder to tell others in how far it is
    """
    with _at_work(job, resource="model") as work:
        from memssl_core.bundle.remember import remember as fill
        from memssl_core.data.streams import open_stream
        from memssl_core.device import choose_device

        _refuse_strangers(out)
        stream, where = _opened(open_stream(data)), choose_device(device)
        opened, skipped = _open(model, work), 0

        def emit(event: str, *, step: int, **facts: Any) -> None:
            nonlocal skipped
            skipped = facts.get("skipped", skipped)
            work.emit(event, step=step, **facts)

        head = opened.head.to(where) if opened.head else None
        asked = {"slots": slots, "device": where, "emit": emit, "should_stop": work.should_stop}
        memory = fill(opened.backbone.to(where), head, opened.transform, stream, **asked)
        if memory is None:
            raise MemsslError("Stopped; no bundle was written.")
        facts: dict[str, Any] = {"memory_data": without_folders(stream.spec), "memory_model": without_folders(model)}
        facts["memory_model_hash"] = opened.model_hash
        facts |= {"memory_pictures": memory.slots, "memory_skipped": skipped}
        opened.as_bundle(memory, provenance=facts).save(out)
        work.finish(out)
    print(out)


def embed(
    model: Source,
    data: str,
    out: Path,
    kind: Literal["parquet", "npy"] = "parquet",
    device: str = "auto",
    job: Job = None,
) -> None:
    """Write the embeddings of a collection, in parts; the same command goes on where it was stopped or killed.

    Under torchrun every process takes its share.

    Args:
        model: embedded, a bundle folder, hub:OWNER/NAME, timm:NAME, random:NAME or run:NAME
        data: any data source of `train`; an hf: set is streamed
        out: a folder for the parts
        kind: parquet keeps embeddings beside ids; npy writes them as arrays
        device: auto, cpu, cuda or mps
        job: a folder to tell others in how far it is
    """
    with _at_work(job, resource="model") as work:
        from memssl_core.bundle.embed import embed_collection
        from memssl_core.data.streams import open_stream
        from memssl_core.device import choose_device

        stream, where = _opened(open_stream(data)), choose_device(device)
        if where.type == "cuda" and "LOCAL_RANK" in os.environ:
            where = choose_device(f"cuda:{os.environ['LOCAL_RANK']}")
        opened = _open(model, work)
        asked = {"kind": kind, "device": where, "emit": work.emit, "should_stop": work.should_stop}
        backbone, digest = opened.backbone.to(where), opened.model_hash
        if embed_collection(backbone, opened.transform, stream, out, model_hash=digest, **asked):
            work.finish(out)
    if work.result:
        print(out)
    else:
        print(f"Stopped. The same command goes on with {out}.", file=sys.stderr)


def convert(
    file: Annotated[Path, tyro.conf.Positional],
    out: Path,
    family: Literal["massl", "dino", "ibot", "mocov3", "mae"] | None = None,
    arch: str | None = None,
    dtype: Literal["f16", "f32"] = "f16",
    job: Job = None,
) -> None:
    """Make a bundle of an official MaSSL, DINO, iBOT, MoCo-v3 or MAE checkpoint.

    Args:
        file: .pth, .pth.tar or .safetensors; only tensors and plain values in it are read
        out: the bundle's folder
        family: what made the file; told by its layout if left out
        arch: vit_tiny, vit_small, vit_base or vit_large; told by the file if left out
        dtype: of the weights in the bundle
        job: a folder to tell others in how far it is
    """
    with _at_work(job, at_once=True) as work:
        from memssl_core.bundle.convert import caution
        from memssl_core.bundle.convert import convert as read

        _refuse_strangers(out)
        if told := caution(file):
            print(told, file=sys.stderr)
        read(file, family=family, architecture=arch, dtype=dtype).save(out)
        work.finish(out)
    print(out)


def publish(
    bundle: Annotated[Path, tyro.conf.Positional],
    repo: str,
    dry_run: bool = False,
    public: bool = False,
    job: Job = None,
) -> None:
    """Send a bundle to the Hub; the token is that of the environment or of `hf auth login`.

    Args:
        bundle: a bundle's folder
        repo: OWNER/NAME
        dry_run: only list what would be sent
        public: for everybody to see; private if left out
        job: a folder to tell others in how far it is
    """
    with _at_work(job, at_once=True) as work:
        from memssl_core.bundle.hub import publish as send

        sent = send(bundle, repo, public=public, dry_run=dry_run, emit=work.emit)
        told = sent.url or f"Nothing was sent; {repo} would be {'private' if sent.private else 'public'}."
        work.finish(told)
    for name, size in sent.files:
        print(f"{size:>12,} bytes  {name}", file=sys.stdout if dry_run else sys.stderr)
    print(told)


def fetch(model: Source, job: Job = None) -> None:
    """Bring a model of the Hub or of timm into the local cache, to be opened without a network.

    Args:
        model: hub:OWNER/NAME[@REVISION] or timm:NAME
        job: a folder to tell others in how far it is
    """
    with _at_work(job) as work:
        from memssl_core.sources import fetch as bring

        bring(model, emit=work.emit, should_stop=work.should_stop)
        work.finish(model)
    print(model)


def _open(source: str, work: Work) -> Model:
    """The opened model, fetched first if need be."""
    from memssl_core.sources import fetch, open_model

    fetch(source, emit=work.emit, should_stop=work.should_stop)
    return open_model(source)


def _refuse_strangers(out: Path) -> None:
    """DataError if a bundle could not be written to `out` in the end."""
    from memssl_core.bundle.layout import CONFIG
    from memssl_core.errors import DataError

    if out.exists() and (not out.is_dir() or any(out.iterdir()) and not (out / CONFIG).is_file()):
        raise DataError(f"{out} is not empty and holds no bundle; choose another --out.")


def _typed(verb: Callable[..., None], argv: list[str]) -> None:
    tyro.cli(verb, args=argv, prog=f"python -m memssl_core {verb.__name__}")


VERBS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "plan": plan,
    "draw": draw,
    **{verb.__name__: partial(_typed, verb) for verb in (replay, remember, embed, convert, publish, fetch)},
}


def _opened(stream: Stream) -> Stream:
    """The stream; what was left out of it is told."""
    for note in stream.notes:
        print(note, file=sys.stderr)
    return stream


@contextmanager
def _at_work(job: Path | None, *, resource: str | None = None, at_once: bool = False) -> Iterator[Work]:
    """Work with a progress bar. Ctrl-C asks it to stop, or interrupts it `at_once`."""
    from memssl_core.jobs import working
    from memssl_core.terminal import progress

    stop = StopOnSignal(None if at_once else "Stopping…")
    with progress() as listen, working(job, resource=resource, listen=listen, asked_to_stop=stop) as work:
        yield work


def main(argv: list[str] | None = None) -> int:
    return run_verbs("memssl_core", VERBS, sys.argv[1:] if argv is None else argv)


def run_verbs(package: str, verbs: dict[str, Callable[[list[str]], None]], argv: list[str]) -> int:
    """Exit status of `python -m PACKAGE VERB …`: 0 done, 1 a mistake explained in one sentence, 2 wrong usage."""
    usage = f"usage: python -m {package} {{{','.join(verbs)}}} ...; each with --help"
    if not argv or argv[0] not in verbs:
        asked = bool(argv) and argv[0] in ("-h", "--help")
        print(usage, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    try:
        verbs[argv[0]](argv[1:])
    except MemsslError as reason:
        print(reason, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 1
    return 0


class StopOnSignal:
    """Becomes true at the first SIGINT or SIGTERM and says `sentence`, or interrupts if that is None; a second one ends
    the process."""

    def __init__(self, sentence: str | None) -> None:
        self.asked, self.sentence = False, sentence
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _: Any) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)
        if self.sentence is None:
            raise KeyboardInterrupt
        print(self.sentence, file=sys.stderr)

    def __call__(self) -> bool:
        return self.asked
