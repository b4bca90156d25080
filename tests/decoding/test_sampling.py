"""Logit rules against HF's numbers, distributions worked by hand, and a plain-Python reference; seeds; histories."""

import math
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from reference import rules_reference
from safetensors.numpy import load_file

from stepaudio.decoding import logits, sampler
from stepaudio.decoding.logits import (
    ban_repeated_ngrams,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise,
    seen_counts,
    warp,
)
from stepaudio.decoding.sampler import History, Sampler
from stepaudio.decoding.sampling import Penalties, Sampling

TENSORS = load_file(Path(__file__).parents[1] / "assets" / "llm.safetensors")
INF = math.inf
LOGITS, HISTORY = mx.array(TENSORS["in.proc.logits"]), mx.array(TENSORS["in.proc.history"])
TIED, FULL = mx.array(TENSORS["in.proc.tied_logits"]), mx.full((3,), 30)


def number(text: str) -> float:
    return float(text.replace("p", "."))


def counts() -> mx.array:
    return seen_counts(HISTORY, 200)


RULES = {
    r"rep([\dp]+)": lambda v: penalise(LOGITS, counts(), number(v)),
    r"ngram(\d)": lambda v: ban_repeated_ngrams(LOGITS, HISTORY, FULL, int(v)),
    r"temp([\dp]+)": lambda v: warp(LOGITS, Sampling(temperature=number(v))),
    r"topk(\d+)": lambda v: keep_top_k(LOGITS, int(v)),
    r"tied_topk(\d+)": lambda v: keep_top_k(TIED, int(v)),
    r"topp([\dp]+)": lambda v: keep_top_p(LOGITS, number(v)),
    r"minp([\dp]+)": lambda v: keep_min_p(LOGITS, number(v)),
    r"freq([\d.-]+)_pres([\d.]+)": lambda f, p: penalise(LOGITS, counts(), 1.0, float(f), float(p)),
    r"counts": counts,
    r"pipeline": lambda: warp(penalise(LOGITS, counts(), 1.05), Sampling.reference("chat")),
}


@pytest.mark.parametrize("name", sorted(n[9:] for n in TENSORS if n.startswith("out.proc.")))
def test_rules_equal_the_reference(name):
    ((match, rule),) = [(m, r) for p, r in RULES.items() if (m := re.fullmatch(p, name))]
    got, want = np.array(rule(*match.groups())), TENSORS[f"out.proc.{name}"]
    assert np.array_equal(np.isneginf(got), np.isneginf(want))
    finite = np.isfinite(want)
    assert finite.any() and np.abs(got[finite] - want[finite]).max() < 1e-5
    if name != "counts":
        assert not np.array_equal(got, np.array(TIED if "tied" in name else LOGITS))


def test_the_whole_reference_chain_through_the_sampler():
    # The state that a run carries gives what the chain of rules gives.
    sampler = Sampler(Sampling.reference("chat"), np.array(HISTORY).tolist())
    got = np.array(warp(sampler.rules(LOGITS), sampler.sampling))
    want = TENSORS["out.proc.pipeline"]
    assert np.array_equal(np.isneginf(got), np.isneginf(want))
    finite = np.isfinite(want)
    assert np.abs(got[finite] - want[finite]).max() < 1e-5


# ------------------------------------------------------------------------------- four tokens, worked by hand

P = [0.5, 0.3, 0.15, 0.05]


def row(values) -> mx.array:
    return mx.array([values], dtype=mx.float32)


def logs(p) -> mx.array:
    return row([math.log(v) if v else -INF for v in p])


def survivors(logits: mx.array) -> list[int]:
    return np.flatnonzero(np.isfinite(np.array(logits)[0])).tolist()


@pytest.fixture(params=["a CPU", "a GPU"])
def top_p_of(request, monkeypatch):
    """Top-p as it is on either: both forms run anywhere."""
    monkeypatch.setattr(logits, "on_cpu", lambda: request.param == "a CPU")


@pytest.mark.usefixtures("top_p_of")
@pytest.mark.parametrize(
    ("p", "kept"),
    [(1e-9, [0]), (0.01, [0]), (0.49, [0]), (0.51, [0, 1]), (0.79, [0, 1]), (0.81, [0, 1, 2]), (0.94, [0, 1, 2]),
     (0.96, [0, 1, 2, 3])],
)  # fmt: skip
def test_top_p_by_hand(p, kept):
    assert survivors(keep_top_p(logs(P), p)) == kept
    assert survivors(keep_top_p(logs(P[::-1]), p)) == [3 - k for k in kept][::-1]


