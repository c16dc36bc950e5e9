"""What may be said of a run's results, given the data it saw."""

from stml_semi.config import TrainConfig
from stml_semi.data.benchmarks.facts import Benchmark, benchmark_of
from stml_semi.data.image_table import ImageTable
from stml_semi.data.overlap import ExcludedImage, count_evaluated
from stml_semi.data.run_tables import Tables
from stml_semi.data.sources.request import specs_of
from stml_semi.data.sources.streams import ImageStream
from stml_semi.runtime.errors import BadInput

TRAINED = "have the names of trained ones"
"""Part of the claim of a run that is evaluated on classes that it trains on."""


def claim(tables: Tables) -> str:
    """Whether the evaluation's classes, and its images, were trained on, as far as anyone can know."""
    if tables.evaluation is None:
        return ""
    same = count_evaluated(tables.excluded or ())
    taken = f"{same:,} unlabeled images that are evaluated on were left out" if same else ""
    return "; ".join(filter(None, [_claim_of_classes(tables, tables.evaluation), taken]))


def _claim_of_classes(tables: Tables, evaluation: ImageTable) -> str:
    if tables.labeled is not None:
        shared = len(set(tables.labeled.classes) & set(evaluation.classes))
        if shared:
            return f"{shared} of its {len(evaluation.classes)} classes {TRAINED}"
    tested = evaluation.name.split(":")[0]
    used = [
        (table is tables.labeled, benchmark_of(part))
        for table in (tables.labeled, tables.unlabeled)
        if table is not None
        for part in specs_of(table.name)
    ]
    if all(benchmark is not None for _, benchmark in used):
        # Sets of one publisher keep their test classes out of all training splits; a foreign pool may hold them.
        strange = [benchmark for _, benchmark in used if benchmark and benchmark.eval != evaluation.name]
        if not strange:
            return "classes never trained on"
        compared = tables.excluded if tables.classes_compared else None
        known = [_shared(benchmark, tested, compared) for benchmark in strange if tested in benchmark.shares]
        if not any(labeled and benchmark in strange for labeled, benchmark in used):
            return "; ".join(["no label of its classes was used", *known])
    return "" if tables.labeled is None else "no class shares its name with a trained one"


def _shared(benchmark: Benchmark, tested: str, excluded: tuple[ExcludedImage, ...] | None) -> str:
    """What is known of test classes in a foreign pool."""
    if excluded is None:
        return benchmark.shares[tested]
    own = {one.test_class for one in excluded if one.test_class and benchmark_of(one.source) is benchmark}
    if own:
        return f"{len(own)} of its classes were taken out of {benchmark.name} by name"
    return f"{benchmark.shares[tested]}, of which none could be told by name"


def terms_of_use(config: TrainConfig) -> list[str]:
    """What the publishers of the data ask of everyone who uses a model trained on them."""
    parts = [part for spec in (config.labeled, config.unlabeled, config.eval) for part in specs_of(spec)]
    used = {known.name: known for part in parts if (known := benchmark_of(part))}
    return [
        f"{known.title.split(':')[0]}: {known.license}"
        for known in used.values()
        if known.license.startswith("non-commercial")
    ]


def skipped_files(tables: Tables) -> list[str]:
    """Sentences about files of the sources that are not read because of their kind; each once."""
    pool = tables.unlabeled
    parts = pool.sources if isinstance(pool, ImageStream) else (pool,)
    opened = (tables.labeled, tables.validation, tables.evaluation, *parts)
    return list(dict.fromkeys(text for table in opened if isinstance(table, ImageTable) for text in table.skipped))


def check_honest(config: TrainConfig) -> None:
    """
    Raises:
        BadInput: a benchmark's test split among the training data.
    """
    for name in ("labeled", "unlabeled"):
        for spec in specs_of(getattr(config, name)):
            benchmark = benchmark_of(spec)
            if benchmark is not None and spec == benchmark.eval:
                raise BadInput(f"--{name} {spec}: these are the images that results are measured on; train on others")
