"""The evaluator against a loop that serves one user at a time, with exact and with real methods."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.config import Config, DataConfig, MethodConfig, ModelConfig
from rec2pm_jax.config_dict import to_dict
from rec2pm_jax.data.splits import split_rule
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.batching import round_up_count
from rec2pm_jax.evaluation.evaluator import evaluate
from rec2pm_jax.evaluation.histories import load_histories
from rec2pm_jax.evaluation.memory_states import choose_swap_donors, compute_memories, swap_parts
from rec2pm_jax.evaluation.ranking import read_targets
from rec2pm_jax.evaluation.record import write_records
from rec2pm_jax.evaluation.report import setting_line
from rec2pm_jax.evaluation.spec import EvalSpec
from rec2pm_jax.evaluation.targets import Rows, Targets, make_targets, plan_rows
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.typing import Events, ExactMemory, State
from tests.helpers.evaluate_fakes import PARAMS, FakeDataset, FakeMethod, slow_rank
from tests.helpers.stream import with_random_zeros

# Users too short for last_10, without a full segment, and with up to 13 updates at S = 5.
LENGTHS = [23, 70, 4, 41, 21, 20, 33, 66, 28]


def make_config(
    name="rec2pm", memory="overwrite", segment=5, recent=1, protocol="last_10", **model
):
    return Config(
        data=DataConfig(segment=segment, segments=3, recent=recent, protocol=protocol),
        model=ModelConfig(**{"dim": 8, "layers": 1, "heads": 2, **model}),
        method=MethodConfig(name=name, memory=memory, slots=2, max_groups=3, exact_entries=4),
    )


EXACT_BYTES = 4 * 8


def initial(method):
    return with_random_zeros(jax.jit(method.init)(jax.random.key(0)))


class OneByOne:
    """Serves one user at a time, segment by segment and target by target."""

    def __init__(self, method, params, dataset):
        self.method, self.params, self.dataset = method, params, dataset
        self.update, self.read_all = jax.jit(method.update), jax.jit(method.read_all)
        self.compress = jax.jit(method.compress) if hasattr(method, "compress") else None
        self.score = jax.jit(method.score)

    known = True  # whether requests have a time

    def events(self, user, start, stop, width):
        """Events [start, stop) of a user as a padded batch of one, and their mask."""
        sequence = self.dataset.sequence(user)

        def padded(x):
            return None if x is None else np.pad(x[start:stop], (0, width + start - stop))[None]

        valid = np.arange(width)[None] < stop - start
        return Events(padded(sequence.ids), padded(sequence.times), None), valid

    def next_time(self, user, end):
        times = self.dataset.sequence(user).times
        return None if times is None else times[end : end + 1]

    def state(self, user, first_segment, updates, memory):
        segment = self.method.config.data.segment
        first, stop = first_segment * segment, (first_segment + updates) * segment
        if memory == "one_time" and updates:
            events = self.events(user, first, stop, stop - first)
            return self.compress(self.params, *events, self.next_time(user, stop))
        state = self.method.init_state(self.params, 1)
        for begin in range(first, stop, segment):
            events = self.events(user, begin, begin + segment, segment)
            next_time = self.next_time(user, begin + segment)
            state = self.update(self.params, state, *events, next_time)
        return state

    def scores(self, user, n, start, state):
        """Logits [V] for event n, read from `start` on."""
        times = self.dataset.sequence(user).times
        time = times[n : n + 1] if self.known and times is not None else None
        events, valid = self.events(user, start, n, self.method.read_length)
        readout = self.read_all(self.params, state, events, valid, time)
        return np.asarray(self.score(self.params, readout))[0, n - start - 1]

    def rank(self, user, n, scores):
        return slow_rank(scores, self.dataset.sequence(user).ids[n])

    def all_scores(self, split, memory, protocol="last_10", max_segments=0):
        """(user, position, logits) of every target, in order."""
        rule = split_rule(protocol)
        for user in range(self.dataset.num_users):
            for n in rule.targets(len(self.dataset.sequence(user).ids), split):
                updates, first, start = map(int, self.method.plan(n, max_segments))
                state = self.state(user, first, updates, memory)
                yield user, n, self.scores(user, n, start, state)

    def ranks(self, *args):
        """int [T, 3]: user, position and rank of every target."""
        found = [(user, n, self.rank(user, n, s)) for user, n, s in self.all_scores(*args)]
        return np.array(found)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("setting", "memory", "times"),
    [
        ({"split": "validation"}, "overwrite", True),
        ({"split": "test"}, "one_time", False),
        ({"split": "test", "max_segments": 2}, "overwrite", True),
        ({"split": "test", "max_segments": 2}, "one_time", True),
        ({"split": "test", "protocol": "leave_one_out"}, "overwrite", False),
        ({"split": "test", "recent": 4}, "overwrite", True),
    ],
    ids=str,
)
def test_ranks_equal_those_of_serving_one_user_at_a_time(setting, memory, times):
    protocol = setting.get("protocol", "last_10")
    config = make_config(recent=setting.get("recent", 1), protocol=protocol)
    method = FakeMethod(config, 12)
    dataset = FakeDataset(LENGTHS, times=times)
    max_segments = setting.get("max_segments")
    found = evaluate(
        method,
        PARAMS,
        dataset,
        EvalSpec(setting["split"], memory=memory, max_segments=max_segments, batch_size=4),
    )
    slow = OneByOne(method, PARAMS, dataset)
    expected = slow.ranks(setting["split"], memory, protocol, max_segments or 0)
    np.testing.assert_array_equal(np.stack([found.user, found.position, found.rank], 1), expected)
    assert found.skipped_users == (0 if protocol == "leave_one_out" else 2)


@pytest.mark.parametrize("name", ["recent", "full"])
def test_genrec_leaves_out_what_was_read(name):
    """Twelve items and windows of 5 or 15 events: some targets are left out themselves."""
    method = FakeMethod(make_config(name, protocol="genrec"), 12)
    dataset = FakeDataset(LENGTHS)
    found = evaluate(method, PARAMS, dataset, EvalSpec("test", batch_size=4))
    slow, expected = OneByOne(method, PARAMS, dataset), []
    for user, n, scores in slow.all_scores("test", "none", "genrec"):
        ids = dataset.sequence(user).ids
        read = set(ids[max(0, n - method.read_length) : n])
        left = np.array([0, *(i for i in range(1, 13) if i not in read)])
        lost = ids[n] in read
        expected.append(12 if lost else slow_rank(scores[left], list(left).index(ids[n])))
    np.testing.assert_array_equal(found.rank, expected)
    assert 0 < sum(rank == 12 for rank in expected) < len(expected)
    record = found.record(config=to_dict(method.config))
    assert record["seen_masked"] and record["protocol"] == "genrec"
    assert "steps are chosen on it too" in setting_line(record)


@pytest.mark.parametrize("name", ["recent", "full"])
def test_methods_without_memory(name):
    method = FakeMethod(make_config(name), 12)
    dataset = FakeDataset(LENGTHS)
    found = evaluate(method, PARAMS, dataset, EvalSpec("test", batch_size=4))
    expected = OneByOne(method, PARAMS, dataset).ranks("test", "none")
    np.testing.assert_array_equal(found.rank, expected[:, 2])
    record = found.record(config={})
    assert (record["memory"], record["swap"], record["memory_variance"]) == ("none", None, None)
    assert record["state_bytes_per_user"] == 0


@pytest.mark.parametrize(
    ("name", "memory", "served", "model"),
    [
        (
            "rec2pm",
            "overwrite",
            "overwrite",
            {"backbone": "hstu", "relative_bias": "position_time", "use_times": True},
        ),
        ("rec2pm", "append", "append", {}),
        ("rec2pm", "append", "one_time", {"use_times": True}),
        ("recent", "overwrite", "overwrite", {"use_times": True}),
        ("full", "overwrite", "none", {"use_times": True}),
        ("kv_mask", "append", "append", {"backbone": "hstu", "layers": 2}),
    ],
    ids=str,
)
def test_scores_of_methods_equal_a_loop(name, memory, served, model):
    config = make_config(name, memory, **model)
    dataset = FakeDataset([23, 24])
    method = make_method(config, dataset.num_items)
    params = initial(method)
    histories = load_histories(dataset, np.arange(2))
    targets = make_targets(histories, split_rule("last_10"), "test")
    rows = plan_rows(targets, method, None)
    states = compute_memories(method, params, histories, rows, served, 2)
    readout = read_targets(method, params, histories, rows, states, batch_size=2)
    found = method.score(params, readout)
    expected = [s for *_, s in OneByOne(method, params, dataset).all_scores("test", served)]
    np.testing.assert_allclose(found, expected, atol=4e-4)  # the temperature divides by .05


@pytest.mark.parametrize("name", ["rec2pm", "full"])
def test_requests_without_a_time_are_read_one_by_one(name):
    """Each target has a row of its own, which does not know when the target happens."""
    dataset = FakeDataset(LENGTHS, times=True)
    dataset._times = [times * 900 for times in dataset._times]  # up to hours between events
    method = make_method(make_config(name, use_times=True), dataset.num_items)
    params = initial(method)
    known, unknown = (
        evaluate(method, params, dataset, EvalSpec("test", swap=False, request_time_known=k))
        for k in (True, False)
    )
    slow = OneByOne(method, params, dataset)
    slow.known = False
    expected = slow.ranks("test", "overwrite")
    assert np.mean(unknown.rank == expected[:, 2]) > 0.98  # rounding decides between equal scores
    assert np.mean(known.rank == expected[:, 2]) < 0.9
    rows = plan_rows(
        Targets(known.user, known.position, known.position), method, None, shared=False
    )
    np.testing.assert_array_equal(rows.end[rows.target_row], known.position)
    assert len(rows.end) == len(known.rank)


def test_batch_size_changes_nothing():
    method, dataset = FakeMethod(make_config(), 12), FakeDataset(LENGTHS)
    found = [
        evaluate(method, PARAMS, dataset, EvalSpec("test", batch_size=size)) for size in (1, 3, 128)
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].rank, other.rank)
        np.testing.assert_array_equal(found[0].swapped_ranks["all"], other.swapped_ranks["all"])


def test_swap_reads_with_the_donors_memory():
    method, dataset = FakeMethod(make_config(), 12), FakeDataset(LENGTHS, times=False)
    found = evaluate(method, PARAMS, dataset, EvalSpec("test", batch_size=4))
    users = np.flatnonzero(dataset.lengths >= 21)
    histories = load_histories(dataset, users)
    rows = plan_rows(make_targets(histories, split_rule("last_10"), "test"), method, None)
    donors = choose_swap_donors(rows)
    slow = OneByOne(method, PARAMS, dataset)
    for target, row in enumerate(rows.target_row):
        donor = donors[row]
        state = slow.state(users[rows.user[donor]], 0, int(rows.updates[donor]), "overwrite")
        user, n = users[rows.user[row]], int(found.position[target])
        scores = slow.scores(user, n, int(rows.start[row]), state)
        assert found.swapped_ranks["all"][target] == slow.rank(user, n, scores)


def test_parts_of_a_state_are_swapped_alone():
    numbers = np.arange(6)
    exact = ExactMemory(*(np.stack([numbers * k] * 3, axis=1) for k in (10, 100, 1000)))
    states = State(numbers.reshape(6, 1, 1) * 1.0, numbers, numbers, exact)
    donors = np.array([1, 0, 3, 2, 5, 4])
    swapped = swap_parts(states, donors)
    found = {
        part: (state.memory[:, 0, 0].tolist(), state.exact.items[:, 0].tolist())
        for part, state in swapped.items()
    }
    own, others = [0, 1, 2, 3, 4, 5], [1, 0, 3, 2, 5, 4]
    assert found == {
        "all": (others, [10 * n for n in others]),
        "memory": (others, [10 * n for n in own]),
        "exact": (own, [10 * n for n in others]),
    }
    assert swapped["memory"].groups.tolist() == others and swapped["exact"].groups.tolist() == own
    empty = ExactMemory(*(np.zeros((6, 0), np.int32) for _ in range(3)))
    assert set(swap_parts(states._replace(exact=empty), donors)) == {"all"}


def make_rows(user, updates):
    user, updates = np.array(user), np.array(updates)
    zeros = np.zeros_like(user)
    return Rows(user, updates, zeros, updates, updates + 1, zeros, zeros)


def test_swap_donors_are_other_users_of_similar_length():
    rng = np.random.default_rng(0)
    rows = make_rows(np.repeat(np.arange(50), 3), rng.integers(0, 6, 150))
    donors = choose_swap_donors(rows)
    with_memory = rows.updates > 0
    np.testing.assert_array_equal(donors[~with_memory], np.flatnonzero(~with_memory))
    assert (rows.user[donors] != rows.user)[with_memory].all()
    assert (rows.updates[donors] > 0)[with_memory].all()
    gap = np.abs(rows.updates[donors] - rows.updates)[with_memory]
    assert (gap > 1).sum() <= 3  # where the roll wraps around


@pytest.mark.parametrize("updates", [[0, 0, 0], [3, 2, 0]])
def test_no_swap_with_fewer_than_two_memories(updates):
    assert choose_swap_donors(make_rows([0, 0, 1], updates)) is None


def test_a_subset_of_users_is_fixed_by_the_seed():
    method, dataset = FakeMethod(make_config(), 12), FakeDataset([25] * 40)

    def users(seed):
        options = {"split": "validation", "max_users": 6, "seed": seed, "swap": False}
        return evaluate(method, PARAMS, dataset, EvalSpec(**options)).user.tolist()

    assert len(set(users(0))) == 6
    assert users(0) == users(0) != users(1)


def test_targets_share_a_row_exactly_where_their_plans_agree():
    method = FakeMethod(make_config(), 12)
    histories = load_histories(FakeDataset([31]), np.array([0]))
    rows = plan_rows(make_targets(histories, split_rule("last_10"), "test"), method, None)
    # Targets 21..30 read from 20, 25 or (n = 30 alone keeps one raw event) 25 again.
    np.testing.assert_array_equal(rows.start, [20, 25])
    np.testing.assert_array_equal(rows.end, [25, 30])
    np.testing.assert_array_equal(rows.target_row, [0] * 5 + [1] * 5)
    np.testing.assert_array_equal(rows.target_column, [0, 1, 2, 3, 4] * 2)


def test_counts_are_rounded_up_to_the_smallest_allowed_size():
    sizes = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    assert [round_up_count(n) for n in range(1, 33)] == [
        min(size for size in sizes if size >= n) for n in range(1, 33)
    ]


def test_keys_and_values_are_reported_as_state():
    config = make_config("kv_mask", "append", layers=2)
    dataset = FakeDataset(LENGTHS)
    method = make_method(config, dataset.num_items)
    record = evaluate(method, initial(method), dataset, EvalSpec("test")).record(config={})
    keys_and_values = 3 * 2 * (2 * 2 * 8) * 4  # of two layers
    assert record["state_bytes_per_user"] == keys_and_values + EXACT_BYTES
    assert record["state_used_bytes"] == record["state_bytes_per_user"]
    assert record["swap"] is not None and record["memory_variance"] > 0


def test_record_has_the_keys_of_the_contract_and_is_json(tmp_path):
    config = make_config("rec2pm", "append")
    dataset = FakeDataset(LENGTHS)
    method = make_method(config, dataset.num_items)
    found = evaluate(method, initial(method), dataset, EvalSpec("test"))
    record = found.record(config=to_dict(config), config_hash="h", seed=3, step=10)
    contract = (
        "method memory backbone dataset split protocol users targets metrics seen_masked "
        "request_time_known state_bytes_per_user state_bookkeeping_bytes swap memory_variance seed "
        "step wall_s config config_hash data_hash git_commit"
    )
    extra = {"intervals", "skipped_users", "state_used_bytes", "target_types"}
    extra |= {"cutoffs", "list_metrics", "slices"}
    assert set(record) == set(contract.split()) | extra
    assert (record["users"], record["targets"], record["skipped_users"]) == (7, 70, 2)
    assert record["state_bytes_per_user"] == 3 * 2 * 8 * 4 + EXACT_BYTES  # G x C x D x float32
    assert record["state_bookkeeping_bytes"] == 8
    # Every user has had the three updates that fill the capacity.
    assert record["state_used_bytes"] == record["state_bytes_per_user"]
    low, high = record["intervals"]["ndcg@10"]
    assert low <= record["metrics"]["ndcg@10"] <= high
    assert set(record["swap"]) == {"ndcg@10", "memory", "exact"}

    write_records(tmp_path / "new" / "x.json", [record])
    assert json.loads((tmp_path / "new" / "x.json").read_text()) == [record]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.json"]


def test_a_known_request_time_is_recorded_and_needs_times():
    method, spec = FakeMethod(make_config(), 12), EvalSpec("test", request_time_known=True)
    found = evaluate(method, PARAMS, FakeDataset([30]), spec)
    assert found.record(config={})["request_time_known"] is True
    with pytest.raises(UserError, match="request_time_known needs a dataset with times"):
        evaluate(method, PARAMS, FakeDataset([30], times=False), spec)


def test_memory_variance_is_that_of_final_memories():
    method, dataset = FakeMethod(make_config(), 12), FakeDataset(LENGTHS)
    found = evaluate(method, PARAMS, dataset, EvalSpec("test"))
    slow = OneByOne(method, PARAMS, dataset)
    memories = []
    for user in np.flatnonzero(dataset.lengths >= 21):
        updates = int(method.plan(dataset.lengths[user] - 1).updates)
        memories.append(np.asarray(slow.state(user, 0, updates, "overwrite").memory))
    expected = np.var(np.concatenate(memories), axis=0).mean()
    assert found.memory_variance == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "memory", "message"),
    [
        ("rec2pm", "append", "use overwrite or one_time"),
        ("rec2pm", "none", "use overwrite or one_time"),
        ("recent", "one_time", "does not fit method recent"),
        ("tok_serial", "one_time", "use overwrite"),
        ("kv_mask", "one_time", "use overwrite"),
    ],
)
def test_memory_that_does_not_fit_is_a_user_error(name, memory, message):
    dataset = FakeDataset([30])
    method = make_method(make_config(name, layers=2), dataset.num_items)
    with pytest.raises(UserError, match=message):
        evaluate(method, {}, dataset, EvalSpec("test", memory=memory))


def test_targets_seen_in_training_are_a_user_error():
    method = FakeMethod(make_config(protocol="leave_one_out"), 12)
    with pytest.raises(UserError, match="10 targets were training events .*leave_one_out"):
        evaluate(method, PARAMS, FakeDataset([30]), EvalSpec("validation", protocol="last_10"))


def test_scores_that_are_not_finite_are_a_user_error():
    method = FakeMethod(make_config(), 12)
    with pytest.raises(UserError, match="NaN or infinite"):
        evaluate(method, {"scale": jnp.float32(jnp.nan)}, FakeDataset([30]), EvalSpec("test"))


def test_repeated_evaluations_compile_once():
    traces = []

    class Counting(FakeMethod):
        def update(self, *args):
            traces.append(args)
            return super().update(*args)

    method, dataset = Counting(make_config(), 12), FakeDataset(LENGTHS)
    for _ in range(2):
        evaluate(method, PARAMS, dataset, EvalSpec("test"))
    assert len(traces) == 1


def test_a_target_without_history_is_refused():
    class FirstEvent:
        predicts_sets = False

        def targets(self, n, split, user):
            return np.array([0])

    histories = load_histories(FakeDataset([3]), np.array([0]))
    with pytest.raises(ValueError, match="no history"):
        make_targets(histories, FirstEvent(), "test")
