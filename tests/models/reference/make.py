"""Makes the tiny reference checkpoints beside this file; needs torch and transformers, which the tests do not.

    pip install torch transformers safetensors numpy
    python tests/models/reference/make.py

Every folder is a Hugging Face checkpoint with random weights (config.json, model.safetensors, float32) and
``reference.npz`` with the tokens and the logits, or hidden states, that transformers computes for them on a CPU.
Weights are drawn wider than a fresh model's, so that attention is far from uniform and mistakes in rotation, masks or
norms show.
"""

import pathlib

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent
VOCAB, LENGTH = 97, 48

DECODER = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
)
# The original context is shorter than the sequence and the base is small, so that all three regimes of the scaling
# (kept, blended, divided) are in use.
LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)


def rope(theta, **scaling):
    return dict(rope_parameters=dict(rope_type="default", rope_theta=theta) | scaling)


MODELS = {
    "llama3": (
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(**DECODER, tie_word_embeddings=False, rms_norm_eps=1e-5, rope_parameters=LLAMA3_ROPE),
    ),
    "llama_linear": (
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(
            **DECODER,
            tie_word_embeddings=False,
            attention_bias=True,
            mlp_bias=True,
            **rope(100.0, rope_type="linear", factor=2.5),
        ),
    ),
    "smollm2": (
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(
            **(DECODER | dict(num_attention_heads=6, num_key_value_heads=3, hidden_size=48)),
            tie_word_embeddings=True,
            rms_norm_eps=1e-5,
            **rope(100000.0),
        ),
    ),
    "qwen2": (
        transformers.Qwen2ForCausalLM,
        transformers.Qwen2Config(**DECODER, tie_word_embeddings=True, rms_norm_eps=1e-6, **rope(1000000.0)),
    ),
    "qwen3": (
        transformers.Qwen3ForCausalLM,
        transformers.Qwen3Config(**DECODER, head_dim=12, tie_word_embeddings=True, **rope(1000000.0)),
    ),
    "mistral": (
        transformers.MistralForCausalLM,
        transformers.MistralConfig(**DECODER, sliding_window=7, tie_word_embeddings=False, **rope(10000.0)),
    ),
    "bert": (
        transformers.BertModel,
        transformers.BertConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
        ),
    ),
}


def spread(model):
    """Scales matrices up and moves norms and biases off their constant start."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(8.0 if "embed" not in name else 20.0)
            else:
                parameter.add_(0.3 * torch.randn(parameter.shape))


def make(name):
    torch.manual_seed(sorted(MODELS).index(name))
    kind, config = MODELS[name]
    config._attn_implementation = "eager"
    model = kind(config).eval().float()
    spread(model)
    tokens = torch.randint(3, VOCAB, (2, LENGTH))
    with torch.no_grad():
        if name == "bert":
            mask = torch.ones_like(tokens)
            mask[1, 30:] = 0
            types = (torch.arange(LENGTH) >= 20).long().expand_as(tokens)
            hidden = model(tokens, attention_mask=mask, token_type_ids=types).last_hidden_state
            arrays = dict(
                mask=mask.numpy().astype(bool), token_types=types.numpy().astype(np.int32), hidden=hidden.numpy()
            )
        else:
            arrays = dict(logits=model(tokens).logits.numpy())
    folder = FOLDER / name
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "model.safetensors").chmod(0o644)
    np.savez_compressed(folder / "reference.npz", tokens=tokens.numpy().astype(np.int32), **arrays)
    print(name, {file.name: file.stat().st_size for file in sorted(folder.iterdir())})


if __name__ == "__main__":
    for model_name in MODELS:
        make(model_name)
