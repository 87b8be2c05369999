"""What is read out of a cache is what the layers made; the probe tells real sizes and leaves the model alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    EncoderDecoderCache,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    StaticCache,
)

import kava
import zoo
from kava.align import Aggregator, KVDimensionProjector, flatten_heads
from kava.backbone import quantize
from kava.backbone.attention import NAME
from kava.backbone.extractor import create_kv_extractor, probe, read_cache, structure
from kava.backbone.quantize import compute_dtype, quantization_config
from kava.errors import ConfigError, ModelError

IDS = torch.arange(8, 20).reshape(2, 6)
PAIRS = {  # layers, query heads, hidden size, KV heads x head size, width of a concat
    "teacher": (28, 12, 1536, (2, 128), 7168),
    "student": (24, 14, 896, (2, 64), 3072),
}


def qwen(layers: int, heads: int, hidden: int, dtype: torch.dtype = torch.bfloat16):
    """The cache shape of a published model, with a narrow MLP and few words; memory as it comes, no weights drawn."""
    config = Qwen2Config(
        vocab_size=512, hidden_size=hidden, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=2,
    )  # fmt: skip
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    model = model.to(dtype).to_empty(device="cpu").eval()
    with torch.no_grad():
        for weight in (*model.parameters(), *model.buffers()):
            weight.fill_(0.01)
    return model


def tiny(**changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    settings = {
        "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()


# the numbers of the guides


@pytest.mark.parametrize("name", PAIRS)
def test_probe_of_the_documented_pair(name: str) -> None:
    layers, heads, hidden, (kv_heads, size), total = PAIRS[name]
    model = qwen(layers, heads, hidden)
    report = probe(model)
    assert report.text(name) == "\n".join(
        (
            f"[KV Structure Analysis] ({name}):",
            f"   num_layers: {layers}",
            "   batch_size: 1",
            f"   num_heads: {kv_heads}",
            "   seq_length: 32",
            f"   head_dim: {size}",
            f"   layer_dim: {kv_heads * size}",
            f"   total_dim: {total}",
            "   dtype: torch.bfloat16",
            "   device: cpu",
            "   layers_consistent: True",
            "",
            f"   Config dimension: {hidden}",
            f"   Detected dimension: {total}",
            f"   [WARNING]  Dimension mismatch! Using detected: {total}",
        )
    )
    with torch.no_grad():
        past = model(IDS, use_cache=True).past_key_values
    for method, whole, width in (
        ("concat", True, total), ("mean", True, kv_heads * size), ("weighted", True, kv_heads * size),
        ("concat", False, kv_heads * size),
    ):  # fmt: skip
        kv = kava.create_kv_extractor(aggregation_method=method, use_all_layers=whole).extract_kv(past, name)
        assert kv.keys.shape == kv.values.shape == kv.shape == (2, 6, width)


def test_a_projector_from_probed_sizes() -> None:
    teacher, student = (
        probe(tiny(hidden_size=32, head_dim=16, num_hidden_layers=4)),
        probe(tiny()),
    )
    projector = KVDimensionProjector({"teacher": {"d_model": teacher.total_dim}}, student.total_dim)
    kv = create_kv_extractor().extract_kv(tiny(hidden_size=32, head_dim=16, num_hidden_layers=4)(IDS).past_key_values)
    keys, values = projector(*kv)
    assert keys.shape == values.shape == (2, 6, student.total_dim) == (2, 6, 3 * 2 * 6)


# what is read


def test_values_are_what_the_layers_projected() -> None:
    model = tiny().double()
    made: list[Tensor] = []
    for layer in model.model.layers:
        layer.self_attn.v_proj.register_forward_hook(lambda _module, _inputs, out: made.append(out))
    past = model(IDS, use_cache=True).past_key_values
    kv = create_kv_extractor().extract_kv(past)
    torch.testing.assert_close(kv.values, torch.cat(made, dim=-1), rtol=0, atol=0)
    wanted = torch.cat([flatten_heads(layer.keys) for layer in past.layers], dim=-1)
    assert torch.equal(kv.keys, wanted)
    assert not torch.equal(kv.keys, kv.values)


def test_gradients_pass_through_keys_and_values_to_every_layer() -> None:
    for part in range(2):
        model = tiny()
        extractor = create_kv_extractor("weighted")
        extractor.extract_kv(model(IDS, use_cache=True).past_key_values, "a.student")[part].square().sum().backward()
        for layer in model.model.layers:
            weight = (layer.self_attn.k_proj, layer.self_attn.v_proj)[part].weight
            assert weight.grad.abs().sum() > 0
        (weights,) = extractor.parameters()
        assert weights.grad.abs().sum() > 0


def test_every_form_of_cache_reads_the_same() -> None:
    model = tiny()
    with torch.no_grad():
        past = model(IDS, use_cache=True, past_key_values=DynamicCache()).past_key_values
        fixed = model(IDS, past_key_values=StaticCache(config=model.config, max_cache_len=16), use_cache=True)
    wanted = [(layer.keys, layer.values) for layer in past.layers]

    class Iterable:
        def __iter__(self):
            return iter([(k, v, None) for k, v in wanted])

    forms = (past, tuple(wanted), [list(pair) for pair in wanted], tuple((k, v, k, v) for k, v in wanted), Iterable(),
             EncoderDecoderCache(past, DynamicCache()), fixed.past_key_values)  # fmt: skip
    for form in forms:
        found = read_cache(form)
        assert len(found) == 3
        for pair, known in zip(found, wanted, strict=True):
            torch.testing.assert_close(pair, known)


def test_a_cache_without_keys_is_refused_by_name() -> None:
    class StateSpaceCache:
        conv_states = torch.zeros(1)

    class LinearAttentionLayer:
        conv_states = torch.zeros(1)

    hybrid = DynamicCache()
    hybrid.layers = [LinearAttentionLayer()]
    for cache, words in (
        (None, "a NoneType holds no keys and values"),
        (StateSpaceCache(), "a StateSpaceCache holds no keys"),
        (DynamicCache(), "the DynamicCache is empty"),
        ((), "the tuple is empty"),
        (hybrid, r"layer 0 of the DynamicCache \(LinearAttentionLayer\) holds no keys"),
        (torch.zeros(2, 3), "layer 0 of the Tensor holds no keys"),
        ([(torch.zeros(2, 3), torch.zeros(2, 3))], r"layer 0 of the list holds no keys and values \[B, H, T, D\]"),
    ):
        with pytest.raises(ModelError, match=words):
            read_cache(cache)


def test_gradient_checkpointing_leaves_nothing_to_read() -> None:
    model = tiny().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(ModelError, match=r"holds no keys and values|is empty") as refused:
        read_cache(model(IDS, use_cache=True).past_key_values)
    assert "without gradient checkpointing" in refused.value.hint
    assert probe(model).total_dim == 36  # asked at rest, where checkpointing is off
    assert model.is_gradient_checkpointing


def test_a_sliding_window_hides_tokens_and_the_probe_sees_them() -> None:
    config = Qwen2Config(
        vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, use_sliding_window=True, sliding_window=4, max_window_layers=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).eval()
    report = probe(model)
    assert (report.seq_length, report.layers_consistent, report.total_dim) == (32, True, 36)
    with torch.no_grad():
        past = model(IDS[:1].repeat(1, 2), use_cache=True).past_key_values
    with pytest.raises(ModelError, match=r"layer 1 .* shows 3 of its 12 tokens") as refused:
        read_cache(past)
    assert "past_key_values=DynamicCache()" in refused.value.hint


# the extractor


def test_debug_prints_the_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    past = tiny()(IDS, use_cache=True).past_key_values
    create_kv_extractor().extract_kv(past, "test", debug=True)
    printed = capsys.readouterr().out
    assert printed.startswith("[KV Structure Analysis] (test):\n   num_layers: 3\n   batch_size: 2\n")
    assert "Config dimension" not in printed
    assert printed.isascii()
    create_kv_extractor().extract_kv(past, "test")
    assert capsys.readouterr().out == ""


def test_weighted_layers_have_weights_of_their_own_for_each_model() -> None:
    extractor = create_kv_extractor("weighted")
    past = tiny()(IDS, use_cache=True).past_key_values
    first = extractor.extract_kv(past, "Qwen2.5")
    assert extractor.aggregator("Qwen2.5", 3) is extractor.aggregator("Qwen2.5", 3)
    torch.testing.assert_close(first.keys, Aggregator("mean", 3)([k for k, _ in read_cache(past)]))
    extractor.aggregator("other", 5)
    assert [len(weights) for weights in extractor.parameters()] == [3, 5]
    with pytest.raises(ModelError, match="'other' had 5 layers before and has 3 now"):
        extractor.extract_kv(past, "other")
    assert not list(create_kv_extractor("mean").parameters())
    with pytest.raises(ConfigError, match="unknown aggregation method 'sum'"):
        create_kv_extractor("sum")


# the probe


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_probe_of_every_family_leaves_it_as_it_was(family: str) -> None:
    """Attention is kava's own, dropout on in one module, a drawn number between: all as before."""
    model = zoo.causal_lm(family, dtype=torch.float32)
    model.train()
    decoder = next(module for module in model.children())
    decoder.eval()
    flags = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    report = probe(model, length=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.modules()] == flags
    assert model.config._attn_implementation == NAME
    heads = {"llama-gqa": 2, "llama-mha": 4, "qwen2": 1, "qwen3": 2, "gpt2": 4}[family]
    size = 8 if family == "qwen3" else 6
    assert (report.num_layers, report.num_heads, report.head_dim, report.seq_length) == (3, heads, size, 5)
    assert report.total_dim == 3 * heads * size
    assert report.config_dim == 24
    assert report.mismatch
    assert all(weight.grad is None for weight in model.parameters())


