"""The character model: its baselines by hand, its nats in NumPy, its samples against argmax."""

import collections
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import text
from experiments.data.characters import encode, encode_with, measure_counts
from experiments.shared.options import InputError
from experiments.text import adaptation, findings
from tests.support import oracle

pytestmark = pytest.mark.usefixtures("as_on_the_command_line")

BOOK = "It was a dark and stormy night; the rain fell in torrents. " * 8
CONFIG = text.Config(
    layers=2,
    hidden_size=5,
    embedding_size=3,
    dropout=0.0,
    drop_connect=0.0,
    streams=4,
    window=47,  # half of a stream, so that the mean over windows is that over characters
    # Adam moves an entry by about its rate: every network stays what it was at the start.
    learning_rate=1e-20,
    steps=2,
    seeds=2,
    devices=1,
    samples=3,
    sample_size=12,
)
ROUNDING = 1e-5  # of a mean of nats, float32


def compute_logits(params, codes):
    """Logits [T, B, alphabet] after each of the characters [T, B], in NumPy float64."""
    table, layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    *layers, (w, b) = layers
    xs = table[codes]
    whole = np.ones(codes.shape, bool), np.zeros(codes.shape, bool)
    for place, (layer, _) in enumerate(layers):  # with its dropout's ()
        h0 = np.zeros((codes.shape[1], len(layer.b)))
        weights = {name: leaf for name, leaf in layer._asdict().items() if leaf is not None}
        ys = oracle.forward(weights, h0, xs, *whole, False, "tanh")[1]
        xs = ys + xs if place else ys
    return xs @ w.T + b


def compute_nats(params, codes, streams):
    """Nats of each predicted character [T, B] of a text cut into streams."""
    length = (len(codes) - 1) // streams
    places = np.arange(length)[:, None] + length * np.arange(streams)
    logits = compute_logits(params, codes[places])
    right = np.take_along_axis(logits, codes[places + 1][..., None], axis=-1)[..., 0]
    return np.log(np.exp(logits).sum(axis=-1)) - right


@functools.cache
def draw_network():
    encoded = encode("book", BOOK, len(BOOK))
    network = text._network(CONFIG, encoded.alphabet)
    return encoded, network, jax.jit(network.init)(jax.random.key(0))


def select(params, place):
    return jax.tree.map(lambda leaf: leaf[place], params)


# The text


def test_characters_decode_to_the_text_they_encode():
    encoded = encode("book", BOOK, len(BOOK))
    assert encoded.alphabet == "".join(sorted(set(BOOK)))
    assert text._decode(encoded.alphabet, encoded.codes) == BOOK


def test_a_character_that_the_part_to_fit_lacks_decodes_to_the_replacement():
    encoded = encode("t", "abab!a?", 4)
    assert text._decode(encoded.alphabet, encoded.codes) == "abab\N{REPLACEMENT CHARACTER}a\ufffd"


def test_a_target_is_the_character_that_follows_its_input():
    codes = np.arange(30)
    inputs, targets = map(np.asarray, text._cut(codes, 4))
    np.testing.assert_array_equal(inputs[:, 0], np.arange(7))
    np.testing.assert_array_equal(inputs[0], [0, 7, 14, 21])
    np.testing.assert_array_equal(targets, inputs + 1)


def test_a_prompt_is_encoded_and_its_unknown_character_is_refused_by_name():
    alphabet = encode("book", BOOK, len(BOOK)).alphabet
    for prompt, expected in (("dark", "dark"), (None, "night")):
        codes = text._encode_prompt(prompt, "night", alphabet)
        assert text._decode(alphabet, codes) == expected
    with pytest.raises(InputError, match="--prompt has '\u20ac', which the text does not"):
        text._encode_prompt("dark \u20ac", "night", alphabet)


def test_another_text_is_encoded_with_the_alphabet_of_the_networks():
    encoded = encode("t", "abab!a?", 4)
    again = encode_with("u", "b?ab", encoded.alphabet)
    np.testing.assert_array_equal(again.codes, [1, 2, 0, 1])
    with pytest.raises(InputError, match=r"u has '\?', which the networks' alphabet lacks"):
        encode_with("u", "b?ab", "ab")


