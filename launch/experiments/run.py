"""One training run of a suite, and the datasets that runs are made on."""

from __future__ import annotations

import dataclasses

from rec2pm_jax.config import Config


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A prepared dataset that suites look for under `--data`.

    Attributes:
      title: for headings.
      prepare: arguments of `launch.prepare` that make it.
      optional: whether suites leave out its runs where it is not prepared, because not everyone can
        get the data.
    """

    title: str
    prepare: str
    optional: bool = False


DATASETS = {
    "complete_journey_types": DatasetSpec(
        "Complete Journey, product types", "--source=complete_journey --item=product_type"
    ),
    "complete_journey_products": DatasetSpec(
        "Complete Journey, products",
        "--source=complete_journey --item=product --min_item_count=20",
    ),
    "ml1m": DatasetSpec(
        "MovieLens 1M", "--source=movielens --input=ml-1m/ratings.dat --min_item_count=5"
    ),
    "ml1m_200": DatasetSpec(
        "MovieLens 1M, users with at least 200 events",
        "--source=movielens --input=ml-1m/ratings.dat --min_item_count=5 --min_user_events=200",
    ),
    "online_retail": DatasetSpec(
        "Online Retail II",
        "--source=online_retail --input=online_retail_II.xlsx --min_item_count=5",
    ),
    "coop100": DatasetSpec(
        "100 customers of a supermarket",
        "--source=interactions --input=coop100.parquet --user_column=user_id "
        "--item_column=item_id --min_item_count=5",
        optional=True,
    ),
    "synthetic": DatasetSpec("Synthetic hidden taste", "--source=synthetic"),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run, and what is evaluated from it.

    Attributes:
      dataset: key of `DATASETS`.
      variant: what distinguishes the run from others of its group: a row of the table.
      config: the whole configuration, seed included.
      memories: kinds of memory that are evaluated from the same weights; None is the run's own.
      split: the targets of its records.
      analysis: what is done with the trained model, a key of `analyses.ANALYSES`.
    """

    dataset: str
    variant: str
    config: Config
    memories: tuple[str | None, ...] = (None,)
    split: str = "test"
    analysis: str = "test"

    @property
    def seed(self) -> int:
        """The training seed."""
        return self.config.train.seed

    @property
    def name(self) -> str:
        """The directory of the run under `--workdir`; suites that name the same run share it."""
        return f"{self.dataset}/{self.config.model.backbone}/{self.variant}/seed{self.seed}"

    @property
    def budget(self) -> dict[str, int]:
        """Steps and batch size; `config_hash` leaves the number of steps out."""
        return {"steps": self.config.train.steps, "batch_size": self.config.train.batch_size}
