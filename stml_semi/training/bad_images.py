"""The book of a run's bad images: each is listed once, and too many of them end the run."""

from collections.abc import Sequence

from stml_semi.config import TrainConfig
from stml_semi.data.batches.loading import BadImageEntry
from stml_semi.data.batches.pool import UnlabeledPool
from stml_semi.data.run_tables import Tables
from stml_semi.run_folder.log import RunLog
from stml_semi.runtime.errors import RunFailed


class BadImages:
    """What could not be read so far."""

    def __init__(self, config: TrainConfig, tables: Tables, pool: UnlabeledPool | None, log: RunLog) -> None:
        """
        Args:
            config: of the run.
            tables: of the run.
            pool: knows how much of a stream has been read.
            log: where they are listed.
        """
        self.config, self.tables, self.pool, self.log = config, tables, pool, log

    def list(self, found: Sequence[BadImageEntry]) -> None:
        """Lists bad images (the same ones in all processes).

        Raises:
            RunFailed: one was found and none is wanted, or there are more than the share that is allowed.
        """
        count = self.log.list_bad(found)
        if found and self.config.on_bad_image == "error":
            raise RunFailed.on_all(f"{found[0].image}: {found[0].reason} (--on-bad-image error; `replace` continues)")
        total = self._num_images()
        if count > max(1, int(self.config.max_bad_fraction * total)):
            raise RunFailed.on_all(
                f"{count} of {total} images cannot be read, more than --max-bad-fraction "
                f"{self.config.max_bad_fraction:g} allows: bad_images.jsonl of the run folder says which and why; "
                f"repair them or raise it"
            )

    def _num_images(self) -> int:
        """Images of all tables, and those that were read of streams."""
        fixed = (self.tables.labeled, self.tables.validation, self.tables.evaluation)
        known = 0 if self.pool is None else self.pool.num_known
        return known + sum(len(table) for table in fixed if table is not None)