def test_a_text_too_short_for_its_streams_is_refused(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text(BOOK[:300])
    with pytest.raises(InputError, match=r"short.txt has 300 characters, expected at least 320"):
        text._read(dataclasses.replace(CONFIG, text=path))


# The counts


def test_the_counts_of_a_text_of_six_characters_are_those_worked_by_hand():
    codes = np.array([0, 1, 0, 1, 0, 1], np.int32)  # counted in the first five: a b a b a
    nats = measure_counts(codes, 5, 5, 2)
    alone = (2 + 4 * 1 / 2) / (5 + 4)  # two of the five are b
    after_a = (2 + 4 * alone) / (2 + 4)  # b followed a twice, and nothing else did
    after_ba = (1 + 4 * after_a) / (1 + 4)  # and b a once
    assert nats == pytest.approx(
        {"unigram": -math.log(alone), "order 1": -math.log(after_a), "order 2": -math.log(after_ba)}
    )


def test_the_counts_of_a_random_text_are_those_of_dictionaries():
    size, fit_end, start = 4, 120, 130
    codes = np.random.default_rng(0).integers(0, size, 200).astype(np.int32)
    counts = collections.Counter()
    for place in range(2, fit_end):
        for order in range(3):
            context = tuple(codes[place - order : place])
            counts[context, codes[place]] += 1
            counts[context] += 1
    counts[(), codes[0]] += 1
    counts[(), codes[1]] += 1
    counts[()] += 2
    counts[(codes[0],), codes[1]] += 1
    counts[(codes[0],)] += 1
    expected = np.zeros(3)
    for place in range(start, len(codes)):
        p = 1 / size
        for order in range(3):
            context = tuple(codes[place - order : place])
            p = (counts[context, codes[place]] + 4 * p) / (counts[context] + 4)
            expected[order] -= math.log(p) / (len(codes) - start)
    np.testing.assert_allclose(list(measure_counts(codes, fit_end, start, size).values()), expected)


# The network


def test_the_nats_per_character_of_a_text_are_numpy_s():
    encoded, network, params = draw_network()
    other = network.init(jax.random.key(1))
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, other)
    got = text._test(network, both, *text._cut(encoded.codes, 4))
    expected = [compute_nats(one, encoded.codes, 4).mean() for one in (params, other)]
    np.testing.assert_allclose(got, expected, rtol=ROUNDING)


def test_the_page_of_held_out_text_has_the_nats_of_each_of_its_characters():
    encoded, network, params = draw_network()
    page = text._read_held_out(encoded, network, params, 400)
    assert page["text"] == BOOK[401:]
    expected = compute_nats(params, encoded.codes[400:], 1)[:, 0]
    np.testing.assert_allclose(page["nats"], expected, rtol=ROUNDING)


def test_a_run_reports_the_nats_of_each_part_of_the_text_for_its_networks(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(BOOK)
    config = dataclasses.replace(CONFIG, text=path)
    data = text.run(config, lambda done, doing: None).data
    encoded, network, _ = draw_network()
    _, start = text._make_task(config, encoded, (377, 424), network, "network")
    parts = {"train": (0, 377, 4), "validation": (377, 424, 16), "test": (424, 472, 16)}
    expected = {
        part: [
            compute_nats(select(start.params, seed), encoded.codes[begin:end], streams).mean()
            for seed in range(2)
        ]
        for part, (begin, end, streams) in parts.items()
    }
    reported = data["network"]
    np.testing.assert_allclose(reported["test"], expected["test"], rtol=ROUNDING)
    np.testing.assert_allclose(reported["validation"], expected["validation"], rtol=ROUNDING)
    # Each pass carries the states from window to window, and starts from none.
    for curve in ("train", "validation"):
        np.testing.assert_allclose(reported["curves"][curve], [expected[curve]] * 2, rtol=ROUNDING)
    assert data["counts"] == measure_counts(encoded.codes, 424, 424, len(encoded.alphabet))
    assert data["prompt"] == BOOK[374:424]
    assert [len(sample) for sample in data["samples"]] == [12, 12, 12]


def test_adapted_nats_are_those_of_windows_each_predicted_before_it_is_learned_from():
    encoded, network, params = draw_network()
    inputs, targets = text._cut(encoded.codes, 2)
    several = jax.tree.map(lambda leaf: leaf[None], params)
    got = adaptation.measure_adapted(network, several, inputs, targets, 0.3)

    def loss(params, state, part):
        state, logits = network.unroll(params, state, inputs[part])
        return text._mean_nats(logits, targets[part]), state

    state, total = None, 0.0
    for start in range(0, len(inputs), 20):
        part = slice(start, min(start + 20, len(inputs)))
        (nats, state), gradient = jax.value_and_grad(loss, has_aux=True)(params, state, part)
        norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient)))
        scale = 0.3 / max(norm, 1.0)
        params = jax.tree.map(lambda p, g, scale=scale: p - scale * g, params, gradient)
        total += float(nats) * (part.stop - part.start)
    assert float(got[0]) == pytest.approx(total / len(inputs), rel=1e-4)
    # The text repeats itself, which a network that learns as it goes makes use of.
    assert got[0] < text._test(network, several, inputs, targets)[0] - 0.1
    assert adaptation.choose_rate(network, several, inputs, targets) in adaptation.RATES


