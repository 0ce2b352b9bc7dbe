"""The suites of `launch.reproduce`: which runs each of them consists of.

Every run uses the defaults of the configuration, and learning rate and dropout as a search found them
(`settings`). Grids were fixed before their results were looked at.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from launch.configs import demo, ml1m_hstu, ml1m_hstu_large, ml1m_sasrec, paper_plain
from launch.experiments.run import Run
from launch.experiments.settings import (
    MEMORIES,
    METHODS,
    TUNING_GRID,
    choose_setting,
    override,
    with_setting,
)
from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import from_dict
from rec2pm_jax.errors import UserError, nearest

# Overwrite and append of a family share a setting.
TUNED = ("rec2pm_o", "full", "tok_serial_o", "linear_recurrence", "recent_exact")
_ALL = ("rec2pm_o", "full", "recent_exact", "tok_serial_o", "linear_recurrence", "recent")
# Dataset -> the methods that claims rest on (three seeds), and further methods (one seed).
MAIN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "complete_journey_types": ((*_ALL[:-1], "rec2pm_528"), ("recent", "kv_mask_o")),
    "online_retail": (_ALL[:2], _ALL[2:]),
    "ml1m_200": (("rec2pm_o", "recent", "tok_serial_o"), _ALL[1:3] + _ALL[4:5]),
    "coop100": (_ALL[:2], _ALL[2:]),
    "complete_journey_products": (_ALL[:2], _ALL[2:]),
}
HSTU_METHODS = ("rec2pm_o", "full", "tok_serial_o", "recent_exact")
# What our default adds to the paper's model.
_PLAIN_MODEL = ("identity_init", "use_times", "repeat_head")


def list_runs(suite: str) -> list[Run]:
    """Return the runs of a suite, the most useful first.

    Raises:
      UserError: there is no such suite.
    """
    if suite not in _SUITES:
        raise UserError(
            f"--suite={suite}: choose one of {', '.join(SUITES)}.{nearest(suite, SUITES)}"
        )
    return list(_SUITES[suite]())


def _setting() -> Config:
    """The setting of every suite but `genrec`: that of `make demo`."""
    return from_dict(demo.get_config().to_dict())


def _tuning() -> Iterator[Run]:
    """The same small search for every family, on the validation split, with the budget of `main`."""
    for method, setting in itertools.product(TUNED, TUNING_GRID):
        yield _tuning_run(method, setting)


def _tuning_run(method: str, setting: dict[str, float]) -> Run:
    name = ",".join(f"{field}={value:g}" for field, value in setting.items())
    config = with_setting(override(_setting(), method=METHODS[method]), setting)
    return Run("complete_journey_types", f"tuning/{method}/{name}", config, split="validation")


def _main() -> Iterator[Run]:
    """All methods on five datasets; the first seed of everything before the second of anything."""
    for dataset, (claimed, others) in MAIN.items():
        for method in (*claimed, *others):
            yield _main_run(dataset, method, "sasrec", 0)
    for method in HSTU_METHODS:
        yield _main_run("complete_journey_types", method, "hstu", 0)
    for seed, (dataset, (claimed, _)) in itertools.product((1, 2), MAIN.items()):
        for method in claimed:
            yield _main_run(dataset, method, "sasrec", seed)


def _main_run(dataset: str, method: str, backbone: str, seed: int) -> Run:
    fields = METHODS[method]
    config = with_setting(_setting(), choose_setting(method))
    config = override(config, model={"backbone": backbone}, method=fields, train={"seed": seed})
    both = fields["name"] == "rec2pm" and fields["memory"] == "overwrite"
    return Run(dataset, method, config, (None, "one_time") if both else (None,))


def _last_basket() -> Iterator[Run]:
    """Whole baskets predicted at once, where times are real; trained without the last two baskets."""
    for dataset in ("complete_journey_types", "online_retail", "coop100"):
        for method in _ALL:
            run = _main_run(dataset, method, "sasrec", 0)
            config = override(run.config, data={"protocol": "last_basket"})
            yield Run(dataset, f"last_basket/{method}", config)


def _ablation() -> Iterator[Run]:
    """One factor at a time, rec2pm_o on Complete Journey."""
    base = override(_setting(), method=METHODS["rec2pm_o"])
    base = with_setting(base, choose_setting("rec2pm_o"))
    for variant, config in _ablated(base).items():
        memories = (None,) if variant == "append" else (None, "one_time")
        yield Run("complete_journey_types", f"ablation/{variant}", config, memories)


def _ablated(base: Config) -> dict[str, Config]:
    plain = from_dict(paper_plain.get_config().to_dict())
    window = base.data.segment * base.data.segments
    weights = [w for w in (0.1, 0.3, 1.0, 3.0) if w != base.method.consistency]
    return {
        "recipe": base,
        "without live memories": override(base, method={"live_memory_prob": 0.0}),
        "live memories only": override(base, method={"live_memory_prob": 1.0}),
        "without L_con": override(base, method={"consistency": 0.0}),
        "without live memories or L_con": override(
            base, method={"live_memory_prob": 0.0, "consistency": 0.0}
        ),
        **{f"lambda = {w:g}": override(base, method={"consistency": w}) for w in weights},
        "without identity initialisation": override(base, model={"identity_init": False}),
        "without times": override(base, model={"use_times": False}),
        "without exact memory": override(base, method={"exact_entries": 0}),
        "without own items": override(
            base, method={"exact_entries": 0}, model={"repeat_head": False}
        ),
        **{f"E = {e}": override(base, method={"exact_entries": e}) for e in (32, 64, 128)},
        "plain memory": override(base, method={"plain_memory": True}),
        "plain recipe": override(
            base,
            method=dataclasses.asdict(plain.method),
            model={"identity_init": plain.model.identity_init},
        ),
        **{f"C = {c}": override(base, method={"slots": c}) for c in (1, 2, 8, 16)},
        **{
            f"S = {s}": override(base, data={"segment": s, "segments": window // s})
            for s in (10, 25, 50)
        },
        "append": override(base, method=METHODS["rec2pm_a"]),
        "reference pass without window": override(base, method={"reference_window": None}),
        **{
            f"reference window of {w}": override(base, method={"reference_window": w})
            for w in (2, 4)
        },
        **{f"R = {r}": override(base, data={"recent": r}) for r in (8, 16)},
    }


def _long_training() -> Iterator[Run]:
    """Does the paper's plain recipe work if it is trained ten times longer? Methods as in the paper."""
    plain = from_dict(paper_plain.get_config().to_dict())
    methods: dict[str, dict[str, Any]] = {
        "rec2pm plain": dataclasses.asdict(plain.method),
        "rec2pm plain without L_con": dataclasses.asdict(plain.method) | {"consistency": 0.0},
        "full": METHODS["full"],
        "recent": METHODS["recent"],
    }
    config = override(
        _setting(),
        # Every event is seen about twenty times.
        model={name: getattr(plain.model, name) for name in _PLAIN_MODEL} | {"dropout": 0.1},
        train={"steps": 10 * _setting().train.steps},
    )
    for backbone, (name, fields) in itertools.product(("sasrec", "hstu"), methods.items()):
        run = override(config, model={"backbone": backbone}, method=fields)
        yield Run("complete_journey_types", f"long/{name}", run)