@pytest.mark.usefixtures("top_p_of")
@pytest.mark.parametrize("kind", ["distinct", "bfloat16", "all tied", "top-k", "one left"])
@pytest.mark.parametrize("p", [5e-324, 0.1, 0.9, 0.999999])
@pytest.mark.parametrize("n", [4001, 40_001])  # which a CPU sorts by MLX, and by numpy
def test_top_p_keeps_what_the_inverse_order_finds(kind, p, n):
    """Every bit, ties at the edge and forbidden tokens included, as with the order inverted by a second sort."""
    found = mx.array(np.random.default_rng(5).normal(0, 3, (3, n)).astype(np.float32))
    found = {
        "distinct": found,
        "bfloat16": found.astype(mx.bfloat16).astype(mx.float32),
        "all tied": mx.zeros_like(found),
        "top-k": keep_top_k(found, 50),
        "one left": mx.where(mx.arange(n) == 17, found, -mx.inf),
    }[kind]
    order = mx.argsort(found, axis=-1)
    share = np.array(mx.softmax(mx.take_along_axis(found, order, axis=-1), axis=-1))
    drop = np.array(mx.cumsum(mx.array(share), axis=-1)) <= np.float32(1 - p)
    drop[:, -1] = False
    back = np.argsort(np.array(order), axis=-1)
    want = np.where(np.take_along_axis(drop, back, axis=-1), -np.inf, np.array(found))
    assert np.array_equal(np.array(keep_top_p(found, p)), want)


@pytest.mark.parametrize(
    ("p", "kept"), [(0.05, [0, 1, 2, 3]), (0.11, [0, 1, 2]), (0.31, [0, 1]), (0.59, [0, 1]), (0.61, [0]), (1.0, [0])]
)
def test_min_p_by_hand(p, kept):
    assert survivors(keep_min_p(logs(P), p)) == kept


@pytest.mark.parametrize(
    ("k", "kept"), [(1, [1]), (2, [1, 2, 3]), (3, [1, 2, 3]), (4, [0, 1, 2, 3]), (99, [0, 1, 2, 3])]
)
def test_top_k_by_hand(k, kept):
    assert survivors(keep_top_k(row([1, 5, 3, 3]), k)) == kept


def test_penalties_by_hand():
    seen = seen_counts(mx.array([[0, 1, 1, -1]]), 4)
    assert np.array_equal(seen, [[1, 2, 0, 0]])
    logits = row([2, -3, 4, -5])
    assert np.allclose(penalise(logits, seen, repetition=2.0), [[1, -6, 4, -5]])
    assert np.allclose(penalise(logits, seen, frequency=0.5), [[1.5, -4, 4, -5]])
    assert np.allclose(penalise(logits, seen, presence=0.5), [[1.5, -3.5, 4, -5]])
    # Repetition first: 2 / 2 - 0.5 - 0.25, not (2 - 0.75) / 2.
    assert np.allclose(penalise(logits, seen, 2.0, 0.5, 0.25), [[0.25, -7.25, 4, -5]])


def test_ngrams_by_hand():
    def ban(tokens, n, length=None):
        length = mx.array([len(tokens) if length is None else length])
        found = ban_repeated_ngrams(row([0, 0, 0, 0]), mx.array([tokens]), length, n)
        return np.flatnonzero(np.isneginf(np.array(found)[0])).tolist()

    assert ban([0, 1, 2, 0, 1], 3) == [2]
    assert ban([0, 1, 2, 0, 1, 3, 0, 1], 3) == [2, 3]
    assert ban([0, 1, 2], 3) == [] and ban([0, 1], 3) == [] and ban([0], 3) == []
    assert ban([1, 1], 2) == [1] and ban([1, 1, 1], 3) == [1] and ban([0, 2], 1) == [0, 2]
    assert ban([0, 1, 2, 0, 1, 3], 2, 4) == [1]  # what lies beyond the length is not history
    assert ban([0, 3, 0, 2], 2, 3) == [3] and ban([0, 1, 2, 3], 1, 2) == [0, 1]
    assert ban([0, 1, 0, -1], 2, 3) == [1] and ban([-1, -1], 2, 0) == [] and ban([-1, -1], 1, 0) == []