# Samples


def test_at_a_low_temperature_every_sample_takes_the_likeliest_character_each_time():
    encoded, network, params = draw_network()
    config = dataclasses.replace(CONFIG, temperature=1e-6)
    prompt = encoded.codes[:6]
    samples = text._sample(config, network, params, prompt, encoded.alphabet)
    codes = list(prompt)
    for _ in range(config.sample_size):
        codes.append(np.argmax(compute_logits(params, np.array(codes)[:, None])[-1, 0]))
    written = text._decode(encoded.alphabet, codes[len(prompt) :])
    assert samples == [written] * config.samples


def test_characters_are_sampled_as_often_as_the_softmax_at_the_temperature_says():
    encoded, network, params = draw_network()
    table, (*layers, readout) = params
    params = table, (*layers, readout._replace(w=4 * readout.w))
    config = dataclasses.replace(CONFIG, temperature=0.5, samples=4000, sample_size=1)
    prompt = encoded.codes[:6]
    samples = text._sample(config, network, params, prompt, encoded.alphabet)
    logits = compute_logits(params, prompt[:, None])[-1, 0]
    expected = np.exp(logits / 0.5) / np.exp(logits / 0.5).sum()
    drawn = [encoded.alphabet.index(sample) for sample in samples]
    got = np.bincount(drawn, minlength=len(expected)) / 4000
    tolerance = 5 * np.sqrt(expected / 4000) + 1e-3  # five standard errors
    assert (np.abs(got - expected) < tolerance).all()
    other = np.exp(logits) / np.exp(logits).sum()
    assert (np.abs(other - expected) > tolerance).any()  # the temperature can be told from 1


def test_words_of_three_letters_or_more_are_counted_and_looked_up():
    samples = ["The cat7sat_on zzz", "at CAT"]
    assert findings.count_words(samples, "the Cat sat on") == {"sampled": 5, "known": 4}


# The table

GOOD = {
    "text": {"name": "book"},
    "adapted": np.array([1.4, 1.5]),
    "wide": None,
    "network": {"test": np.array([1.5, 1.6]), "validation": np.array([1.5, 1.5])},
    "counts": {"unigram": 3.0, "order 1": 2.5, "order 2": 2.0},
    "words": {"sampled": 10, "known": 8},
}


@pytest.mark.parametrize(
    ("part", "name", "value", "refuted"),
    [
        ("words", "known", 8, set()),
        ("counts", "order 2", 1.54, {"counts"}),
        ("network", "test", np.array([1.5, 1.71]), {"target"}),
        ("words", "known", 7, {"words"}),
        ("words", "sampled", 11, {"words"}),
    ],
)
def test_a_finding_is_refuted_by_its_own_measurement_alone(part, name, value, refuted):
    data = GOOD | {part: GOOD[part] | {name: value}}
    assert {finding.name for finding in findings.judge(data) if not finding.holds} == refuted


def test_learning_as_it_goes_is_judged_by_its_gain_and_not_at_all_where_it_was_not_asked_for():
    for adapted, refuted in ((1.55, {"adapted"}), (1.5, set())):
        found = findings.judge(GOOD | {"adapted": np.array([adapted])})
        assert {finding.name for finding in found if not finding.holds} == refuted
    names = {finding.name for finding in findings.judge(GOOD | {"adapted": None})}
    assert names == {"counts", "target", "words"}


def test_a_sample_without_words_does_not_consist_of_words():
    data = GOOD | {"words": {"sampled": 0, "known": 0}}
    assert {finding.name for finding in findings.judge(data) if not finding.holds} == {"words"}
