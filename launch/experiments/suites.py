"""The grids behind `results/`: which runs each suite of `launch.reproduce` is made of.

Everything here was fixed before its results were looked at, except where a comment says how it was
chosen. A run's name says where it lives (WORKDIR/NAME) and what its seed changes; suites that name
the same run share it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from launch.configs import development, ml1m_hstu, ml1m_hstu_large, ml1m_sasrec, paper_plain
from rec2pm_jax.config import Config, MethodConfig
from rec2pm_jax.config_dict import from_dict
from rec2pm_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A prepared dataset that suites look for under `--data`.

    Attributes:
      title: for headings.
      prepare: arguments of `launch.prepare` that make it.
    """

    title: str
    prepare: str


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
    "synthetic": DatasetSpec("Synthetic hidden taste", "--source=synthetic"),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run, and what is evaluated from it.

    Attributes:
      dataset: key of `DATASETS`.
      variant: what distinguishes the run from others of its group: a row of the table.
      config: seed included.
      memories: kinds of memory that are evaluated from the same weights; "" is the run's own.
      split: the targets of its records.
      analysis: what is done with the trained model, see `analyses`.
    """

    dataset: str
    variant: str
    config: Config
    memories: tuple[str, ...] = ("",)
    split: str = "test"
    analysis: str = "test"

    @property
    def seed(self) -> int:
        return self.config.train.seed

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.config.model.backbone}/{self.variant}/seed{self.seed}"


# Losses and reading of rec2pm alone: its rows take the present recipe. The other methods ignore them
# and keep what they were run with, as hashes count every field.
_RECIPE = {
    name: getattr(MethodConfig(), name)
    for name in ("stop_target", "reference_ar", "reference_window", "live")
}
_BEFORE = {"stop_target": True, "reference_ar": 0.5, "reference_window": 0, "live": 1.0}
# Every method of the paper: its row in the tables, and what makes it.
METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "recent": {"name": "recent"},
    "rec2pm_o": {"name": "rec2pm", "memory": "overwrite"} | _RECIPE,
    "tok_serial_o": {"name": "tok_serial", "memory": "overwrite"},
    "kv_mask_o": {"name": "kv_mask", "memory": "overwrite"},
    "rec2pm_a": {"name": "rec2pm", "memory": "append"} | _RECIPE,
    "tok_serial_a": {"name": "tok_serial", "memory": "append"},
    "kv_mask_a": {"name": "kv_mask", "memory": "append"},
}
# Beyond them, both chosen on validation of Complete Journey (BUILD_NOTES, 10 and 11): a lighter L_con,
# and a sketch (`method.sketch`), item vectors of four parts, one for each slot.
LIGHT = METHODS["rec2pm_o"] | {"consistency": 0.1}
SKETCHES: dict[str, dict[str, Any]] = {
    "full_sketch": METHODS["full"] | {"sketch": 4},
    "rec2pm_sketch": LIGHT | {"sketch": 4},
    "tok_serial_sketch": METHODS["tok_serial_o"] | {"sketch": 4},
}
ADDITIONS = {"rec2pm_o lambda 0.1": LIGHT} | SKETCHES
# Their seeds: a control has one, and so has a sketch on films, a loss by more than seeds differ by.
ADDED = {
    "complete_journey_types": {
        "rec2pm_o lambda 0.1": 3,
        "rec2pm_sketch": 3,
        "tok_serial_sketch": 3,
        "full_sketch": 1,
    },
    "ml1m_200": {"rec2pm_o lambda 0.1": 3, "rec2pm_sketch": 1},
}
MEMORIES = tuple(name for name in METHODS if METHODS[name]["name"] not in ("full", "recent"))
PRODUCT_METHODS = (
    "recent",
    "full",
    "rec2pm_o",
    "tok_serial_o",
    "rec2pm_sketch",
    "tok_serial_sketch",
)
# Overwrite and append of a family are tuned once; an untuned family would be a weak baseline. What
# takes longest stands first, so that two workers end together.
TUNED = ("rec2pm_o lambda 0.1", "tok_serial_o", "kv_mask_o", "full", "recent", *SKETCHES)
TUNED_HSTU = ("full", "rec2pm_o")  # for the methods without and with a memory
TUNING_GRID = tuple(  # a cross around what rec2pm was developed with
    {"learning_rate": rate, "dropout": dropout}
    for rate, dropout in ((5e-3, 0.1), (1e-2, 0.1), (2.5e-3, 0.1), (5e-3, 0.2), (5e-3, 0.05))
)

# What a first search found, with 2,500 steps and the recipe of then.
CHOSEN_FIRST = {
    "full": {"learning_rate": 1e-2, "dropout": 0.1},
    "recent": {"learning_rate": 5e-3, "dropout": 0.1},
    "tok_serial": {"learning_rate": 5e-3, "dropout": 0.05},
    "kv_mask": {"learning_rate": 5e-3, "dropout": 0.1},
    "rec2pm": {"learning_rate": 5e-3, "dropout": 0.05},
}
# It stands unless a setting in results/tuning.md is better by more than .1, which moved two.
CHOSEN = CHOSEN_FIRST | {
    "full": {"learning_rate": 5e-3, "dropout": 0.1},
    "recent": {"learning_rate": 5e-3, "dropout": 0.05},
}
CHOSEN_HSTU = {"learning_rate": 5e-3, "dropout": 0.1}  # best without and with a memory
CHOSEN_SKETCH = {
    "full_sketch": {"learning_rate": 5e-3, "dropout": 0.1},
    "rec2pm_sketch": {"learning_rate": 2.5e-3, "dropout": 0.1},
    "tok_serial_sketch": {"learning_rate": 5e-3, "dropout": 0.2},
}


# The recipe of rec2pm when `genrec` and HSTU's search were run; `full` ignores it, hashes do not.
EARLIER = _BEFORE | {"live": 0.0, "bag": 1.0, "recall": False}


def override(config: Config, **sections: dict[str, Any]) -> Config:
    """`config` with fields of some sections replaced: override(c, method={"slots": 8})."""
    changed = {
        section: dataclasses.replace(getattr(config, section), **fields)
        for section, fields in sections.items()
    }
    return dataclasses.replace(config, **changed)


def _development() -> Config:
    return override(from_dict(development.get_config().to_dict()), method=_BEFORE)


def _tuning() -> Iterator[Run]:
    """The same small search for every family, on the validation split: recipe and budget of `main`.

    HSTU's is older: 2,500 steps, under a recipe with the bag loss, without live memories and recall.
    """
    sasrec = _development()
    hstu = override(sasrec, model={"backbone": "hstu"}, train={"steps": 2500})
    for method, setting in itertools.product(TUNED, TUNING_GRID):
        yield _tuning_run(override(sasrec, method=(METHODS | ADDITIONS)[method]), method, setting)
    for method, setting in itertools.product(TUNED_HSTU, TUNING_GRID[:3]):
        yield _tuning_run(override(hstu, method=METHODS[method] | EARLIER), method, setting)


def _tuning_run(config: Config, method: str, setting: dict[str, float]) -> Run:
    name = ",".join(f"{field}={value:g}" for field, value in setting.items())
    variant = f"tuning/{method}/{name}"
    return Run("complete_journey_types", variant, tuned(config, setting), split="validation")


def tuned(config: Config, setting: dict[str, float]) -> Config:
    """`config` with a setting of `TUNING_GRID`."""
    return override(
        config,
        optim={"learning_rate": setting["learning_rate"]},
        model={"dropout": setting["dropout"]},
    )


def _main() -> Iterator[Run]:
    """All methods, both datasets; the first seed of everything before the second of anything."""
    long = ("complete_journey_types", "ml1m_200")
    for seed, backbone in ((0, "sasrec"), (0, "hstu"), (1, "sasrec"), (2, "sasrec")):
        for dataset, method in itertools.product(long, METHODS):
            yield _main_run(dataset, method, backbone, seed)
    for dataset, methods in ADDED.items():
        for method, seeds in methods.items():
            for seed in range(seeds):
                yield _main_run(dataset, method, "sasrec", seed)
    for method in PRODUCT_METHODS:
        yield _main_run("complete_journey_products", method, "sasrec", 0)


def _main_run(dataset: str, method: str, backbone: str, seed: int) -> Run:
    fields = (METHODS | ADDITIONS)[method]
    if dataset == "complete_journey_products":  # run after the first search, for every row
        chosen = CHOSEN_FIRST[fields["name"]]
    elif backbone == "hstu":
        chosen = CHOSEN_HSTU
    else:
        chosen = CHOSEN_SKETCH.get(method) or CHOSEN[fields["name"]]
    config = override(tuned(_development(), chosen), method=fields, train={"seed": seed})
    config = override(config, model={"backbone": backbone})
    if dataset == "complete_journey_products":  # 13,343 items: a step takes three times as long
        config = override(config, train={"steps": 1000})
    both = fields["name"] == "rec2pm" and fields["memory"] == "overwrite"
    memories = ("", "one_time") if both else ("",)
    return Run(dataset, method, config, memories)


def _ablation() -> Iterator[Run]:
    """One factor at a time, rec2pm_o on Complete Journey, half of the steps."""
    base = override(_development(), train={"steps": 750})
    base = tuned(override(base, method=METHODS["rec2pm_o"]), CHOSEN["rec2pm"])
    plain = from_dict(paper_plain.get_config().to_dict())
    window = base.data.segment * base.data.segments
    variants: dict[str, Config] = {
        "recipe": base,
        "without live memories": override(base, method={"live": 0.0}),
        "live memories only": override(base, method={"live": 1.0}),
        "without L_con": override(base, method={"consistency": 0.0}),
        "without live memories or L_con": override(base, method={"live": 0.0, "consistency": 0.0}),
        **{
            f"lambda = {weight:g}": override(base, method={"consistency": weight})
            for weight in (0.1, 0.3, 3.0)
        },
        "L_con target stopped": override(base, method={"stop_target": True}),
        "without copying start": override(base, model={"identity_init": False}),
        "with reference AR loss": override(base, method={"reference_ar": 0.5}),
        "losses of the recipe before": override(base, method=_BEFORE | {"reference_window": 2}),
        "without recall": override(base, method={"recall": False}),
        "with bag loss": override(base, method={"bag": 1.0}),
        "without running mean": override(base, method={"running_mean": False}),
        "without horizons": override(base, method={"horizons": False}),
        "plain recipe": override(
            base,
            method=dataclasses.asdict(plain.method),
            model={"identity_init": plain.model.identity_init},
        ),
        **{f"C = {c}": override(base, method={"slots": c}) for c in (1, 2, 8, 16)},
        **{
            f"S = {s}": override(base, data={"segment": s, "segments": window // s})
            for s in (10, 50)
        },
        "append": override(base, method=METHODS["rec2pm_a"]),
        "reference pass without window": override(base, method={"reference_window": 0}),
        **{
            f"reference window of {w}": override(base, method={"reference_window": w})
            for w in (2, 4)
        },
        **{f"R = {r}": override(base, data={"recent": r}) for r in (13, 25)},
    }
    for variant, config in variants.items():
        memories = ("",) if variant == "append" else ("", "one_time")
        yield Run("complete_journey_types", f"ablation/{variant}", config, memories)


def _of_main(analysis: str, methods: Iterable[str]) -> Iterator[Run]:
    """Another analysis of the main suite's models of seed 0 on Complete Journey."""
    for method in methods:
        run = _main_run("complete_journey_types", method, "sasrec", 0)
        yield dataclasses.replace(run, analysis=analysis, memories=("",))


