"""Runs a step over partitions: skips what has a receipt, retries, shows progress, and goes on where a killed run stopped.

A step is a plain function `step(storage, name, **arguments) -> Outcome` that reads and writes files of one partition. It
runs here, in this process (`workers=0`), or on Ray as plain tasks in a bounded window: what passes through Ray is a name
and a few settings, never rows or images. Besides models/launch.py this is the only module that knows Ray.
"""

import contextlib
import functools
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from winnow.errors import CommonCause, ConfigError, NotEnoughMemory, StepFailed, WinnowError
from winnow.full_disks import telling_full_disks
from winnow.nodes import Owner, check_node, owner_of
from winnow.progress import Progress
from winnow.receipts import Done, Receipt, Work, entry_of, forget, list_done, read_receipts, write_receipt
from winnow.storage import Storage, Written
from winnow.tallies import Tally

logger = logging.getLogger(__name__)

EVERY_CPU = -1
"""As a number of workers: all CPUs of this machine, or of the Ray cluster that is joined, also those that join later."""
NODE_ANSWERS_SECONDS = 120
"""A node of the cluster that does not answer within this time is left to Ray's own judgement."""
STARVED_SECONDS = 60
"""No partition finished and no node to run one on for so long: say so."""
MAX_FAILURES_IN_A_ROW = 8
"""This many failures with no success between them stop the stage: something common to all partitions is broken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a step did with one partition."""

    outputs: tuple[str, ...]
    """Relative paths of the files written."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Rows by what became of them: goes into the receipt, the progress line and the report."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else the report wants to know (versions, device, precision); JSON-able, never part of a digest."""
    known: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Path -> "sha256" and "bytes" (and what else its receipt shall say) of outputs that were hashed while they were written; the others
    are read again."""
    leftovers: tuple[str, ...] = ()
    """Local folders that are of use only until the receipt stands: removed then."""

    @classmethod
    def of(cls, *written: Written, counts: Mapping[str, int] | None = None, facts: Mapping[str, Any] | None = None) -> "Outcome":
        """Of files as `Storage` wrote them: nothing is read again."""
        return cls(outputs=tuple(file.path for file in written), counts=counts or {}, facts=facts or {}, known=known_of(*written))


def known_of(*written: Written) -> dict[str, dict[str, Any]]:
    """`Outcome.known` of these files."""
    return {file.path: {"sha256": file.sha256, "bytes": file.bytes} for file in written}


Step = Callable[..., Outcome]


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a partition was not done."""

    why: str
    common: bool = False
    """Every other partition would fail alike: the store is out of reach, the disk is full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRun:
    """What came of a stage: small and JSON-able, so that it can travel through Prefect."""

    stage: str
    partitions: tuple[Done, ...]
    """Every partition of the stage, sorted by name, whether done now or before."""
    ran: int
    skipped: int
    counts: dict[str, int]
    """Sums over all partitions, those done before included."""
    seconds: float
    """Wall time of this call."""

    @property
    def outputs(self) -> dict[str, str]:
        """Partition -> output digest: the inputs of the next stage."""
        return {done.partition: done.output for done in self.partitions}


def run_step(
    step: Step,
    works: Iterable[Work],
    storage: Storage,
    *,
    stage: str,
    version: int,
    workers: int = 0,
    num_gpus: float = 0.0,
    retries: int = 2,
    prune: bool = True,
    redo: Mapping[str, Mapping[str, Any]] | None = None,
) -> StageRun:
    """Brings every partition of a stage up to date.

    Args:
        works: one entry a partition, with all that decides whether its output still stands.
        version: of the step's code; raise it when its output changes for the same inputs.
        workers: partitions at a time on Ray; 0 runs them here, one after the other; EVERY_CPU as many as there are CPUs.
        num_gpus: of each worker, on Ray.
        retries: further tries of a partition whose worker died or met an OSError (Ray only).
        prune: forget partitions that are no longer among `works`, their files included.
        redo: partitions to do again if they are up to date -> further arguments of their step. Their receipts stay until the step calls
            what it gets as `forget_old`, as it must before it overwrites anything.

    Raises:
        StepFailed: some partitions failed; all others were tried and are done, unless the cause was common to all.
        WorkspaceLost: another run has taken over the workspace.
        ConfigError: a node of the cluster has other code, or does not see the workspace. Nothing has run.
    """
    began = time.monotonic()
    wanted = {work.name: work for work in works}
    marks = {name: work.fingerprint(stage, version) for name, work in wanted.items()}
    held: dict[str, list[Done]] = {}
    for done in list_done(storage, stage):
        held.setdefault(done.partition, []).append(done)
    if prune:
        _prune(storage, stage, [name for name in held if name not in wanted])
    # Two receipts of one partition: two runs wrote it at the same time, and neither may speak for what is there now.
    finished = {name: held[name][0] for name, mark in marks.items() if [done.fingerprint for done in held.get(name, [])] == [mark]}
    for name, further in (redo or {}).items():
        if finished.pop(name, None) is not None:
            before = functools.partial(forget, storage, stage, held.pop(name))
            wanted[name] = replace(wanted[name], unhashed={**wanted[name].unhashed, **further, "forget_old": before})
    todo = [name for name in sorted(wanted) if name not in finished]

    failed: dict[str, str] = {}
    tally = Tally(storage, stage)
    with Progress(stage, total=len(wanted), done=len(finished)) as progress:
        calls = ((step, storage, stage, version, marks[name], wanted[name], held.get(name, [])) for name in todo)
        results = _on_ray(calls, storage, progress, workers, num_gpus, retries) if workers and todo else _here(calls)
        in_a_row = 0
        for name, result in results:
            if isinstance(result, Receipt):
                finished[name], in_a_row = result.done, 0
                tally.add(result)
                progress.advance(result.counts)
                continue
            failed[name], in_a_row = result.why, in_a_row + 1
            progress.advance(failed=True)
            logger.error("%s of %s failed: %s", stage, name, result.why)
            if result.common or in_a_row >= MAX_FAILURES_IN_A_ROW:
                break
    storage.ensure_held()
    if failed:
        first = next(iter(sorted(failed.items())))
        raise StepFailed(
            f"{stage}: {len(failed)} of {len(wanted)} partitions failed, {len(finished)} are done. First, {first[0]}: {first[1]}\n"
            "Mend the cause and run the same command again: what is done stays done."
        )
    counts = tally.settle(finished.values())
    return StageRun(
        stage=stage,
        partitions=tuple(finished[name] for name in sorted(finished)),
        ran=len(todo),
        skipped=len(wanted) - len(todo),
        counts=counts,
        seconds=time.monotonic() - began,
    )


def perform(
    step: Step, storage: Storage, stage: str, version: int, fingerprint: str, work: Work, stale: list[Done], owner: Owner | None = None
) -> Receipt:
    """One partition, wherever this process is: forget the old receipt, do the work, write the receipt last.

    Raises:
        ConfigError: this node must not work for the owner (see `Owner.refusal`).
        DiskFull, NotEnoughMemory: the step met one.
        WorkspaceLost: the run that asked for it is gone, or has lost the workspace. Its workers live on for seconds; what they find
            then (a server that ended with the run, a workspace that another run took) must not count.
    """
    began = time.monotonic()
    if owner is not None:
        check_node(owner, storage)
    with owner.guarding(storage) if owner is not None else contextlib.nullcontext():
        forget(storage, stage, stale)
        with telling_full_disks(f"{stage} of {work.name}", storage.scratch_parent), _telling_memory(f"{stage} of {work.name}"):
            outcome = step(storage, work.name, **work.arguments, **work.unhashed)
        receipt = Receipt(
            stage=stage,
            partition=work.name,
            fingerprint=fingerprint,
            version=version,
            inputs=dict(work.inputs),
            arguments=dict(work.arguments),
            outputs={path: dict(outcome.known.get(path) or entry_of(storage, path)) for path in sorted(outcome.outputs)},
            counts=dict(outcome.counts),
            facts=dict(outcome.facts),
            seconds=round(time.monotonic() - began, 3),
        )
        write_receipt(storage, receipt)
    for folder in outcome.leftovers:
        shutil.rmtree(folder, ignore_errors=True)
    return receipt


@contextlib.contextmanager
def _telling_memory(what: str) -> Iterator[None]:
    try:
        yield
    except MemoryError as problem:
        cure = "Run fewer partitions at a time (num_workers), or take smaller ones (partition_rows); the same command goes on from here."
        raise NotEnoughMemory(f"not enough memory for {what} ({problem or 'no more is given'}). {cure}") from problem


def _prune(storage: Storage, stage: str, gone: list[str]) -> None:
    for receipt in read_receipts(storage, stage, gone) if gone else []:
        forget(storage, stage, [receipt.done])
        for path in receipt.outputs:
            storage.remove(path)


Call = tuple[Step, Storage, str, int, str, Work, list[Done]]


def _here(calls: Iterator[Call]) -> Iterator[tuple[str, Receipt | Failure]]:
    for call in calls:
        name = call[5].name
        try:
            yield name, perform(*call)
        except WinnowError as problem:  # as on Ray: this partition fails, the others go on
            yield name, Failure(why=f"{type(problem).__name__}: {problem}", common=isinstance(problem, CommonCause))


def _on_ray(
    calls: Iterator[Call], storage: Storage, progress: Progress, workers: int, num_gpus: float, retries: int
) -> Iterator[tuple[str, Receipt | Failure]]:
    start_ray(workers)
    import ray

    # A dead worker or node is retried by max_retries; of a step's own errors only those of disk and network can pass by themselves.
    # num_gpus is given here and not to ray.remote(), which would end the worker, and forget its network, after each partition.
    # Spread over nodes, since steps share a node's network and disk; on one node that would only cost a lease for each partition.
    strategy = "SPREAD" if joined() else "DEFAULT"
    options = {"num_cpus": 1, "num_gpus": num_gpus, "max_retries": retries, "retry_exceptions": [OSError], "scheduling_strategy": strategy}
    remote = ray.remote(perform).options(**options)
    running: dict[Any, str] = {}
    exhausted, last = False, time.monotonic()
    with owner_of(storage, compare=joined()) as owner:
        if joined():
            _ask_nodes(owner, storage)
        try:
            while True:
                window = _window(workers, num_gpus)
                while not exhausted and len(running) < window:
                    call = next(calls, None)
                    if call is None:
                        exhausted = True
                    else:
                        running[remote.remote(*call, owner)] = call[5].name  # type: ignore[call-arg]  # Ray does not see the default
                if not running:
                    return
                for task in ray.wait(list(running), timeout=1.0)[0]:
                    name, last = running.pop(task), time.monotonic()
                    try:
                        yield name, ray.get(task)
                    except ray.exceptions.RayTaskError as problem:
                        yield name, Failure(why=_cause(problem), common=isinstance(problem.cause, CommonCause))
                    except ray.exceptions.RayError as problem:
                        yield name, Failure(why=_lost(problem, retries))
                progress.tick()
                storage.ensure_held()  # what is lost is not worked for
                if joined() and time.monotonic() - last > STARVED_SECONDS and not _slots(num_gpus):
                    last = time.monotonic()
                    # Waiting for nodes looks like a hang, and Ray says nothing.
                    logger.warning(
                        "%s waits: no node of the cluster has 1 CPU and %g GPUs; it goes on when one joins", progress.title, num_gpus
                    )
        finally:
            for task in running:
                ray.cancel(task)


def at_work(workers: int, num_works: int) -> int:
    """How many partitions of a stage are worked on at the same time, as far as this process can tell.

    Args:
        workers: as `run_step` was told.
        num_works: partitions there are.
    """
    if workers == EVERY_CPU:
        ray = sys.modules.get("ray")
        workers = int(ray.cluster_resources().get("CPU", 1)) if ray is not None and ray.is_initialized() else os.cpu_count() or 1
    return max(1, min(workers, num_works))


def joined() -> bool:
    """Whether stages run on a Ray cluster that others started, rather than on one of this run's own."""
    return "RAY_ADDRESS" in os.environ


