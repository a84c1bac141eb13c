"""The codec: any bytes come back, whatever the model; what is damaged, newer or of another model is refused."""

import functools
import json
import lzma
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import codec_plan, codec_speed
from crate_jax import InputError, models
from crate_jax.compression import codec, container, lanes, portable, predictors, quantise, rans
from crate_jax.compression.lanes import Lanes
from crate_jax.compression.predictors import Float

WINDOW, CONTEXT = 16, 6
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def small_model(family: str, vocab_size: int = 256, **changes):
    """A model with an opinion: its head is large, so that what it draws takes about half of the bits."""
    shared = {"vocab_size": vocab_size, "num_positions": WINDOW, "dim": 16, "depth": 1, "heads": 2, **changes}
    config = (
        models.CRATEGPTConfig(**shared, head_dim=8) if family == "crate_gpt" else models.IGPTConfig(**shared)
    )
    model = models.create(config)
    params = jax.jit(model.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    table = rng.normal(size=params["token_embedding"].shape).astype(np.float32)
    head = rng.normal(size=(16, vocab_size)).astype(np.float32)
    return model, {**params, "token_embedding": table, "head": {"kernel": head}}


def portable_of(model, params, context: int = CONTEXT):
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (4, WINDOW), dtype=np.int32)
    return portable.load(quantise.quantise(model, params, tokens, context))


@pytest.fixture(scope="module")
def integer_model():
    return portable_of(*small_model("crate_gpt"))


@pytest.fixture(scope="module")
def float_model():
    return Float(*small_model("crate_gpt"), CONTEXT)


@functools.lru_cache
def drawn(predictor, count: int, seed: int = 0) -> bytes:
    """The bytes of so many symbols that the model expects: those whose code is noise."""
    noise = np.random.default_rng(seed).bytes(4 * count + 4)
    symbols, _ = Lanes(predictor, 1, CONTEXT).decode([noise], [count])
    return symbols[0].astype(np.uint8 if predictor.vocab_size <= 256 else "<u2").tobytes()


@pytest.fixture(scope="module")
def likely(integer_model) -> bytes:
    """What the two models above expect."""
    return drawn(integer_model, 2000)


def logits_of(predictor, tokens: np.ndarray) -> np.ndarray:
    """log₂ p of every symbol at every position of tokens `[b, n]`, by the predictor's frequencies."""
    decode = jax.jit(lambda params, *state: predictor.decoder(params)(*state))
    cache, previous, found = predictor.init_cache(len(tokens)), tokens[:, 0], []
    for position in range(tokens.shape[1]):
        sizes, cache = decode(predictor.params, previous, cache, np.int32(position))
        previous = tokens[:, position]
        found.append(np.asarray(sizes, np.int64))
    sizes = np.stack(found, 1)
    assert sizes.min() >= 1 and (sizes.sum(-1) == rans.TOTAL).all()
    return np.log2(sizes / rans.TOTAL)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("crate_gpt", {"depth": 2}),
        ("igpt", {"use_bias": True}),
        slow("crate_gpt", {"learn_steps": True, "output": "tied", "update": "negative"}),
        slow("crate_gpt", {"ista": "orthogonal", "output": "identity"}),
        slow("igpt", {"depth": 2}),
    ],
)
def test_integers_say_what_the_model_says(family, changes):
    model, params = small_model(family, **changes)
    tokens = np.random.default_rng(1).integers(0, 256, (4, WINDOW), dtype=np.int32)
    logits = np.asarray(jax.jit(model.apply)(params, tokens)[0], np.float64)
    exact = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    entropy = -(np.exp(exact) * exact).sum(-1).mean() / np.log(2)
    assert 1 < entropy < 6
    # At least one slot for each symbol takes them from the others.
    rounding = 2 * 256 / rans.TOTAL
    for predictor, most in (
        (Float(model, params, 0), rounding),
        (portable_of(model, params), 2e-3 * entropy),
    ):
        excess = (np.exp(exact) * (exact / np.log(2) - logits_of(predictor, tokens))).sum(-1)
        assert excess.mean() < most