def test_no_warning_where_config_and_cache_agree() -> None:
    report = probe(tiny(num_hidden_layers=2))
    assert not report.mismatch
    assert "WARNING" not in report.text("model")
    with pytest.raises(ConfigError, match="length=0"):
        probe(tiny(), length=0)


def test_layers_that_differ_are_reported() -> None:
    layers = [(torch.zeros(1, 2, 4, 8),) * 2, (torch.zeros(1, 1, 4, 8),) * 2]
    report = structure(layers)
    assert (report.layers_consistent, report.total_dim, report.layer_dim) == (False, 24, 16)
    keys, values = torch.zeros(1, 2, 4, 24), torch.zeros(1, 2, 4, 16)
    assert not structure([(keys, values)]).layers_consistent


# quantised models


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_model_has_the_same_cache(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("bitsandbytes")
    whole = tiny(hidden_size=64, intermediate_size=64, num_hidden_layers=2)
    whole.save_pretrained(tmp_path)
    settings = quantization_config(kind, "cpu")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=settings, device_map={"": "cpu"}, dtype=torch.float32
    )
    assert type(model.model.layers[0].self_attn.k_proj).__name__ in ("Linear4bit", "Linear8bitLt")
    assert probe(model).text("teacher") == probe(whole).text("teacher")
    with torch.no_grad():
        near, exact = (create_kv_extractor().extract_kv(m(IDS, use_cache=True).past_key_values) for m in (model, whole))
    for got, wanted in zip(near, exact, strict=True):
        assert torch.cosine_similarity(got, wanted, dim=-1).min() > 0.9
        assert not torch.equal(got, wanted)
    assert not caplog.records


def test_quantization_settings() -> None:
    assert quantization_config("none") is None
    with pytest.raises(ConfigError, match="unknown quantization 'int4'"):
        quantization_config("int4")
    assert compute_dtype("cpu") == torch.float32
    pytest.importorskip("bitsandbytes")
    settings = quantization_config("nf4", "cpu")
    assert (settings.load_in_4bit, settings.bnb_4bit_quant_type, settings.bnb_4bit_use_double_quant) == (
        True,
        "nf4",
        True,
    )
    assert settings.bnb_4bit_compute_dtype == torch.float32
    assert quantization_config("int8").load_in_8bit


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_compute_type_follows_the_capability(monkeypatch: pytest.MonkeyPatch, capability, dtype: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _place: capability)
    assert compute_dtype("cuda:0") == dtype


def test_without_the_library_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise quantize.PackageNotFoundError(name)

    monkeypatch.setattr(quantize, "version", missing)
    with pytest.raises(ModelError, match="needs the package bitsandbytes, which is not installed") as refused:
        quantization_config("nf4")
    assert "pip install" in refused.value.hint
    assert quantization_config("none") is None