def _window(workers: int, num_gpus: float) -> int:
    """Partitions handed to Ray at a time."""
    if workers != EVERY_CPU:
        return workers
    if not joined():
        return os.cpu_count() or 1
    # Twice what can run now: no slot waits for this process, and an autoscaler sees what is waiting. It may begin with no node at all.
    return max(8, 2 * _slots(num_gpus))


def _slots(num_gpus: float) -> int:
    """Partitions that the cluster's present nodes run at a time."""
    import ray

    have = ray.cluster_resources()
    slots = int(have.get("CPU", 0))
    return min(slots, int(have.get("GPU", 0) / num_gpus)) if num_gpus else slots


def _ask_nodes(owner: Owner, storage: Storage) -> None:
    """Before anything runs: does every node have this code, and see this workspace?

    Raises:
        ConfigError: one does not; names it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    ask = ray.remote(check_node_of)
    answers = []
    for node in nodes:
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        answers.append(ask.options(num_cpus=0, max_retries=0, scheduling_strategy=place).remote(owner, storage))
    # A node that dies meanwhile, or is too busy to answer, is no reason to stop: its workers will look for themselves.
    for answer in ray.wait(answers, num_returns=len(answers), timeout=NODE_ANSWERS_SECONDS)[0] if answers else []:
        try:
            ray.get(answer)
        except ray.exceptions.RayTaskError as problem:
            raise ConfigError(_cause(problem)) from None
        except ray.exceptions.RayError as problem:
            logger.warning("a node did not answer: %s", str(problem).splitlines()[0])


def check_node_of(owner: Owner, storage: Storage) -> None:
    """In a worker: `check_node`, as a function that Ray can send by name."""
    check_node(owner, storage)


def _lost(problem: Any, retries: int) -> str:
    """What became of a partition whose worker or node did not answer."""
    kind = type(problem).__name__
    if kind == "LocalRayletDiedError":
        return "the Ray node of this run has ended; start it again, and run the same command"
    last = str(problem).strip().splitlines()
    return f"its worker or node was lost {retries + 1} times ({kind}: {last[0] if last else ''}); out of memory?"


def _cause(problem: Any) -> str:
    """What went wrong in a worker: our own errors by their message alone, others with their last line of code."""
    cause = problem.cause if isinstance(problem.cause, BaseException) else problem
    if isinstance(cause, WinnowError):
        return f"{type(cause).__name__}: {cause}"
    lines = [line.strip() for line in str(problem).splitlines() if line.strip().startswith("File ")]
    return f"{type(cause).__name__}: {str(cause).splitlines()[-1] if str(cause) else ''} {lines[-1] if lines else ''}".strip()


def start_ray(workers: int) -> None:
    """Starts or joins Ray, once a process: the cluster RAY_ADDRESS names, or a local one for this run alone.

    Called when there is work to do, not before: a run with everything up to date should not pay for it.

    Args:
        workers: partitions at a time that the local cluster is made for.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")
    address = os.environ.get("RAY_ADDRESS")
    if not joined():
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # nothing but this run's own processes connects to it
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process that looks for nodes about to be taken away
    import ray

    if ray.is_initialized():
        return
    if address is not None:
        if address.startswith("ray://"):
            raise ConfigError(
                f"RAY_ADDRESS is {address}, the address of a Ray Client server, which Winnow does not use. Let this machine join "
                "the cluster as a node (`ray start --address=HOST:6379 --num-cpus=0`) and set RAY_ADDRESS=HOST:6379."
            )
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
        return
    for tries_left in (2, 1, 0):
        try:
            ray.init(
                address="local",  # otherwise Ray joins any cluster that happens to run on this machine
                include_dashboard=False,
                num_cpus=_window(workers, 0) + 1,  # Ray Train's controller needs one beside its workers
                object_store_memory=256 * 1024 * 1024,  # only names and settings travel through it
                runtime_env=_runtime_env(),
                logging_level=logging.WARNING,
                log_to_driver=False,
            )
            return
        except Exception as problem:
            # Ray gives its node 30 s to come up, fixed, and says so by a bare Exception; a busy machine needs longer.
            if "timed out during startup" not in str(problem) or not tries_left:
                raise
            logger.warning("Ray did not start within 30 s, the machine is busy; trying again")
            ray.shutdown()


def _runtime_env() -> dict[str, str] | None:
    """Ray starts workers that have an environment of their own (those of Ray Train) through a shell, without quoting the
    interpreter's path: a folder with a space in its name needs the quotes from us."""
    quoted = shlex.quote(sys.executable)
    return {"py_executable": quoted} if quoted != sys.executable else None


def stop_ray() -> None:
    """Leaves Ray; a local cluster ends. Nothing happens if it was never started."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