def test_the_code_is_as_long_as_the_model_says(float_model, likely):
    model, params = small_model("crate_gpt")
    encoded = codec.encode(likely, float_model, chunk=500, lanes=4)
    assert [kind for kind, _, _ in encoded.chunks] == ["model"] * 4
    # The parallel forward pass over the same windows.
    log_probabilities = jax.jit(lambda *inputs: jax.nn.log_softmax(model.apply(*inputs)[0]))
    tokens, bits = np.frombuffer(likely, np.uint8).reshape(4, 500).astype(np.int32), 0.0
    for first, begin, end in Lanes(float_model, 4, CONTEXT)._windows(500):
        seen = log_probabilities(params, tokens[:, first:end])
        chosen = np.take_along_axis(seen, tokens[:, first:end, None], -1)
        bits -= chosen[:, begin - first :].sum() / np.log(2)
    payload = sum(length for _, _, length in encoded.chunks)
    assert bits / 8 <= payload <= 1.005 * bits / 8 + 8 * 4


@given(st.one_of(st.binary(max_size=70), st.integers(0, 70)))
@settings(max_examples=40, deadline=None)
def test_any_bytes_come_back(integer_model, likely, data):
    data = likely[:data] if isinstance(data, int) else data
    encoded = codec.encode(data, integer_model, chunk=24, lanes=1).data
    assert codec.decode(encoded, integer_model) == data


@pytest.mark.parametrize("numerics", ["integer_model", "float_model"])
@pytest.mark.parametrize(
    "count",
    [0, 1, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW - CONTEXT, 2 * WINDOW - CONTEXT + 1, 500],
)
def test_every_length_comes_back(numerics, count, likely, request):
    predictor, data = request.getfixturevalue(numerics), likely[:count]
    encoded = codec.encode(data, predictor, chunk=200, lanes=4)
    assert codec.decode(encoded.data, predictor) == data
    if count == 500:
        assert [kind for kind, _, _ in encoded.chunks] == ["model"] * 3


@pytest.mark.slow
def test_integers_decode_in_any_number_of_lanes_and_chunk_by_chunk(integer_model, likely):
    data = likely[:1000]
    encoded = codec.encode(data, integer_model, chunk=150, lanes=4).data
    assert codec.decode(encoded, integer_model) == codec.decode(encoded, integer_model, lanes=1) == data
    for number in (0, 4, 6):
        part = codec.decode(encoded, integer_model, chunks=[number])
        assert part == data[150 * number : 150 * (number + 1)]
    assert codec.decode(encoded, integer_model, chunks=[1, 2]) == data[150:450]


def test_floats_keep_their_lanes(float_model, likely):
    data = likely[:1000]
    encoded = codec.encode(data, float_model, chunk=150, lanes=4).data
    assert codec.decode(encoded, float_model, chunks=[5]) == data[750:900]
    with pytest.raises(
        InputError, match="--lanes: found 2; accepted for a code in floating-point numbers: 4"
    ):
        codec.decode(encoded, float_model, lanes=2)


@pytest.mark.slow
def test_what_the_model_cannot_code_is_stored():
    model, params = small_model("crate_gpt", vocab_size=17)
    predictor = portable_of(model, params)
    noise = np.random.default_rng(0).bytes(300)
    data = drawn(predictor, 300) + noise + b"\x80" * 300
    encoded = codec.encode(data, predictor, chunk=300, lanes=2)
    assert [kind for kind, _, _ in encoded.chunks] == ["model", "raw", "lzma"]
    assert codec.decode(encoded.data, predictor) == data


@pytest.mark.slow
def test_two_bytes_a_symbol():
    model, params = small_model("igpt", vocab_size=300)
    predictor = portable_of(model, params)
    data = drawn(predictor, 150) + b"\x00"  # One byte is left over.
    encoded = codec.encode(data, predictor, chunk=300, lanes=1)
    assert [kind for kind, _, _ in encoded.chunks] == ["model", "raw"]
    assert codec.decode(encoded.data, predictor) == data


