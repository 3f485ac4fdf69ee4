"""Quantisation-aware training: our rounding in Paddle's QAT, and that it trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest

from checkpoints.makers import LLAMA, QWEN2, config_json, random_tensors, write_hf
from engine.parity import all_logits, make_runner
from paddle_ds.checkpoints import open_checkpoint
from paddle_ds.checkpoints.rounding import quantize_rows
from paddle_ds.errors import CalibrationError, QuantizationError
from paddle_ds.kernels.int8_linear import quantize_activations
from paddle_ds_slim.paddlenlp_model import build_model, state_of
from paddle_ds_slim.qat import (
    FEWEST_TOKENS,
    ChannelWeightsLayer,
    QatConfig,
    TokenActivationsLayer,
    fake_quantise,
    finetune,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
CONFIG = QatConfig(steps=20, learning_rate=3e-4, batch_sequences=12, seed=3)


@pytest.fixture(scope="module")
def unbalanced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Qwen2 whose norms feed channels of very different size to its linear layers: rounding hurts it."""
    raw = config_json(QWEN2, tie_word_embeddings=True)
    tensors, random = random_tensors(raw), np.random.default_rng(1)
    for name, values in tensors.items():
        if "layernorm" in name:
            tensors[name] = np.exp(random.normal(0, 1.5, values.shape)).astype(np.float32)
    return write_hf(tmp_path_factory.mktemp("unbalanced"), raw, tensors)


def texts(num_sequences: int = 12, vocab_size: int = 56) -> list[np.ndarray]:
    """Sequences of several lengths, some 40 tokens each."""
    random = np.random.default_rng(5)
    return [random.integers(0, vocab_size, 30 + 2 * index) for index in range(num_sequences)]


def train(directory: Path, config: QatConfig = CONFIG, **options: object) -> tuple[dict[str, np.ndarray], list[float]]:
    losses: list[float] = []
    with open_checkpoint(directory) as checkpoint:
        tensors = finetune(checkpoint, texts(), config, lambda done, total, loss: losses.append(loss), **options)
    return tensors, losses


def divergence(directory: Path, changed: dict[str, np.ndarray]) -> float:
    """Mean KL(float original || rounded model with the changed tensors) on the training text."""
    with open_checkpoint(directory) as checkpoint:
        reference, model = build_model(checkpoint), build_model(checkpoint)
    parameters = dict(model.named_parameters())
    for name, values in changed.items():
        parameters[name.replace("model.", "qwen2.", 1)].set_value(np.ascontiguousarray(values.T))
    fake_quantise(model, lambda name: "w8a8")
    total = 0.0
    with paddle.no_grad():
        for ids in texts():
            wanted, found = (
                paddle.nn.functional.log_softmax(some(paddle.to_tensor(ids[None]))[0][0, :-1]) for some in (reference, model)
            )
            total += float((wanted.exp() * (wanted - found)).sum(axis=-1).mean())
    return total / len(texts())


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 172), (3, 33)])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_rounded_as_the_checkpoint_will_be(shape: tuple[int, int], tied: bool) -> None:
    weight = np.random.default_rng(shape[1]).normal(0, 0.05, shape).astype(np.float32)
    weight[-1] = 0
    weight[0, 0] = 127 * 0.5**9  # a scale of a power of two, so that 0.5**10 is exactly half a step
    weight[0, 1:] = 0.5**10
    layer = paddle.nn.Layer()
    layer.transpose_y = tied
    rounded = ChannelWeightsLayer(layer)(paddle.to_tensor(np.ascontiguousarray(weight if tied else weight.T))).numpy()
    assert np.array_equal(rounded if tied else rounded.T, quantize_rows(weight).to_float32())


def test_activations_are_rounded_as_the_runtime_does() -> None:
    x = np.random.default_rng(0).normal(0, 3, (2, 5, 33)).astype(np.float32)
    x[0, 0] = 0
    x[1, 1, 0], x[1, 1, 1:] = 127, 2.5  # half-way: to even
    rounded = TokenActivationsLayer(paddle.nn.Layer())(paddle.to_tensor(x)).numpy()
    integers, scale = quantize_activations(paddle.to_tensor(x.reshape(-1, 33)))
    assert np.array_equal(rounded.reshape(-1, 33), (integers * scale).numpy())
    assert rounded[1, 1, 1] == 2
    assert not rounded[0, 0].any()


@pytest.mark.parametrize("quanter", [ChannelWeightsLayer, TokenActivationsLayer])
def test_gradients_pass_the_rounding_unchanged(quanter: type) -> None:
    x = paddle.to_tensor(np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32), stop_gradient=False)
    factors = paddle.arange(24, dtype="float32").reshape([4, 6])
    (quanter(paddle.nn.Layer())(x) * factors).sum().backward()
    assert np.array_equal(x.grad.numpy(), factors.numpy())


