"""Sizes of common bases of LLaMA's kind, typed from the `config.json` that each one publishes."""

from __future__ import annotations

from typing import Any

from trainer.estimate.base_rows import CommonBase, columns

KEYS = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
    " vocab_size max_position_embeddings"
)
UNTIED: dict[str, Any] = {"tie_word_embeddings": False}
TIED: dict[str, Any] = {"tie_word_embeddings": True}
llama = columns(KEYS, model_type="llama", **UNTIED).base
mistral = columns(KEYS, model_type="mistral", **UNTIED).base
phi3 = columns(KEYS, model_type="phi3", **UNTIED).base
qwen2 = columns(KEYS, model_type="qwen2", **UNTIED).base
qwen3 = columns(KEYS, model_type="qwen3", head_dim=128, **UNTIED).base
granite = columns(KEYS, model_type="granite", **TIED).base
olmo = columns(KEYS, model_type="olmo", **UNTIED).base
olmo2 = columns(KEYS, model_type="olmo2", **UNTIED).base
olmo3 = columns(KEYS, model_type="olmo3", **UNTIED).base
glm4 = columns(KEYS, model_type="glm4", attention_bias=False, head_dim=128, **UNTIED).base
cohere = columns(KEYS, model_type="cohere", **TIED).base
exaone4 = columns(KEYS, model_type="exaone4", **TIED).base
stablelm = columns(KEYS, model_type="stablelm", use_qkv_bias=False, **UNTIED).base