def _analysis_of_main(
    analysis: str,
    methods: Iterable[str],
    datasets: Iterable[str] = ("complete_journey_types",),
) -> Iterator[Run]:
    """Another analysis of the main suite's models of seed 0."""
    for dataset, method in itertools.product(datasets, methods):
        run = _main_run(dataset, method, "sasrec", 0)
        if method in (*MAIN[dataset][0], *MAIN[dataset][1]):
            yield dataclasses.replace(run, analysis=analysis, memories=(None,))


def _quantised() -> Iterator[Run]:
    """The main suite's memories, stored in fewer bytes."""
    yield from _analysis_of_main("quantised", MEMORIES, ("complete_journey_types", "ml1m_200"))


def _since_archive() -> Iterator[Run]:
    """By raw events read: the main suite's models, and rec2pm_o trained at several R."""
    yield from _analysis_of_main(
        "since_archive",
        ("full", "recent", "rec2pm_o", "tok_serial_o"),
        ("complete_journey_types", "ml1m_200"),
    )
    for run in _ablation():
        if run.variant == "ablation/recipe" or run.variant.startswith("ablation/R = "):
            yield dataclasses.replace(run, analysis="since_archive", memories=(None,))


def _genrec() -> Iterator[Run]:
    """generative-recommenders' public setting, with their way of choosing a checkpoint."""
    for preset in (ml1m_sasrec, ml1m_hstu, ml1m_hstu_large):
        name = preset.__name__.rsplit("_", 1)[-1]
        yield Run("ml1m", f"genrec/{name}", from_dict(preset.get_config().to_dict()))


def _smoke() -> Iterator[Run]:
    """One minute that shows whether everything works here; its numbers mean nothing."""
    config = override(
        _setting(),
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
    "last_basket": _last_basket,
    "ablation": _ablation,
    "long": _long_training,
    "denoise": lambda: _analysis_of_main("denoise", METHODS),
    "lifelong": lambda: _analysis_of_main(
        "lifelong", METHODS, ("complete_journey_types", "coop100")
    ),
    "anatomy": lambda: _analysis_of_main("anatomy", ("rec2pm_o", "tok_serial_o")),
    "quantised": _quantised,
    "since_archive": _since_archive,
    "genrec": _genrec,
    "smoke": _smoke,
}
SUITES = tuple(_SUITES)