@pytest.mark.parametrize("kind", ["npy", "ppm"])
def test_pixels_begin_at_a_window(kind, integer_model, likely, tmp_path):
    images = np.frombuffer(likely[: 4 * WINDOW], np.uint8).reshape(4, 4, 4)
    if kind == "npy":
        np.save(tmp_path / "images.npy", images)
        data, lead = (tmp_path / "images.npy").read_bytes(), 128
    else:
        front = b"P5\n# grey\n4 16\n255\n"
        data, lead = front + images.tobytes(), len(front)
    encoded = codec.encode(data, integer_model, chunk=20, lanes=1, context=0)
    assert container.read(encoded.data, "")[0].sizes == [lead, 2 * WINDOW, 2 * WINDOW]
    assert codec.decode(encoded.data, integer_model) == data


def test_noise_hardly_grows(integer_model):
    for size in (0, 1, 4 * codec.MIN_CHUNK):
        data = np.random.default_rng(0).bytes(size)
        encoded = codec.encode(data, integer_model, chunk=codec.MIN_CHUNK, lanes=4)
        assert len(encoded.data) <= 1.001 * size + 512


def test_a_flipped_byte_and_a_cut_file_are_refused(integer_model, likely):
    data = likely[:60] + bytes(60) + np.random.default_rng(0).bytes(60)
    encoded = codec.encode(data, integer_model, chunk=60, lanes=4)
    assert {kind for kind, _, _ in encoded.chunks} == {"model", "lzma", "raw"}
    for place in range(len(encoded.data)):
        for flip in (1, 128):
            broken = bytearray(encoded.data)
            broken[place] ^= flip
            with pytest.raises(InputError):
                container.read(bytes(broken), "it")
        with pytest.raises(InputError):
            container.read(encoded.data[:place], "it")
    with pytest.raises(InputError, match="damaged or cut short"):
        container.read(encoded.data + b"\0", "it")


def test_a_wrong_code_with_right_sums_is_refused(integer_model, likely):
    """The last line of defence: the payload was changed and its CRC with it."""
    data = likely[:200]
    header, chunks = container.read(codec.encode(data, integer_model, chunk=100, lanes=1).data, "")
    for payload in (chunks[0].payload[:-1], chunks[0].payload + b"\0", chunks[0].payload[::-1]):
        broken = container.write(header, [container.Chunk("model", payload), chunks[1]])
        with pytest.raises(InputError, match="decodes to something else"):
            codec.decode(broken, integer_model)
    swapped = container.write(header, chunks[::-1])
    with pytest.raises(InputError, match="decodes to something else"):
        codec.decode(swapped, integer_model)
    torn = container.write(header, [container.Chunk("lzma", b"\xff\xff"), chunks[1]])
    with pytest.raises(InputError, match="decodes to something else"):
        codec.decode(torn, integer_model)


def test_the_wrong_model_is_named(integer_model, float_model, likely):
    encoded = codec.encode(likely[:100], integer_model, lanes=1).data
    with pytest.raises(InputError, match=r"--model: found one with SHA-256 .* the model file with"):
        codec.decode(encoded, float_model, "x.crate")
    model, params = small_model("crate_gpt")
    other = {**params, "token_embedding": params["token_embedding"] + np.float32(1e-3)}
    assert Float(model, other, CONTEXT).digest != float_model.digest
    assert portable_of(model, other).digest != integer_model.digest


def test_another_machine_is_named(float_model, likely):
    encoded = codec.encode(likely[:100], float_model, lanes=1).data
    # What resolves to another type of numbers there has another digest, too.
    elsewhere = Float(*small_model("crate_gpt", dtype="bfloat16"), CONTEXT)
    assert elsewhere.digest != float_model.digest
    elsewhere.environment = json.dumps({**json.loads(float_model.environment), "jax": "0.0.1"})
    with pytest.raises(InputError, match=f"jax {jax.__version__} there, 0.0.1 here"):
        codec.decode(encoded, elsewhere)


