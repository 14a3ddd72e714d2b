"""Language models from file to text: fixtures/language.gguf through the whole compiler and the
runtime."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compiler.driver import build as building
from compiler.driver import corpus, language
from compiler.driver.options import BuildOptions, LanguageOptions
from compiler.emit import bundle
from compiler.errors import CalibrationError, ModelError, OptionError
from compiler.frontends import decoder, open_source
from compiler.frontends.architecture import Weight
from compiler.frontends.rotate import rotate
from compiler.graph import HOST_REASON
from compiler.graph.reference import Reference
from compiler.partition import PartitionOptions
from compiler.runtime import HostThreads, RuntimeBundleError, Simulated
from compiler.runtime.language import LanguageModel
from compiler.runtime.sampling import Sampler, Sampling
from compiler.runtime.text import Text, TextError
from tests.conftest import LANGUAGE, Cli

MODEL = Path(__file__).parents[2] / "fixtures" / "language.gguf"
PROMPT = "The following statement"
SETTINGS = LANGUAGE


@pytest.fixture
def host(language_bundle: Path) -> Path:
    return language_bundle


@pytest.fixture(scope="module")
def tpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tpu") / "b"
    language.build(
        MODEL, path, BuildOptions(partitioning=PartitionOptions(place="tpu"), language=SETTINGS)
    )
    return path


def float_greedy(tokens: list[int], count: int) -> list[int]:
    form = decoder.ProgramShape(1, 64, 64, all_logits=True)
    model = decoder.write(open_source(MODEL), form)
    text = list(tokens)
    with Reference(model) as reference:
        for _ in range(count):
            row = np.zeros(64, np.int64)
            row[: len(text)] = text
            logits = reference.run(decoder.sample(model.graph, row, form), ["logits"])["logits"]
            text.append(int(np.argmax(logits[0, len(text) - 1])))
    return text[len(tokens) :]


@pytest.mark.slow
def test_edge_tpus_and_several_host_workers_give_the_same_text(tpu: Path) -> None:
    loaded = bundle.load(tpu)
    tokens = Text(loaded).encode(PROMPT)
    want = list(LanguageModel(loaded).generate(tokens, 12, Sampling()))
    devices = [Simulated(f"sim:{number}", 0) for number in range(2)]
    model = LanguageModel(loaded, HostThreads(2, workers=2), devices=devices)
    assert list(model.generate(tokens, 12, Sampling())) == want


@pytest.mark.slow
@pytest.mark.parametrize("place", ["host", "tpu"])
def test_quality_and_text(place: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(place)
    loaded = bundle.load(path)
    quality = loaded.manifest["quality"]["perplexity"]
    assert 0.97 < quality["ratio"] < 1.05 and quality["tokens"] >= 300
    assert 0 < quality["divergence"] < 0.02 and 0 < quality["ratio_error"] < 0.02
    weights = loaded.manifest["language"]["decode_weights"]
    assert (weights is None) == (place == "tpu")
    assert weights is None or (weights["kind"], weights["rounded"]) == ("file", 0)
    devices = {s["device"] for s in loaded.manifest["segments"]}
    assert devices == ({"host"} if place == "host" else {"host", "tpu"})
    text, model = Text(loaded), LanguageModel(loaded)
    tokens = text.encode(PROMPT)
    got = list(model.generate(tokens, 16, Sampling()))
    assert got == float_greedy(tokens, 16)
    assert text.decode(got).split()[0].isalpha()


def test_a_rotated_stream_computes_the_same() -> None:
    """With gains and biases other than those of the fixture, which has none."""
    source, rng, form = (
        open_source(MODEL),
        np.random.default_rng(0),
        decoder.ProgramShape(1, 16, 16, all_logits=True),
    )

    def drawn(*shape: int) -> Weight:
        array = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        return Weight(shape, lambda rows: array[rows])

    gains = {name: drawn(*w.shape) for name, w in source.weights.items() if "norm" in name}
    biased = {
        name: w for name, w in source.weights.items() if "attn_v." in name or "ffn_down." in name
    }
    biases = {name.replace("weight", "bias"): drawn(w.shape[0]) for name, w in biased.items()}
    source = replace(source, weights={**source.weights, **gains, **biases})
    rotated = rotate(source)
    assert all(np.ptp(rotated.weights[name].array()) == 0 for name in gains)
    found = []
    for each in (source, rotated):
        model = decoder.write(each, form)
        with Reference(model) as reference:
            found.append(
                reference.run(decoder.sample(model.graph, np.arange(20, 36), form), ["logits"])[
                    "logits"
                ]
            )
    np.testing.assert_allclose(
        *found, rtol=0, atol=1e-3 * np.abs(found[0]).max()
    )  # embeddings are float16


@pytest.mark.slow
def test_a_rotated_stream_leaves_one_rotation_to_each_layer(tmp_path: Path) -> None:
    source = open_source(MODEL)
    counts = []
    for also in (frozenset(), frozenset({"rotate_stream"})):
        changed, options = language.rotated(source, BuildOptions(also=also))
        model = building.rewrite(decoder.write(changed, decoder.ProgramShape(1, 16, 16)), options)
        counts.append(sum("rotates" in n.metadata_props.get(HOST_REASON, "") for n in model.graph))
    layers = source.architecture.layers
    assert counts == [4 * layers + 1, layers]
    options = BuildOptions(
        partitioning=PartitionOptions(place="host"),
        also=frozenset({"rotate_stream"}),
        language=SETTINGS,
    )
    quality = language.build(MODEL, tmp_path / "b", options)["quality"]["perplexity"]
    assert 0.97 < quality["ratio"] < 1.05
    gemma = replace(
        source,
        weights={
            **source.weights,
            "blk.0.post_ffw_norm.weight": source.weights["output_norm.weight"],
        },
    )
    with pytest.raises(OptionError, match="behind this model's blocks have gains"):
        rotate(gemma)


def test_a_known_beginning_is_kept_and_changes_nothing(host: Path) -> None:
    model = LanguageModel(bundle.load(host))
    slot, tokens = model.slots[0], list(range(10, 90))
    whole = model.prefill(slot, tokens).copy()
    assert model.kept(slot, tokens) == 79
    again = model.prefill(slot, tokens)
    np.testing.assert_allclose(again, whole, rtol=0, atol=2e-3 * np.abs(whole).max())
    other = [*tokens[:50], 7, 8, 9]
    assert model.kept(slot, other) == 50
    kept = model.prefill(slot, other).copy()
    slot.tokens.clear()
    np.testing.assert_allclose(
        model.prefill(slot, other), kept, rtol=0, atol=2e-3 * np.abs(kept).max()
    )


def test_slots_do_not_mix(host: Path) -> None:
    many, one = LanguageModel(bundle.load(host), slots=3), LanguageModel(bundle.load(host))
    texts = {0: list(range(20, 60)), 2: list(range(300, 370))}
    wanted = {}
    for index, tokens in texts.items():
        one.slots[0].tokens.clear()
        one.prefill(one.slots[0], tokens)
        wanted[index] = [one.decode({0: t})[0].copy() for t in (5, 6, 7)]
        many.prefill(many.slots[index], tokens)
    for step, token in enumerate((5, 6, 7)):
        got = many.decode({0: token, 2: token})
        for index, logits in got.items():
            want = wanted[index][step]  # of another program, which rounds rows in its own way
            assert np.argmax(logits) == np.argmax(want)
            assert logits @ want > 0.9995 * np.linalg.norm(logits) * np.linalg.norm(want)


def test_a_slot_takes_the_beginning_of_a_text_from_another(host: Path) -> None:
    model = LanguageModel(bundle.load(host), slots=3)
    first, second, third = model.slots
    common = list(range(20, 60))
    wanted = model.prefill(third, [*common, 7, 8, 9]).copy()
    third.tokens.clear()
    model.prefill(first, [*common, 300, 301])
    assert model.adopt(second, [*common, 7, 8, 9]) == len(common) == len(second.tokens)
    found = model.prefill(second, [*common, 7, 8, 9])
    # Chunks begin at other places, which rounds otherwise.
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3 * np.abs(wanted).max())
    assert first.tokens == [*common, 300, 301]
    # Too little to be worth a copy; and what is there already.
    assert model.adopt(third, [20, 21, 22, 5]) == 0 and third.tokens == []
    assert model.adopt(first, [*common, 300, 5]) == len(common) + 1


def test_the_context_ends_a_text(host: Path) -> None:
    model = LanguageModel(bundle.load(host))
    made = list(model.generate(list(range(5, 195)), 100, Sampling(temperature=1.0, seed=1)))
    assert len(made) <= 11
    with pytest.raises(ValueError, match="do not fit the context"):
        model.prefill(model.slots[0], [1] * 201)
    with pytest.raises(RuntimeBundleError, match="not for 5"):
        LanguageModel(bundle.load(host), slots=5)


def test_weights_are_stored_once(host: Path, tpu: Path) -> None:
    parameters = sum(
        int(np.prod(t.shape)) for t in open_source(MODEL).weights.values() if len(t.shape) == 2
    )
    embedding = 2 * 2048 * 192
    for path in (host, tpu):
        graphs = sum(f.stat().st_size for f in (path / "segments").glob("*.onnx"))
        stored = sum(f.stat().st_size for f in (path / "segments").iterdir()) - graphs
        # On the host, rows for prefill and blocks for decode. TFLite files hold weights of their
        # own, one for each program on the Edge TPU.
        forms = 2 if path == host else 3
        assert stored < forms * (parameters + 400_000) + embedding


def test_streaming_holds_back_what_may_become_a_stop(host: Path) -> None:
    text = Text(bundle.load(host))
    tokens = text.encode("one two three — four")
    assert "".join(text.stream(tokens)) == "one two three — four"
    assert "".join(text.stream(tokens, ["three"])) == "one two "
    assert all("\ufffd" not in part for part in text.stream(tokens))


def test_conversations_and_hostile_templates(host: Path, tmp_path: Path) -> None:
    loaded = bundle.load(host)
    text = Text(loaded)
    assert text.decode(text.conversation([{"role": "user", "content": "Hello"}])) == "Hello\n"
    settings = loaded.manifest["language"]["tokenizer"]
    for template in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{% for"):
        settings["chat_template"] = template
        with pytest.raises(TextError, match="cannot be rendered"):
            text.conversation([{"role": "user", "content": "x"}])
    settings["chat_template"] = None
    with pytest.raises(TextError, match="no chat template"):
        text.conversation([])


def test_sampling() -> None:
    logits = np.array([0.0, 3.0, 2.0, -1.0])
    assert Sampler(Sampling()).next(logits, []) == 1
    assert Sampler(Sampling(repetition_penalty=2.0)).next(logits, [1]) == 2
    for how in (Sampling(1.0, top_k=1), Sampling(1.0, top_p=0.1), Sampling(1.0, min_p=0.9)):
        assert {Sampler(how).next(logits, []) for _ in range(20)} == {1}
    drawn = [Sampler(Sampling(1.0, seed=s)).next(logits, []) for s in range(200)]
    assert set(drawn) == {0, 1, 2, 3} or set(drawn) == {0, 1, 2}
    assert drawn == [Sampler(Sampling(1.0, seed=s)).next(logits, []) for s in range(200)]
    with pytest.raises(ValueError, match="top_p is 2"):
        Sampling(top_p=2)


def test_commands(host: Path, tmp_path: Path, run_cli: Cli) -> None:
    code, out, err = run_cli("generate", host, PROMPT, "-n", "8", "--stats")
    assert code == 0 and len(out.split()) > 3 and "tokens/s" in err
    assert run_cli("generate", host, PROMPT, "--temperature", "-1")[0] == 2
    code, _, err = run_cli("generate", host, PROMPT, "-n", "999999", "--stop", " ")
    assert code == 0 and "--tokens 999999: prompt and answer together end at" in err
    code, out, _ = run_cli("inspect", host)
    assert code == 0 and "Perplexity" in out
    _, out, _ = run_cli("plan", MODEL, "--context", "128", "--chunk", "32", "--json")
    rows = json.loads(out)
    assert {(r["program"], r["place"]) for r in rows} == {
        (p, w) for p in ("prefill", "decode") for w in ("tpu", "host", "auto")
    }
    code, _, err = run_cli("build", MODEL, "-o", tmp_path / "x", "--dim", "a=1")
    assert code == 2 and "is for .onnx files" in err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("keep", "message"), [(100, "not a GGUF file"), (900_000, "do not fit the file")]
)
def test_truncated_gguf(keep: int, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(MODEL.read_bytes()[:keep])
    with pytest.raises(ModelError, match=message):
        open_source(tmp_path / "m.gguf")


def test_options_and_texts_that_do_not_fit(tmp_path: Path) -> None:
    source = open_source(MODEL)
    with pytest.raises(OptionError, match="512 tokens at most"):
        language.fitted(LanguageOptions(context=4096), source)
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(CalibrationError, match="give at least"):
        corpus.calibration_rows(source, short, SETTINGS)


def test_hugging_face_folder_computes_the_same(tmp_path: Path) -> None:
    source = open_source(MODEL)
    huggingface(source, tmp_path)
    other = open_source(tmp_path)
    form = decoder.ProgramShape(1, 16, 16, all_logits=True)
    row = np.arange(40, 56)
    found = []
    for each in (source, other):
        model = decoder.write(each, form)
        with Reference(model) as reference:
            found.append(
                reference.run(decoder.sample(model.graph, row, form), ["logits"])["logits"]
            )
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-3)
    assert corpus.encode(other, PROMPT) == corpus.encode(source, PROMPT)
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "whole")
    for damage in (b"\xff" * 8, (1 << 40).to_bytes(8, "little"), b""):
        (tmp_path / "model.safetensors").write_bytes(
            damage + (tmp_path / "whole").read_bytes()[8 : 8 + len(damage) * 100]
        )
        with pytest.raises(ModelError, match="safetensors"):
            open_source(tmp_path)


def huggingface(source: decoder.Source, folder: Path) -> None:
    """The model as a Hugging Face folder, whose rotary embedding turns halves."""
    a = source.architecture
    config = {
        "model_type": "llama",
        "vocab_size": a.vocabulary,
        "hidden_size": a.width,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "intermediate_size": a.hidden,
        "rms_norm_eps": a.epsilon,
        "rope_theta": a.bases[0],
        "max_position_embeddings": a.context,
        "eos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(source.tokenizer.definition)
    names = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    header, data = {}, b""
    for name, weight in source.weights.items():
        array = weight.array()
        if "attn_q." in name or "attn_k." in name:
            array = (
                array.reshape(-1, a.head // 2, 2, a.width)
                .transpose(0, 2, 1, 3)
                .reshape(array.shape)
            )
        parts = name.split(".")
        if parts[0] == "blk":
            full = f"model.layers.{parts[1]}.{names[parts[2]]}.weight"
        else:
            full = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[
                parts[0]
            ] + ".weight"
        header[full] = {
            "dtype": "F32",
            "shape": array.shape,
            "data_offsets": [len(data), len(data) + array.nbytes],
        }
        data += np.ascontiguousarray(array, np.float32).tobytes()
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


EXPORTS = Path(__file__).parents[2] / "fixtures" / "exports"


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["optimum", "genai", "torch"])
def test_exported_decoders_build_and_write(exporter: str, tmp_path: Path, run_cli: Cli) -> None:
    """Reading compares each with the export itself on onnxruntime; here they go on to text."""
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    folder = EXPORTS / exporter
    source = folder if exporter == "optimum" else folder / "model.onnx"
    options = (
        "--context",
        "64",
        "--chunk",
        "16",
        "--slots",
        "1",
        "--calibration",
        text,
        "--place",
        "tpu",
    )
    code, _, err = run_cli("build", source, "-o", tmp_path / "b", *options)
    assert code == 0, err
    quality = bundle.load(tmp_path / "b").manifest["quality"]["perplexity"]
    assert 0.5 < quality["ratio"] < 2
    code, out, _ = run_cli("generate", tmp_path / "b", "The quick", "-n", "4")
    assert code == 0 and out.strip()


def test_an_export_that_computes_otherwise_is_refused(tmp_path: Path) -> None:
    shutil.copytree(EXPORTS / "optimum", tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    for change in ({"rope_theta": 77.0}, {"rms_norm_eps": 0.3}):
        (tmp_path / "m" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match="something else than its configuration"):
            open_source(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"num_attention_heads": 3}))
    with pytest.raises(ModelError, match=r"cannot share|multiples of 16|are \["):
        open_source(tmp_path / "m")


_MEASURE = """
import sys
from pathlib import Path
from compiler.runtime import Bundle
from compiler.runtime.language import LanguageModel
from compiler.runtime.sampling import Sampling
def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
bundle = Bundle.open(sys.argv[1])
import onnxruntime
before = resident()
model = LanguageModel(bundle)
print(list(model.generate([5, 6, 7, 8], 6, Sampling())), resident() - before)
"""


@pytest.mark.slow
def test_a_bundle_runs_in_less_memory_than_its_weights(tmp_path: Path) -> None:
    """The same tokens, with far less memory, of a model of 34 million weights; the rest of memory
    is measured too."""
    (tmp_path / "m").mkdir()
    huggingface(random_source(width=640, layers=8, hidden=1536), tmp_path / "m")
    found = {}
    for limit in (None, 16):
        settings = LanguageOptions(context=192, chunk=128, slots=1, max_ram=limit)
        path = tmp_path / f"b{limit}"
        language.build(
            tmp_path / "m",
            path,
            BuildOptions(partitioning=PartitionOptions(place="host"), language=settings),
        )
        made = subprocess.run(
            [sys.executable, "-c", _MEASURE, path], capture_output=True, text=True, check=True
        )
        tokens, _, kilobytes = made.stdout.strip().rpartition(" ")
        found[limit] = tokens, int(kilobytes)
        segments = bundle.load(path).manifest["language"]["programs"]["decode"]["segments"]
        assert (len(segments) == 1) == (limit is None)
    weights = sum(int(np.prod(w.shape)) for w in open_source(tmp_path / "m").weights.values())
    assert found[16][0] == found[None][0]
    assert found[16][1] < found[None][1] - weights / 1000
    assert weights > 31 << 20


def random_source(width: int, layers: int, hidden: int) -> decoder.Source:
    """A model of random weights with the tokenizer of fixtures/language.gguf."""
    source = open_source(MODEL)
    sizes = {
        "width": width,
        "layers": layers,
        "hidden": hidden,
        "heads": width // 64,
        "kv_heads": 2,
    }
    each = {"bases": (10000.0,) * layers, "windows": (0,) * layers}
    a = replace(source.architecture, **sizes, **each, head=64, rotary=64)  # type: ignore[arg-type]
    shapes = {
        "attn_q": (width, width),
        "attn_k": (128, width),
        "attn_v": (128, width),
        "attn_output": (width, width),
        "ffn_gate": (hidden, width),
        "ffn_up": (hidden, width),
        "ffn_down": (width, hidden),
        "attn_norm": (width,),
        "ffn_norm": (width,),
    }
    every = {f"blk.{i}.{n}": s for i in range(layers) for n, s in shapes.items()}
    every |= {"token_embd": (a.vocabulary, width), "output_norm": (width,)}
    rng = np.random.default_rng(0)
    arrays = {
        n: (rng.standard_normal(s) / np.sqrt(s[-1])).astype(np.float32) for n, s in every.items()
    }
    weights = {f"{n}.weight": Weight(array.shape, array.__getitem__) for n, array in arrays.items()}
    return replace(source, architecture=a, weights=weights)