def test_warping_by_hand():
    # Temperature comes first: at 0.5 the probabilities are squared, and 0.9 of them are two tokens instead of three.
    assert survivors(warp(logs(P), Sampling(temperature=1.0, top_p=0.9))) == [0, 1, 2]
    assert survivors(warp(logs(P), Sampling(temperature=0.5, top_p=0.9))) == [0, 1]
    # Top-k before top-p: of the two best, 0.5 / 0.8 = 0.625 is enough for 0.6; of all four it would not be.
    assert survivors(warp(logs(P), Sampling(temperature=1.0, top_k=2, top_p=0.6))) == [0]
    assert survivors(warp(logs(P), Sampling(temperature=1.0, top_p=0.6))) == [0, 1]
    # Min-p comes last and takes more: 0.15 / 0.5 < 0.31.
    assert survivors(warp(logs(P), Sampling(temperature=1.0, top_p=0.9, min_p=0.31))) == [0, 1]
    assert np.allclose(warp(row([1, 2, 3, 4]), Sampling(temperature=2.0)), [[0.5, 1, 1.5, 2]])


def test_declared_order(monkeypatch):
    called = []
    for name in ("penalise", "ban_repeated_ngrams", "keep_top_k", "keep_top_p", "keep_min_p"):
        home = sampler if hasattr(sampler, name) else logits
        rule = getattr(home, name)
        monkeypatch.setattr(home, name, lambda *a, rule=rule, name=name: called.append(name) or rule(*a))
    s = Sampling(temperature=0.7, top_k=3, top_p=0.9, min_p=0.1, text=Penalties(1.1, 0.1, 0.1, 1))
    Sampler(s, [[0]])(row([1, 2, 3, 4]))
    assert called == ["penalise", "ban_repeated_ngrams", "keep_top_k", "keep_top_p", "keep_min_p"]


# ------------------------------------------------------------------------------- against a plain-Python reference


def ids_of(sampler: Sampler, logits: mx.array, n: int) -> list[list[int]]:
    return np.array([np.array(sampler(logits)) for _ in range(n)]).T.tolist()


@pytest.mark.parametrize("seed", range(12))
def test_rules_equals_a_plain_reference_on_random_histories(seed):
    rng = np.random.default_rng(seed)
    V, audio = 12, (8, 12)
    text, codes = (
        Penalties(
            float(rng.choice([1, 1.3, 0.8])),
            float(rng.choice([0, 0.7, -0.2])),
            float(rng.choice([0, 0.4])),
            int(rng.integers(0, 4)),
            None if rng.random() < 0.5 else int(rng.integers(1, 20)),
            bool(rng.integers(2)),
        )
        for _ in range(2)
    )
    prompts = [rng.integers(0, V, n).tolist() for n in (0, 3, 9)]
    sampler = Sampler(Sampling(text=text, audio=codes), prompts, audio)
    said: list[list[int]] = [[] for _ in prompts]
    for _ in range(40):
        logits = rng.normal(size=(3, V)).astype(np.float32)
        got = np.array(sampler.rules(mx.array(logits)))
        for r, prompt in enumerate(prompts):
            want = logits[r].astype(float)
            for p, mine in ((text, lambda t: t < 8), (codes, lambda t: t >= 8)):
                seen = [t for t in (prompt if p.include_prompt else []) + said[r] if mine(t)]
                seen = seen[-p.window :] if p.window else seen
                want = np.array(rules_reference(want, seen, p.repetition, p.frequency, p.presence, p.no_repeat_ngram))
            finite = np.isfinite(want)
            assert np.array_equal(np.isfinite(got[r]), finite)
            assert np.abs(got[r][finite] - want[finite]).max(initial=0) < 1e-4
        for r, t in enumerate(np.array(sampler(mx.array(logits))).tolist()):
            said[r].append(t)


# ------------------------------------------------------------------------------- histories


