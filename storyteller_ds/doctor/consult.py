"""From what a user types to everything that is wrong with it."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from storyteller_ds.checkpoint.read import newest_valid
from storyteller_ds.checkpoint.resume import check_same_run
from storyteller_ds.config import LoadedConfig, RunConfig, load_config
from storyteller_ds.config.files import preset_names, preset_text, read_text
from storyteller_ds.data.batching.batches import BatchSplit
from storyteller_ds.data.batching.loading import train_batches, validation_batches
from storyteller_ds.data.corpus import NotPrepared, find_corpus, open_corpus
from storyteller_ds.data.sources.choose import choose_sources, is_on_hub
from storyteller_ds.data.sources.listing import is_pattern, matching_files
from storyteller_ds.data.tokenizers.choose import given_tokenizer
from storyteller_ds.distributed.hostfile import read_hostfile
from storyteller_ds.distributed.plan import make_plan
from storyteller_ds.distributed.world import World, pick_device
from storyteller_ds.doctor import folders, libraries, machine
from storyteller_ds.doctor.examine import ALL, examine, worst_first
from storyteller_ds.doctor.finding import Finding, from_message, warning
from storyteller_ds.doctor.hosts import check_hosts
from storyteller_ds.doctor.subject import Subject
from storyteller_ds.doctor.text_facts import TextFacts, facts_of_corpus, facts_of_sources, samples_of
from storyteller_ds.engines.build import check_engine
from storyteller_ds.errors import CheckpointError, ConfigError, DataError, UserError
from storyteller_ds.records.run_folder import CHECKPOINTS
from storyteller_ds.user_paths import expand_home

_READING_S = 1.5
"""Time for reading the beginning of the text (seconds)."""
_READ_WHOLE = 100 << 20
"""A text of up to this many bytes is read whole for its fingerprint, to find its prepared corpus."""
_WITHOUT_A_RUN = (*libraries.CHECKS, *machine.CHECKS, *folders.CHECKS)


def consult(
    config: str | None,
    overrides: Sequence[str],
    ds_config: Path | None = None,
    hostfile: Path | None = None,
    output_dir: Path | None = None,
    world_size: int | None = None,
) -> list[Finding]:
    """Everything that is wrong, the worst first; changes nothing and prepares no text.

    Args:
        config: as in `storyteller train`.
        overrides: likewise.
        ds_config: likewise.
        hostfile: as in `storyteller launch`.
        output_dir: likewise.
        world_size: ranks that the run will have; None: those of the hostfile, or of the environment.
    """
    found: list[Finding] = []
    world, slots = World.from_environment(), None
    if world_size is not None:
        world = World(0, 0, world_size, world_size)
    if hostfile is not None:
        try:
            slots = read_hostfile(hostfile)
            world = World(0, 0, sum(slots.values()), next(iter(slots.values())))
        except ConfigError as failure:
            found.append(_named(failure, "hostfile"))
    if slots is not None:
        found += [replace(each, check="hosts") for each in check_hosts(slots)]
    try:
        loaded = load_config(config, overrides, ds_config=ds_config, ranks=world.size)
        subject = _subject(loaded, world, output_dir, config)
    except UserError as failure:
        found.append(_named(failure, "configuration"))
        loaded = LoadedConfig.of(RunConfig())
        run = loaded.run
        subject = Subject(loaded, make_plan(run, 1), pick_device("cpu", None), output_dir or Path("runs") / loaded.name)
        return worst_first([*found, *examine(subject, _WITHOUT_A_RUN)])
    try:
        check_engine(loaded.run, loaded.deepspeed, subject.plan, world, subject.device)
    except UserError as failure:
        found.append(_named(failure, "engine"))
    text, of_text = _read(loaded.run, world, subject)
    found += _continued(subject)
    return worst_first([*found, *of_text, *examine(replace(subject, text=text), ALL)])


def _subject(loaded: LoadedConfig, world: World, output_dir: Path | None, config: str | None) -> Subject:
    plan = make_plan(loaded.run, world.size, loaded)
    device = pick_device(loaded.run.parallel.device, None if loaded.deepspeed is None else world.local_rank)
    folder = output_dir if output_dir is not None else Path("runs") / loaded.name
    return Subject(loaded, plan, device, folder, config_text=_text_of(config))


def _continued(subject: Subject) -> list[Finding]:
    """Why the run cannot continue from what is in its folder; its text is compared only when it is prepared."""
    checkpoint = newest_valid(subject.output_dir / CHECKPOINTS, lambda _: None)
    if checkpoint is None:
        return []
    try:
        check_same_run(checkpoint, subject.run, checkpoint.manifest.dataset_fingerprint)
    except CheckpointError as failure:
        return [_named(failure, "continued")]
    return []


def _text_of(config: str | None) -> str:
    """The text of a config, including its comments."""
    if config is None or config in preset_names():
        return preset_text(config or "quickstart")
    with contextlib.suppress(ConfigError):  # load_config has already reported it
        return read_text(Path(config), "config")
    return ""


def _read(run: RunConfig, world: World, subject: Subject) -> tuple[TextFacts | None, list[Finding]]:
    """Facts about the text, and what is wrong with reading it."""
    names = [part.source for part in run.data.parts] + ([run.data.validation] if run.data.validation else [])
    try:
        # GPT-2's own tokenizer may have to be downloaded; that is left to the run.
        is_named = run.tokenizer.path is not None or run.tokenizer.kind != "gpt2"
        tokenizer = given_tokenizer(run.tokenizer, run.data.cache_dir) if is_named else None
    except UserError as failure:
        return None, [_named(failure, "tokenizer")]
    if any(map(is_on_hub, names)):
        return None, []
    found: list[Finding] = []
    try:
        sources = choose_sources(run.data)
        train, validation = samples_of(sources, _READING_S)
        if is_named and (facts := _prepared(run, world, subject, found)) is not None:
            return replace(facts, train=train, validation=validation), found
        if not train.documents:
            raise DataError(f"{sources.train.name} has no document for training; put in stories, or name another text")
    except UserError as failure:
        return None, [*found, _named(failure, "source")]
    try:
        return facts_of_sources(run, tokenizer, train, validation), found
    except DataError as failure:
        return None, [*found, _named(failure, "tokenizer")]


def _prepared(run: RunConfig, world: World, subject: Subject, found: list[Finding]) -> TextFacts | None:
    """Facts about the prepared corpus; None if there is none yet, or finding it would take long."""
    if sum(_bytes_of(part.source) for part in run.data.parts) > _READ_WHOLE:
        return None
    try:
        corpus = open_corpus(run, find_corpus(run, lambda _: None).name)
    except NotPrepared:
        return None
    except DataError as failure:
        found.append(replace(warning(*_parts(failure)), check="prepared_corpus"))
        return None
    plan = subject.plan
    split = BatchSplit(world.rank, plan.world_size, plan.micro_batch_size, plan.accumulation_steps)
    sequences = train_batches(run, corpus, split).order.sequences
    validation_batches(run, corpus, split)
    return facts_of_corpus(corpus, sequences)


def _bytes_of(name: str) -> int:
    path = expand_home(name)
    if name == "builtin":
        return 0
    files = matching_files(path) if is_pattern(path) else path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _parts(failure: UserError) -> tuple[str, str]:
    finding = from_message(str(failure))
    return finding.evidence, finding.fix


def _named(failure: UserError, check: str) -> Finding:
    return replace(from_message(str(failure)), check=check)