def _quantised() -> Iterator[Run]:
    """The main suite's memories, stored in fewer bytes."""
    for dataset in ("complete_journey_types", "ml1m_200"):
        for method in MEMORIES:
            run = _main_run(dataset, method, "sasrec", 0)
            yield dataclasses.replace(run, analysis="quantised", memories=("",))
    yield from _of_main("quantised", ("rec2pm_sketch",))


def _since_archive() -> Iterator[Run]:
    """By raw events read: the main suite's models, and rec2pm_o trained at several R."""
    for dataset in ("complete_journey_types", "ml1m_200"):
        for method in ("full", "recent", "rec2pm_o", "tok_serial_o"):
            run = _main_run(dataset, method, "sasrec", 0)
            yield dataclasses.replace(run, analysis="since_archive", memories=("",))
    for run in _ablation():
        if run.variant == "ablation/recipe" or run.variant.startswith("ablation/R = "):
            yield dataclasses.replace(run, analysis="since_archive", memories=("",))


def _genrec() -> Iterator[Run]:
    """generative-recommenders' public setting, their way."""
    for preset in (ml1m_sasrec, ml1m_hstu, ml1m_hstu_large):
        name = preset.__name__.rsplit("_", 1)[-1]
        config = override(from_dict(preset.get_config().to_dict()), method=EARLIER)
        yield Run("ml1m", f"genrec/{name}", config)