@pytest.mark.parametrize("case", ["llama-tied", "llama-biases", "qwen2-untied"])
def test_the_rounded_model_is_the_engines_w8a8(case: str) -> None:
    ids = np.load(GOLDEN / case / "golden.npz")["prompt_ids"]
    with open_checkpoint(GOLDEN / case) as checkpoint:
        model = build_model(checkpoint)
    plain = model(paddle.to_tensor(ids[None]))[0].numpy()[0]
    fake_quantise(model, lambda name: "w8a8")
    ours = all_logits(make_runner(GOLDEN / case, "w8a8"), ids.tolist())
    error = np.abs(model(paddle.to_tensor(ids[None]))[0].numpy()[0] - ours).max(axis=1)
    assert np.median(error) <= 1e-4  # a value half-way between two integers may take either and move the rest of its text
    assert np.median(np.abs(plain - ours).max(axis=1)) >= 1e-2


def test_training_lowers_the_divergence_that_rounding_causes(unbalanced: Path) -> None:
    tensors, losses = train(unbalanced)
    assert len(losses) == CONFIG.steps
    assert losses[-1] < 0.5 * losses[0]
    assert divergence(unbalanced, tensors) < 0.5 * divergence(unbalanced, {})


def test_embedding_and_tied_head_stay_and_everything_else_is_returned(unbalanced: Path) -> None:
    with open_checkpoint(unbalanced) as checkpoint:
        start = state_of(build_model(checkpoint))
    tensors, _ = train(unbalanced, QatConfig(steps=2, learning_rate=1e-3))
    assert tensors.keys() == start.keys() - {"model.embed_tokens.weight"}
    assert all(tensors[name].shape == start[name].shape for name in tensors)
    assert [name for name in tensors if np.array_equal(tensors[name], start[name])] == []


def test_a_seed_gives_the_same_bits(unbalanced: Path) -> None:
    first, second, other = (train(unbalanced, QatConfig(2, 1e-3, 2, seed))[0] for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)


def test_layers_in_higher_precision_are_not_rounded(tmp_path: Path) -> None:
    raw = config_json(LLAMA)
    with open_checkpoint(write_hf(tmp_path, raw, random_tensors(raw))) as checkpoint:
        model, plain = build_model(checkpoint), build_model(checkpoint)
    schemes = {"model.layers.0.mlp.down_proj": "w8a16"}
    fake_quantise(model, lambda name: schemes.get(name, "dense"))  # type: ignore[arg-type,return-value]
    layers = model.llama.layers
    assert type(layers[0].mlp.up_proj) is paddle.nn.Linear
    assert layers[0].mlp.down_proj.activation_quanter is None
    assert type(model.lm_head) is type(plain.lm_head)
    x = paddle.to_tensor(np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32))
    weight = state_of(plain)["model.layers.0.mlp.down_proj.weight"]
    np.testing.assert_allclose(layers[0].mlp.down_proj(x).numpy(), x.numpy() @ quantize_rows(weight).to_float32().T, rtol=1e-4)


def test_a_scheme_that_cannot_be_trained_is_refused(unbalanced: Path) -> None:
    with pytest.raises(QuantizationError, match=r"lm_head: .*'w4a16'; have: dense, w8a16, w8a8"):
        train(unbalanced, scheme=lambda name: "w4a16" if name == "lm_head" else "w8a8")


def test_too_few_tokens_are_refused(unbalanced: Path) -> None:
    with (
        open_checkpoint(unbalanced) as checkpoint,
        pytest.raises(CalibrationError, match=f"got 9 tokens to predict in 1 sequences; it needs at least {FEWEST_TOKENS}"),
    ):
        finetune(checkpoint, [np.arange(10), np.arange(1)], CONFIG)


def test_ids_of_another_tokenizer_are_refused(unbalanced: Path) -> None:
    with open_checkpoint(unbalanced) as checkpoint, pytest.raises(CalibrationError, match="vocabulary has 0 to 55"):
        finetune(checkpoint, texts(vocab_size=60), CONFIG)


def test_a_loss_that_is_not_finite_ends_it(unbalanced: Path) -> None:
    with pytest.raises(QuantizationError, match=r"step 2 of quantisation-aware training: the loss is (nan|inf); lower"):
        train(unbalanced, QatConfig(steps=3, learning_rate=1e30))


def test_the_teacher_can_be_another_checkpoint(unbalanced: Path, tmp_path: Path) -> None:
    raw = config_json(QWEN2, tie_word_embeddings=True)
    with open_checkpoint(write_hf(tmp_path, raw, random_tensors(raw, seed=9))) as teacher:
        _, losses = train(unbalanced, QatConfig(steps=1, learning_rate=1e-3), teacher=teacher)
    assert losses[0] > 10 * train(unbalanced, QatConfig(steps=1, learning_rate=1e-3))[1][0]