def test_history_is_packed_and_grows():
    rng = np.random.default_rng(0)
    history, want = History(3), [[], [], []]
    for _ in range(1300):
        ids, mine = rng.integers(0, 1000, 3), rng.random(3) < [0.3, 0.9, 1.0]
        history.push(mx.array(ids.astype(np.int32)), mx.array(mine))
        for r in range(3):
            want[r] += [int(ids[r])] * bool(mine[r])
    table, length = np.array(history.ids), np.array(history.length)
    assert length.tolist() == [len(w) for w in want] and length[2] == 1300 > 2 * sampler.HISTORY_BLOCK
    for r in range(3):
        assert table[r, : length[r]].tolist() == want[r] and (table[r, length[r] :] == -1).all()
        recent = np.array(history.recent(5))[r]
        assert recent[recent >= 0].tolist() == want[r][-5:] and np.flatnonzero(recent >= 0)[-1] == length[r] - 1
    history.keep_rows(mx.array([2, 0]))
    assert np.array(history.length).tolist() == [1300, len(want[0])]


@pytest.mark.parametrize("n", [0, 1, 511, 512, 513, 1024])
def test_history_preloaded(n):
    history = History(2)
    history.preload([list(range(n)), [7]])
    history.push(mx.array([5, 6]), mx.array([True, True]))
    ids = np.array(history.ids)
    assert ids[0][ids[0] >= 0].tolist() == [*range(n), 5] and ids[1][ids[1] >= 0].tolist() == [7, 6]
    assert np.array(history.length).tolist() == [n + 1, 2]


def test_a_long_history_has_few_sizes():
    """Temporary arrays are as long as it is; of ever new sizes, what is freed of one does not serve the next."""
    history, widths, ids = History(1), set(), mx.array([1], dtype=mx.int32)
    for _ in range(5000):
        history.push(ids, mx.array([True]))
        mx.eval(history.ids, history.length)
        widths.add(history.ids.shape[1])
    assert len(widths) <= 5 and history.length.item() == 5000 and (np.array(history.ids[0, :5000]) == 1).all()
    assert (np.array(history.ids[0, 5000:]) == -1).all()


def test_penalties_still_count_after_the_history_has_grown():
    # Equal logits and a frequency penalty: every id must come equally often, for ever.
    (ids,) = ids_of(Sampler(Sampling(text=Penalties(frequency=1.0)), [[]]), mx.zeros((1, 4)), 1200)
    assert np.bincount(ids).tolist() == [300] * 4


# ------------------------------------------------------------------------------- text and audio apart


def test_text_and_audio_penalties_do_not_touch_each_other():
    hard = Penalties(frequency=100.0, no_repeat_ngram=1)
    logits = row([4, 3, 2, 9, 8, 7])  # 0..2 text, 3..5 audio codes
    for kind, free, punished in (("text", slice(3, 6), slice(0, 3)), ("audio", slice(0, 3), slice(3, 6))):
        s = Sampling(text=hard if kind == "text" else Penalties(), audio=hard if kind == "audio" else Penalties())
        sampler = Sampler(s, [[]], (3, 6))
        for token in (0, 3, 1, 4):  # say two of each
            sampler(mx.where(mx.arange(6) == token, 1e4, -1e4)[None])
        ruled, plain = np.array(sampler.rules(logits))[0], np.array(logits)[0]
        assert np.array_equal(ruled[free], plain[free])
        assert np.isneginf(ruled[punished]).tolist() == [True, True, False]


def test_ngrams_of_text_reach_over_audio_in_between():
    # Interleaved speech: 0 1 | codes | 0 -> 1 is a repeated pair of text tokens, whatever codes lie between.
    sampler = Sampler(Sampling(text=Penalties(no_repeat_ngram=2), audio=Penalties()), [[]], (3, 6))
    for token in (0, 4, 1, 3, 5, 0, 4):
        sampler(mx.where(mx.arange(6) == token, 1e4, -1e4)[None])
    assert np.flatnonzero(np.isneginf(np.array(sampler.rules(mx.zeros((1, 6))))[0])).tolist() == [1]


def test_audio_codes_are_text_where_no_range_is_given():
    sampler = Sampler(Sampling(text=Penalties(no_repeat_ngram=1), audio=Penalties()), [[]])
    assert ids_of(sampler, row([0, 1, 2, 3, 4, 5]), 4) == [[5, 4, 3, 2]]


