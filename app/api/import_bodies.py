"""What an import and a pushed run say beside their logs, as JSON; `app.ingest.imported.ImportOptions` says what each means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.bodies import RequestBody
from app.contract import NAME_PATTERN
from app.ingest.imported import ImportOptions
from app.ingest.logs.recognise import FORMATS
from app.ingest.logs.rows import ColumnMap

# Texts that every database takes: no control characters.
PRINTABLE = r"^[^\x00-\x1f\x7f]*$"
Count = Annotated[float, Field(gt=0, le=1e17, allow_inf_nan=False)]
Label = Annotated[str, Field(max_length=200, pattern=PRINTABLE)]
FileName = Annotated[str, Field(min_length=1, max_length=200)]
Word = Annotated[str, Field(max_length=64, pattern=PRINTABLE)]


class ColumnBody(RequestBody):
    """What a column of the log holds."""

    column: str = Field(min_length=1, max_length=200)
    metric: Word = Field(min_length=1, examples=["validation_loss"])
    dataset: Word = Field(default="", description="of a validation metric; several keep their names")
    unit: str | None = Field(
        default=None,
        max_length=32,
        description="nats for a metric whose name ends in _loss where left out; bits per byte",
    )

    def column_map(self) -> ColumnMap:
        unit = self.unit if self.unit is not None else ("nats" if self.metric.endswith("_loss") else "")
        dataset = self.dataset or ("validation" if self.metric == "validation_loss" else "")
        return ColumnMap(column=self.column, metric=self.metric, dataset=dataset, unit=unit)


class RunFactsBody(RequestBody):
    """What neither a log nor a live point says of a run."""

    cohort: str = Field(pattern=NAME_PATTERN)
    name: Word = Field(min_length=1, description="one run's within its cohort")
    config: dict[str, Any] | None = Field(default=None, description="the target's transformers config.json")
    base_config: dict[str, Any] | None = Field(default=None, description="the base's")
    base_layers: int | None = Field(
        default=None, ge=1, le=10_000, description="a base that is the target with fewer layers"
    )
    target_params: Count | None = Field(
        default=None, description="non-embedding, instead of config; FLOPs are then 6 N D"
    )
    base_params: Count | None = None
    context_length: int | None = Field(default=None, ge=1, le=10**9, description="the config's maximum where left out")
    corpus: Label | None = Field(default=None, description="losses compare only on one corpus and tokenizer")
    tokenizer: Label | None = None
    bytes_per_token: dict[str, Annotated[float, Field(gt=0, lt=1000, allow_inf_nan=False)]] = Field(
        default={}, max_length=100, description="of each validation set in bits per byte, which makes nats of them"
    )
    decision_metric: Word = Field(default="validation_loss", min_length=1)
    decision_dataset: Word | None = Field(
        default=None, description="what the cohort is judged by; the cohort's own where left out"
    )
    growth_timing_tokens: int | None = Field(default=None, ge=1, le=10**17)
    is_final: bool = Field(default=True, description="false where the last loss is a mid-schedule one")
    stated: dict[str, str | float | int | None] = Field(
        default={}, max_length=40, description="further columns of the run table, as optimizer, schedule, init_seed"
    )
    recipe: dict[str, str | float | int | bool | None] = Field(
        default={}, max_length=100, description="what else all runs of the cohort share"
    )

    def options(self, **others: Any) -> ImportOptions:
        """As the importer takes them."""
        values = {name: getattr(self, name) for name in RunFactsBody.model_fields}
        return ImportOptions(**values | others)


class ImportOptionsBody(RunFactsBody):
    """The part `options` of an import, as JSON."""

    format: Literal[FORMATS] | None = Field(default=None, description="recognised from the content where left out")  # type: ignore[valid-type]
    step: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="the column of the trainer's steps, of a table or W&B run",
    )
    columns: list[ColumnBody] = Field(default=[], max_length=1000, description="beside what the format says itself")
    tokens: str | None = Field(
        default=None,
        max_length=500,
        description="a column, or arithmetic of columns and step",
        examples=["step * 1024 * 4096"],
    )
    base_tokens: str | None = Field(
        default=None, max_length=500, description="of the base's log, where it counts otherwise"
    )
    batch_ramp: list[tuple[int, int]] = Field(
        default=[], max_length=1000, description="from_step, batch tokens; from step 1 on"
    )
    grown_counts: Literal["phase", "run"] | None = Field(
        default=None, description="whether the grown log counts tokens from 0 (phase) or goes on from the base's (run)"
    )
    status: Literal["finished", "diverged", "stopped", "running"] | None = Field(
        default=None, description="told from the log where left out"
    )
    replace: bool = Field(default=False, description="take this log for the run of the same name, whose id stays")

    restore: bool = Field(default=False, description="bring back a run that was removed")

    def import_options(self) -> ImportOptions:
        """As the importer takes them."""
        return self.options(
            format=self.format,
            step=self.step,
            columns=tuple(column.column_map() for column in self.columns),
            tokens=self.tokens,
            base_tokens=self.base_tokens,
            batch_ramp=tuple(self.batch_ramp),
            grown_counts=self.grown_counts,
            status=self.status,
        )


class RunOfSeveralBody(ImportOptionsBody):
    """One run of several: its options, and which of the files sent are its."""

    files: list[FileName] = Field(default=[], max_length=1000, description="names of files, in the order written")
    base: list[FileName] = Field(default=[], max_length=1000, description="of a growth: the base's")
    grown: list[FileName] = Field(default=[], max_length=1000, description="of a growth: the grown stage's")


class SeveralBody(RequestBody):
    """The part `options` of an import of several runs, which are stored together or not at all."""

    runs: list[RunOfSeveralBody] = Field(min_length=1, max_length=1000)
    skip_bad: bool = Field(default=False, description="leave out the runs whose logs make no run, and say why")
