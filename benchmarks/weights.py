"""Weights for `benchmarks/peers.py`: a random checkpoint of Llama-3.2-1B's shape, and the forms that peers read.

python benchmarks/weights.py checkpoint MODEL             # transformers
python benchmarks/weights.py gguf MODEL MODEL.gguf        # with gguf installed: llama.cpp
python benchmarks/weights.py openvino MODEL MODEL-OV      # with optimum-intel[openvino] installed: OpenVINO
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SHAPE = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 32_000, "max_position_embeddings": 131_072,
    "rope_theta": 500_000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def checkpoint(out: Path, layers: int, vocabulary: int) -> None:
    """A random model in bfloat16; 2.2 GB with 16 layers."""
    torch.manual_seed(0)
    config = LlamaConfig(**{**SHAPE, "num_hidden_layers": layers, "vocab_size": vocabulary})
    LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(out)


def to_gguf(folder: Path, out: Path) -> None:
    """The same weights for llama.cpp, without a tokenizer."""
    import gguf

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    config = model.config
    kind = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}[config.model_type]
    writer = gguf.GGUFWriter(out, config.model_type)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(SHAPE["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if config.model_type == "llama" and name.endswith(
            ("q_proj.weight", "k_proj.weight")
        ):  # rotary halves lie interleaved there
            weight = weight.unflatten(0, (-1, 2, width // 2)).transpose(1, 2).reshape(weight.shape)
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if weight.dim() == 1:
            writer.add_tensor(theirs, weight.float().numpy())
        else:
            raw = weight.contiguous().view(torch.uint8).numpy()
            writer.add_tensor(theirs, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def to_openvino(folder: Path, out: Path) -> None:
    """The same weights for OpenVINO, with a tokenizer of single bytes, as its pipelines open none without."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from optimum.intel import OVModelForCausalLM
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    model = OVModelForCausalLM.from_pretrained(folder, export=True, compile=False, load_in_8bit=False)
    model.save_pretrained(out)
    words = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"<unused {i}>" for i in range(model.config.vocab_size - len(words))]
    plain = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>"))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    for part, name in zip(convert_tokenizer(wrapped, with_detokenizer=True), ("tokenizer", "detokenizer"), strict=True):
        openvino.save_model(part, out / f"openvino_{name}.xml")


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="form", required=True)
    made = commands.add_parser("checkpoint")
    made.add_argument("out", type=Path)
    made.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"], help="fewer, for a quick comparison")
    made.add_argument("--vocabulary", type=int, default=SHAPE["vocab_size"], help="fewer tokens, for a small file")
    for form in ("gguf", "openvino"):
        command = commands.add_parser(form)
        command.add_argument("folder", type=Path)
        command.add_argument("out", type=Path)
    return parser


def main() -> None:
    args = arguments().parse_args()
    if args.form == "checkpoint":
        checkpoint(args.out, args.layers, args.vocabulary)
        return
    try:
        {"gguf": to_gguf, "openvino": to_openvino}[args.form](args.folder, args.out)
    except ModuleNotFoundError as error:
        needed = {"gguf": "gguf", "openvino": "optimum-intel[openvino]"}[args.form]
        raise SystemExit(f"error: {args.form} is absent: no module {error.name}; pip install {needed}") from None


if __name__ == "__main__":
    main()