def test_a_machine_with_an_accelerator_is_known_by_its_libraries(monkeypatch):
    client = types.SimpleNamespace(platform_version="PJRT C API\ncuda 13000")
    device = types.SimpleNamespace(device_kind="H100", platform="gpu", client=client)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    found = json.loads(predictors.environment())
    assert (
        found["device"] == "H100" and found["runtime"] == "PJRT C API cuda 13000" and "threads" not in found
    )


def test_a_newer_format_is_named(integer_model):
    encoded = bytearray(codec.encode(b"abc", integer_model).data)
    encoded[len(container.MAGIC)] = container.VERSION + 1
    with pytest.raises(
        InputError, match=f"has format {container.VERSION + 1}; accepted: up to {container.VERSION}"
    ):
        codec.decode(bytes(encoded), integer_model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ista": "unrolled"}, "model.ista: found 'unrolled'; accepted in integers: released, orthogonal"),
        ({"attention": "linear"}, "model.attention: found 'linear'"),
        ({"causal": False}, "accepted: a causal token model"),
        ({"vocab_size": 1025}, "model.vocab_size: found 1025; accepted in integers: at most 1024"),
    ],
)
def test_models_without_integers_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        quantise.check(models.CRATEGPTConfig(**changes))


def test_a_newer_model_file_is_named(tmp_path):
    about = {"format": portable.FORMAT, "version": portable.VERSION + 1}
    np.savez(tmp_path / "x.npz", description=np.frombuffer(json.dumps(about).encode(), np.uint8))
    with pytest.raises(InputError, match="x has version 2; accepted: 1"):
        portable.load((tmp_path / "x.npz").read_bytes(), "x")


def test_a_model_file_that_is_none(integer_model, tmp_path):
    for data in (b"", b"PK\x03\x04", b"\0" * 100):
        with pytest.raises(InputError, match="x is no portable model"):
            portable.load(data, "x")
    np.savez(tmp_path / "x.npz", a=1)
    with pytest.raises(InputError, match="no portable model"):
        portable.load(Path(tmp_path / "x.npz").read_bytes())


def test_lzma_of_all_at_once_where_chunks_hide_a_repetition(integer_model):
    block = np.random.default_rng(0).bytes(600)
    data = block * 6
    encoded = codec.encode(data, integer_model, chunk=600, lanes=2)
    assert [kind for kind, _, _ in encoded.chunks] == ["lzma"]
    assert len(encoded.data) < 2 * len(block)
    assert codec.decode(encoded.data, integer_model) == data


@pytest.mark.parametrize("length", [1, 100, 4096, 20_000])
def test_lzma_of_a_chunk_is_what_the_whole_dictionary_gives(length):
    data = " ".join(str(number * number) for number in range(4000)).encode()[:length]
    preset = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    whole = lzma.compress(data, format=lzma.FORMAT_RAW, filters=preset)
    chunk = codec._without_model(data)
    assert chunk.payload == (whole if len(whole) < length else data)
    assert codec._unpacked(chunk) == data


def test_a_step_of_the_loop_reads_every_parameter(float_model):
    """What predicts the speed on a card that is not here."""
    window, count = float_model.num_positions, 4
    given, data = np.zeros((count, window), np.int32), np.zeros((count, 3 * window), np.uint8)
    reader = rans.open_lanes([], count)
    arguments = float_model.params, given, np.int32(0), np.int32(window), given[:, 0], reader, data
    text = lanes._compile(float_model, count).lower(*arguments).compile().as_text()
    runs, sizes = codec_plan.per_step(text, window)
    read = [float_model.params[name] for name in ("blocks", "head")]
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(read))
    assert parameters < sum(sizes.values()) < 10 * parameters
    assert 5 < sum(runs.values()) < 500


def test_a_text_to_measure_speed_on_is_repeated_up_to_its_size(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"two")
    (tmp_path / "a.txt").write_bytes(b"one ")
    (tmp_path / "c.py").write_bytes(b"no")
    assert codec_speed.text(tmp_path, 16) == b"one twoone twoon"
    with pytest.raises(SystemExit, match=r"--text: no \.txt file with anything in it"):
        codec_speed.text(tmp_path / "nowhere", 16)