def test_prompt_counts_only_where_asked():
    logits = row([5, 4, 3, 2])
    for prompt, want in ((False, [0, 1, 2]), (True, [2, 3])):
        s = Sampling(text=Penalties(no_repeat_ngram=1, include_prompt=prompt))
        assert ids_of(Sampler(s, [[0, 1]]), logits, len(want)) == [want]


def test_window_forgets():
    s = Sampling(text=Penalties(no_repeat_ngram=1, window=2))
    assert ids_of(Sampler(s, [[]]), row([5, 4, 3, 2]), 7) == [[0, 1, 2, 0, 1, 2, 0]]


# ------------------------------------------------------------------------------- drawing


def test_same_seed_same_ids():
    s = Sampling.greedy(temperature=1.0, seed=3)
    a, b = (ids_of(Sampler(s, [[]]), LOGITS[:1], 50) for _ in range(2))
    assert a == b and len(set(a[0])) > 10
    assert a != ids_of(Sampler(Sampling.greedy(temperature=1.0, seed=4), [[]]), LOGITS[:1], 50)


def test_global_seed_does_not_matter():
    s, runs = Sampling.greedy(temperature=1.0), []
    for seed in (1, 2):
        mx.random.seed(seed)
        runs.append(ids_of(Sampler(s, [[]]), LOGITS[:1], 20))
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    "s",
    [Sampling.greedy(temperature=1.0), Sampling(temperature=0.8, top_k=20), Sampling()],
    ids=["sampled", "planned and sampled", "planned"],
)
def test_rows_are_independent_of_company(s):
    together = ids_of(Sampler(s, [[1], [2], [3]]), LOGITS, 40)
    assert together == [ids_of(Sampler(s, [[i + 1]]), LOGITS[i : i + 1], 40)[0] for i in range(3)]


def test_rows_that_leave_do_not_disturb_the_others():
    s = Sampling(temperature=1.0, top_p=0.9)
    want = ids_of(Sampler(s, [[], [], []]), LOGITS, 30)
    sampler = Sampler(s, [[], [], []])
    first = ids_of(sampler, LOGITS, 10)
    sampler.keep_rows([2, 0])
    rest = ids_of(sampler, LOGITS[mx.array([2, 0])], 20)
    assert [first[2] + rest[0], first[0] + rest[1]] == [want[2], want[0]]


def test_draws_follow_the_distribution():
    ids = ids_of(Sampler(Sampling.greedy(temperature=1.0), [[]]), logs(P), 4000)[0]
    shares = np.bincount(ids, minlength=4) / 4000
    assert np.abs(shares - P).max() < 5 * math.sqrt(0.25 / 4000)  # five standard deviations of the worst id
    warmer = ids_of(Sampler(Sampling.greedy(temperature=1.0, top_p=0.7), [[]]), logs(P), 500)[0]
    assert set(warmer) == {0, 1}


def test_temperature_zero_ignores_the_other_options():
    s = Sampling.greedy(top_k=1, top_p=0.1, min_p=1.0, seed=9)
    assert ids_of(Sampler(s, [[]] * 3), LOGITS, 2) == [[int(i)] * 2 for i in np.argmax(np.array(LOGITS), axis=1)]


# ------------------------------------------------------------------------------- escape


def test_escape_penalties_replace_those_of_one_row():
    s = Sampling.greedy(escape=Penalties(no_repeat_ngram=1))
    sampler = Sampler(s, [[], []])
    logits = mx.array([[5.0, 4, 3, 2]] * 2)
    assert ids_of(sampler, logits, 3) == [[0] * 3] * 2
    sampler.escape(1)
    assert ids_of(sampler, logits, 2) == [[0] * 2, [1, 2]]
    sampler.keep_rows([1])
    assert ids_of(sampler, logits[:1], 1) == [[3]]
    assert np.isneginf(np.array(sampler.rules(logits[:1], "escape"))).all()


def test_escape_takes_the_place_of_the_usual_penalties():
    s = Sampling(text=Penalties(no_repeat_ngram=1), escape=Penalties())
    sampler = Sampler(s, [[]])
    assert ids_of(sampler, row([5, 4, 3, 2]), 2) == [[0, 1]]
    sampler.escape(0)
    assert ids_of(sampler, row([5, 4, 3, 2]), 2) == [[0, 0]]