def _smoke() -> Iterator[Run]:
    """A minute that shows whether everything works here; its numbers mean nothing."""
    config = override(
        _development(),
        data={"segment": 10, "segments": 4},
        model={"dim": 16},
        optim={"warmup_steps": 1},
        compute={"accumulate": 1},
        train={"steps": 4, "batch_size": 4, "log_every": 1, "eval_every": 2, "eval_users": 20},
    )
    for method in ("full", "recent", "rec2pm_o"):
        yield Run("synthetic", method, override(config, method=METHODS[method]))


_SUITES: dict[str, Callable[[], Iterator[Run]]] = {
    "tuning": _tuning,
    "main": _main,
    "ablation": _ablation,
    "denoise": lambda: _of_main("denoise", (*METHODS, "rec2pm_sketch")),
    "lifelong": lambda: _of_main("lifelong", (*METHODS, "rec2pm_sketch")),
    "anatomy": lambda: _of_main("anatomy", ("rec2pm_o", "tok_serial_o", "rec2pm_sketch")),
    "quantised": _quantised,
    "since_archive": _since_archive,
    "genrec": _genrec,
    "smoke": _smoke,
}
SUITES = tuple(_SUITES)


def runs_of(suite: str) -> list[Run]:
    """The runs of a suite, in the order in which they are worth having.

    Raises:
      UserError: there is no such suite.
    """
    if suite not in _SUITES:
        raise UserError(
            f"--suite={suite}: choose one of {', '.join(SUITES)}.{nearest(suite, SUITES)}"
        )
    return list(_SUITES[suite]())