# fmt: off
META = (
    llama("huggyllama/llama-7b", 6.738, 4096, 11008, 32, 32, 32, 32000, 2048,
          same="llama-1-7b vicuna-7b-v1.3 vicuna-7b-v1.1"),
    llama("huggyllama/llama-13b", 13.016, 5120, 13824, 40, 40, 40, 32000, 2048,
          same="llama-1-13b vicuna-13b-v1.3 vicuna-13b-v1.1"),
    llama("huggyllama/llama-30b", 32.529, 6656, 17920, 60, 52, 52, 32000, 2048,
          same="llama-33b llama-1-30b llama-1-33b vicuna-33b-v1.3 garage-bAInd/Platypus-30B"),
    llama("huggyllama/llama-65b", 65.286, 8192, 22016, 80, 64, 64, 32000, 2048,
          same="llama-1-65b"),
    llama("meta-llama/Llama-2-7b-hf", 6.738, 4096, 11008, 32, 32, 32, 32000, 4096, gated=True,
          same="meta-llama/Llama-2-7b-chat-hf NousResearch/Llama-2-7b-hf lmsys/vicuna-7b-v1.5"
          " garage-bAInd/Platypus2-7B togethercomputer/LLaMA-2-7B-32K"),
    llama("meta-llama/Llama-2-13b-hf", 13.016, 5120, 13824, 40, 40, 40, 32000, 4096, gated=True,
          same="meta-llama/Llama-2-13b-chat-hf NousResearch/Llama-2-13b-hf lmsys/vicuna-13b-v1.5"
          " garage-bAInd/Platypus2-13B"),
    llama("meta-llama/Llama-2-70b-hf", 68.977, 8192, 28672, 80, 64, 8, 32000, 4096, gated=True,
          same="meta-llama/Llama-2-70b-chat-hf garage-bAInd/Platypus2-70B-instruct"),
    llama("meta-llama/Meta-Llama-3-8B", 8.030, 4096, 14336, 32, 32, 8, 128256, 8192, gated=True,
          same="meta-llama/Meta-Llama-3-8B-Instruct NousResearch/Meta-Llama-3-8B"),
    llama("meta-llama/Meta-Llama-3-70B", 70.554, 8192, 28672, 80, 64, 8, 128256, 8192, gated=True,
          same="meta-llama/Meta-Llama-3-70B-Instruct"),
    llama("meta-llama/Llama-3.1-8B", 8.030, 4096, 14336, 32, 32, 8, 128256, 131072, gated=True,
          same="meta-llama/Llama-3.1-8B-Instruct meta-llama/Meta-Llama-3.1-8B"
          " meta-llama/Meta-Llama-3.1-8B-Instruct deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
    llama("meta-llama/Llama-3.1-70B", 70.554, 8192, 28672, 80, 64, 8, 128256, 131072, gated=True,
          same="meta-llama/Llama-3.1-70B-Instruct meta-llama/Meta-Llama-3.1-70B"
          " meta-llama/Llama-3.3-70B-Instruct deepseek-ai/DeepSeek-R1-Distill-Llama-70B"),
    llama("meta-llama/Llama-3.1-405B", 405.853, 16384, 53248, 126, 128, 8, 128256, 131072,
          gated=True, same="meta-llama/Llama-3.1-405B-Instruct"),
    llama("meta-llama/Llama-3.2-1B", 1.236, 2048, 8192, 16, 32, 8, 128256, 131072, gated=True,
          same="meta-llama/Llama-3.2-1B-Instruct", head_dim=64, **TIED),
    llama("meta-llama/Llama-3.2-3B", 3.213, 3072, 8192, 28, 24, 8, 128256, 131072, gated=True,
          same="meta-llama/Llama-3.2-3B-Instruct", head_dim=128, **TIED),
    llama("codellama/CodeLlama-7b-hf", 6.739, 4096, 11008, 32, 32, 32, 32016, 16384,
          same="codellama/CodeLlama-7b-Instruct-hf codellama/CodeLlama-7b-Python-hf"
          " code-llama-2-7b"),
    llama("codellama/CodeLlama-13b-hf", 13.016, 5120, 13824, 40, 40, 40, 32016, 16384,
          same="codellama/CodeLlama-13b-Instruct-hf codellama/CodeLlama-13b-Python-hf"
          " code-llama-2-13b"),
    llama("codellama/CodeLlama-34b-hf", 33.744, 8192, 22016, 48, 64, 8, 32000, 16384,
          same="codellama/CodeLlama-34b-Instruct-hf codellama/CodeLlama-34b-Python-hf"),
    llama("codellama/CodeLlama-70b-hf", 68.977, 8192, 28672, 80, 64, 8, 32016, 16384,
          same="codellama/CodeLlama-70b-Instruct-hf codellama/CodeLlama-70b-Python-hf"),
    llama("HKUSTAudio/Llasa-1B", 1.370, 2048, 8192, 16, 32, 8, 193800, 131072, head_dim=64, **TIED,
          same="llasa-1b-tts"),
    llama("HKUSTAudio/Llasa-3B", 3.414, 3072, 8192, 28, 24, 8, 193800, 131072, head_dim=128, **TIED,
          same="llasa-3b-tts"),
    llama("canopylabs/orpheus-3b-0.1-ft", 3.301, 3072, 8192, 28, 24, 8, 156940, 131072, gated=True,
          same="canopylabs/orpheus-3b-0.1-pretrained unsloth/orpheus-3b-0.1-ft orpheus-3b",
          head_dim=128, weight_bytes=4, **TIED),
)
LIKE_LLAMA = (
    llama("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1.100, 2048, 5632, 22, 32, 4, 32000, 2048,
          same="TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T TinyLlama/TinyLlama_v1.1"
          " tinyllama-1.1b"),
    llama("openlm-research/open_llama_3b", 3.426, 3200, 8640, 26, 32, 32, 32000, 2048,
          same="openlm-research/open_llama_3b_v2"),
    llama("openlm-research/open_llama_7b", 6.738, 4096, 11008, 32, 32, 32, 32000, 2048,
          same="openlm-research/open_llama_7b_v2"),
    llama("openlm-research/open_llama_13b", 13.016, 5120, 13824, 40, 40, 40, 32000, 2048),
    llama("HuggingFaceTB/SmolLM2-135M", 0.1345, 576, 1536, 30, 9, 3, 49152, 8192, **TIED,
          same="HuggingFaceTB/SmolLM2-135M-Instruct HuggingFaceTB/SmolLM-135M"),
    llama("HuggingFaceTB/SmolLM2-360M", 0.3618, 960, 2560, 32, 15, 5, 49152, 8192, **TIED,
          same="HuggingFaceTB/SmolLM2-360M-Instruct HuggingFaceTB/SmolLM-360M"),
    llama("HuggingFaceTB/SmolLM2-1.7B", 1.711, 2048, 8192, 24, 32, 32, 49152, 8192, **TIED,
          same="HuggingFaceTB/SmolLM2-1.7B-Instruct HuggingFaceTB/SmolLM-1.7B"),
    columns(KEYS, model_type="smollm3", **TIED).base(
        "HuggingFaceTB/SmolLM3-3B", 3.075, 2048, 11008, 36, 16, 4, 128256, 65536,
        same="HuggingFaceTB/SmolLM3-3B-Base"),
    llama("tiiuae/Falcon3-1B-Base", 1.669, 2048, 8192, 18, 8, 4, 131072, 4096, head_dim=256,
          same="tiiuae/Falcon3-1B-Instruct"),
    llama("tiiuae/Falcon3-3B-Base", 3.228, 3072, 9216, 22, 12, 4, 131072, 32768, head_dim=256,
          same="tiiuae/Falcon3-3B-Instruct"),
    llama("tiiuae/Falcon3-7B-Base", 7.456, 3072, 23040, 28, 12, 4, 131072, 32768, head_dim=256,
          same="tiiuae/Falcon3-7B-Instruct"),
    llama("tiiuae/Falcon3-10B-Base", 10.306, 3072, 23040, 40, 12, 4, 131072, 32768, head_dim=256,
          same="tiiuae/Falcon3-10B-Instruct"),
    llama("01-ai/Yi-6B", 6.061, 4096, 11008, 32, 32, 4, 64000, 4096,
          same="01-ai/Yi-6B-Chat 01-ai/Yi-1.5-6B 01-ai/Yi-1.5-6B-Chat"),
    llama("01-ai/Yi-9B", 8.829, 4096, 11008, 48, 32, 4, 64000, 4096,
          same="01-ai/Yi-1.5-9B 01-ai/Yi-1.5-9B-Chat"),
    llama("01-ai/Yi-34B", 34.389, 7168, 20480, 60, 56, 8, 64000, 4096,
          same="01-ai/Yi-34B-Chat 01-ai/Yi-1.5-34B 01-ai/Yi-1.5-34B-Chat"),
    llama("upstage/SOLAR-10.7B-v1.0", 10.732, 4096, 14336, 48, 32, 8, 32000, 4096,
          same="upstage/SOLAR-10.7B-Instruct-v1.0 solar-10.7b"),
    columns(KEYS, model_type="arcee", head_dim=128, **UNTIED).base(
        "arcee-ai/AFM-4.5B", 4.619, 2560, 18432, 36, 20, 4, 128005, 65536,
        same="arcee-ai/AFM-4.5B-Base"),
    granite("ibm-granite/granite-3.3-2b-base", 2.534, 2048, 8192, 40, 32, 8, 49159, 131072,
            same="ibm-granite/granite-3.3-2b-instruct granite-3.2-2b-instruct granite-3.1-2b-base"
            " granite-3.1-2b-instruct granite-3.0-2b-base granite-3.0-2b-instruct"),
    granite("ibm-granite/granite-3.3-8b-base", 8.171, 4096, 12800, 40, 32, 8, 49159, 131072,
            same="ibm-granite/granite-3.3-8b-instruct granite-3.2-8b-instruct granite-3.1-8b-base"
            " granite-3.1-8b-instruct granite-3.0-8b-base granite-3.0-8b-instruct"),
    olmo("allenai/OLMo-1B-hf", 1.177, 2048, 8192, 16, 16, 16, 50304, 2048, **TIED),
    olmo("allenai/OLMo-7B-hf", 6.888, 4096, 11008, 32, 32, 32, 50304, 2048,
         same="allenai/OLMo-7B-Instruct-hf"),
    olmo2("allenai/OLMo-2-0425-1B", 1.485, 2048, 8192, 16, 16, 16, 100352, 4096,
          same="allenai/OLMo-2-0425-1B-Instruct"),
    olmo2("allenai/OLMo-2-1124-7B", 7.299, 4096, 11008, 32, 32, 32, 100352, 4096,
          same="allenai/OLMo-2-1124-7B-Instruct"),
    olmo2("allenai/OLMo-2-1124-13B", 13.716, 5120, 13824, 40, 40, 40, 100352, 4096,
          same="allenai/OLMo-2-1124-13B-Instruct"),
    olmo2("allenai/OLMo-2-0325-32B", 32.234, 5120, 27648, 64, 40, 8, 100352, 4096,
          same="allenai/OLMo-2-0325-32B-Instruct"),
    olmo3("allenai/Olmo-3-1025-7B", 7.298, 4096, 11008, 32, 32, 32, 100278, 65536,
          same="allenai/Olmo-3-7B-Instruct allenai/Olmo-3-7B-Think"),
    glm4("zai-org/GLM-4-9B-0414", 9.400, 4096, 13696, 40, 32, 2, 151552, 32768,
         attention_bias=True, same="zai-org/GLM-Z1-9B-0414"),
    glm4("zai-org/GLM-4-32B-0414", 32.566, 6144, 23040, 61, 48, 2, 151552, 32768,
         same="zai-org/GLM-Z1-32B-0414"),
    columns(KEYS, model_type="apertus", **UNTIED).base(
        "swiss-ai/Apertus-8B-2509", 8.053, 4096, 21504, 32, 32, 8, 131072, 65536, gated=True,
        same="swiss-ai/Apertus-8B-Instruct-2509 apertus-8b"),
    cohere("CohereLabs/aya-expanse-8b", 8.028, 4096, 14336, 32, 32, 8, 256000, 8192, gated=True,
           same="CohereForAI/aya-expanse-8b CohereLabs/aya-23-8B"),
    cohere("CohereLabs/c4ai-command-r-v01", 34.981, 8192, 22528, 40, 64, 64, 256000, 131072,
           gated=True, same="CohereForAI/c4ai-command-r-v01 command-r-35b"),
    exaone4("LGAI-EXAONE/EXAONE-4.0-1.2B", 1.279, 2048, 4096, 30, 32, 8, 102400, 65536),
    exaone4("LGAI-EXAONE/EXAONE-4.0-32B", 32.003, 5120, 27392, 64, 40, 8, 102400, 131072, **UNTIED),
    columns(KEYS, model_type="seed_oss", attention_bias=True, head_dim=128, **UNTIED).base(
        "ByteDance-Seed/Seed-OSS-36B-Base", 36.151, 5120, 27648, 64, 80, 8, 155136, 524288,
        same="ByteDance-Seed/Seed-OSS-36B-Instruct"),
    columns(KEYS, model_type="ernie4_5", head_dim=128, use_bias=False, **TIED).base(
        "baidu/ERNIE-4.5-0.3B-PT", 0.361, 1024, 3072, 18, 16, 2, 103424, 131072,
        same="baidu/ERNIE-4.5-0.3B-Base-PT"),
    stablelm("stabilityai/stablelm-3b-4e1t", 2.795, 2560, 6912, 32, 32, 32, 50304, 4096,
             same="stabilityai/stablelm-zephyr-3b stabilityai/stable-code-3b"),
    stablelm("stabilityai/stablelm-2-1_6b", 1.645, 2048, 5632, 24, 32, 32, 100352, 4096,
             use_qkv_bias=True, same="stabilityai/stablelm-2-zephyr-1_6b"),
    stablelm("stabilityai/stablelm-2-12b", 12.143, 5120, 13824, 40, 32, 8, 100352, 4096,
             qk_layernorm=True, use_parallel_residual=True, same="stabilityai/stablelm-2-12b-chat"),
)
MISTRAL = (
    mistral("mistralai/Mistral-7B-v0.1", 7.242, 4096, 14336, 32, 32, 8, 32000, 32768,
            same="mistralai/Mistral-7B-Instruct-v0.1 mistralai/Mistral-7B-Instruct-v0.2"
            " mistral-7b-v0.2 mistral-7b HuggingFaceH4/zephyr-7b-beta zephyr-7b-alpha zephyr-7b"),
    mistral("mistralai/Mistral-7B-v0.3", 7.248, 4096, 14336, 32, 32, 8, 32768, 32768,
            same="mistralai/Mistral-7B-Instruct-v0.3 mistralai/Mathstral-7B-v0.1"),
    mistral("mistralai/Mistral-Nemo-Base-2407", 12.248, 5120, 14336, 40, 32, 8, 131072, 131072,
            head_dim=128, same="mistralai/Mistral-Nemo-Instruct-2407 mistral-nemo-12b"),
    mistral("mistralai/Mistral-Small-Instruct-2409", 22.247, 6144, 16384, 56, 48, 8, 32768, 32768,
            head_dim=128, gated=True, same="mistral-small-22b mistralai/Codestral-22B-v0.1"),
    mistral("mistralai/Mistral-Small-24B-Base-2501", 23.572, 5120, 32768, 40, 32, 8, 131072, 32768,
            head_dim=128, same="mistralai/Mistral-Small-24B-Instruct-2501 mistral-small-3-24b"
            " mistralai/Devstral-Small-2507 mistralai/Magistral-Small-2507 devstral-24b"
            " magistral-24b devstral-small-24b magistral-small-24b"),
    mistral("mistralai/Ministral-8B-Instruct-2410", 8.020, 4096, 12288, 36, 32, 8, 131072, 32768,
            head_dim=128, gated=True),
    mistral("mistralai/Mistral-Large-Instruct-2407", 122.610, 12288, 28672, 88, 96, 8, 32768,
            131072, head_dim=128, gated=True, same="mistral-large-123b"),
)
PHI = (
    phi3("microsoft/Phi-3-mini-4k-instruct", 3.821, 3072, 8192, 32, 32, 32, 32064, 4096,
         same="microsoft/Phi-3-mini-128k-instruct phi-3-3.8b"),
    phi3("microsoft/Phi-3-medium-4k-instruct", 13.960, 5120, 17920, 40, 40, 10, 32064, 4096,
         same="microsoft/Phi-3-medium-128k-instruct phi-3-14b"),
    phi3("microsoft/Phi-3.5-mini-instruct", 3.821, 3072, 8192, 32, 32, 32, 32064, 131072,
         same="phi-3.5-3.8b phi-3.5"),
    phi3("microsoft/phi-4", 14.660, 5120, 17920, 40, 40, 10, 100352, 16384,
         same="microsoft/Phi-4-reasoning microsoft/Phi-4-reasoning-plus phi-4-14b"),
    phi3("microsoft/Phi-4-mini-instruct", 3.836, 3072, 8192, 32, 24, 8, 200064, 131072, **TIED,
         same="microsoft/Phi-4-mini-reasoning phi-4-3.8b"),
)
QWEN = (
    qwen2("Qwen/Qwen1.5-0.5B", 0.464, 1024, 2816, 24, 16, 16, 151936, 32768, **TIED,
          same="Qwen/Qwen1.5-0.5B-Chat"),
    qwen2("Qwen/Qwen1.5-1.8B", 1.837, 2048, 5504, 24, 16, 16, 151936, 32768,
          same="Qwen/Qwen1.5-1.8B-Chat"),
    qwen2("Qwen/Qwen1.5-4B", 3.950, 2560, 6912, 40, 20, 20, 151936, 32768,
          same="Qwen/Qwen1.5-4B-Chat"),
    qwen2("Qwen/Qwen1.5-7B", 7.721, 4096, 11008, 32, 32, 32, 151936, 32768,
          same="Qwen/Qwen1.5-7B-Chat"),
    qwen2("Qwen/Qwen1.5-14B", 14.167, 5120, 13696, 40, 40, 40, 152064, 32768,
          same="Qwen/Qwen1.5-14B-Chat"),
    qwen2("Qwen/Qwen1.5-32B", 32.512, 5120, 27392, 64, 40, 8, 152064, 32768,
          same="Qwen/Qwen1.5-32B-Chat"),
    qwen2("Qwen/Qwen1.5-72B", 72.288, 8192, 24576, 80, 64, 64, 152064, 32768,
          same="Qwen/Qwen1.5-72B-Chat"),
    qwen2("Qwen/Qwen1.5-110B", 111.210, 8192, 49152, 80, 64, 8, 152064, 32768,
          same="Qwen/Qwen1.5-110B-Chat"),
    qwen2("Qwen/Qwen2-0.5B", 0.494, 896, 4864, 24, 14, 2, 151936, 131072, **TIED,
          same="Qwen/Qwen2-0.5B-Instruct"),
    qwen2("Qwen/Qwen2-1.5B", 1.544, 1536, 8960, 28, 12, 2, 151936, 131072, **TIED,
          same="Qwen/Qwen2-1.5B-Instruct"),
    qwen2("Qwen/Qwen2-7B", 7.616, 3584, 18944, 28, 28, 4, 152064, 131072,
          same="Qwen/Qwen2-7B-Instruct"),
    qwen2("Qwen/Qwen2-72B", 72.706, 8192, 29568, 80, 64, 8, 152064, 131072,
          same="Qwen/Qwen2-72B-Instruct"),
    qwen2("Qwen/Qwen2.5-0.5B", 0.494, 896, 4864, 24, 14, 2, 151936, 32768, **TIED,
          same="Qwen/Qwen2.5-0.5B-Instruct Qwen/Qwen2.5-Coder-0.5B"),
    qwen2("Qwen/Qwen2.5-1.5B", 1.544, 1536, 8960, 28, 12, 2, 151936, 131072, **TIED,
          same="Qwen/Qwen2.5-1.5B-Instruct Qwen/Qwen2.5-Coder-1.5B Qwen/Qwen2.5-Math-1.5B"),
    qwen2("Qwen/Qwen2.5-3B", 3.086, 2048, 11008, 36, 16, 2, 151936, 32768, **TIED,
          same="Qwen/Qwen2.5-3B-Instruct Qwen/Qwen2.5-Coder-3B"),
    qwen2("Qwen/Qwen2.5-7B", 7.616, 3584, 18944, 28, 28, 4, 152064, 131072,
          same="Qwen/Qwen2.5-7B-Instruct Qwen/Qwen2.5-Coder-7B Qwen/Qwen2.5-Coder-7B-Instruct"
          " Qwen/Qwen2.5-Math-7B deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
    qwen2("Qwen/Qwen2.5-14B", 14.770, 5120, 13824, 48, 40, 8, 152064, 131072,
          same="Qwen/Qwen2.5-14B-Instruct Qwen/Qwen2.5-Coder-14B"
          " deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"),
    qwen2("Qwen/Qwen2.5-32B", 32.764, 5120, 27648, 64, 40, 8, 152064, 131072,
          same="Qwen/Qwen2.5-32B-Instruct Qwen/Qwen2.5-Coder-32B Qwen/QwQ-32B"
          " deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"),
    qwen2("Qwen/Qwen2.5-72B", 72.706, 8192, 29568, 80, 64, 8, 152064, 131072,
          same="Qwen/Qwen2.5-72B-Instruct Qwen/Qwen2.5-Math-72B"),
    qwen2("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1.777, 1536, 8960, 28, 12, 2, 151936,
          131072),
    qwen3("Qwen/Qwen3-0.6B", 0.596, 1024, 3072, 28, 16, 8, 151936, 40960, **TIED,
          same="Qwen/Qwen3-0.6B-Base"),
    qwen3("Qwen/Qwen3-1.7B", 1.721, 2048, 6144, 28, 16, 8, 151936, 40960, **TIED,
          same="Qwen/Qwen3-1.7B-Base"),
    qwen3("Qwen/Qwen3-4B", 4.022, 2560, 9728, 36, 32, 8, 151936, 40960, **TIED,
          same="Qwen/Qwen3-4B-Base Qwen/Qwen3-4B-Instruct-2507 Qwen/Qwen3-4B-Thinking-2507"),
    qwen3("Qwen/Qwen3-8B", 8.191, 4096, 12288, 36, 32, 8, 151936, 40960,
          same="Qwen/Qwen3-8B-Base deepseek-ai/DeepSeek-R1-0528-Qwen3-8B"),
    qwen3("Qwen/Qwen3-14B", 14.768, 5120, 17408, 40, 40, 8, 151936, 40960,
          same="Qwen/Qwen3-14B-Base"),
    qwen3("Qwen/Qwen3-32B", 32.762, 5120, 25600, 64, 64, 8, 151936, 40960),
)
# fmt: on
LLAMA_KIND: tuple[CommonBase, ...] = META + LIKE_LLAMA + MISTRAL + PHI + QWEN
