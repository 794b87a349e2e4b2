"""Published files of weights: names and addresses, without importing what reads them."""

from __future__ import annotations

INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_URL = (
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/" + INCEPTION_FILE
)
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
DINO_ARCHITECTURE = "vit_small_patch16_224"
DINO_URL = f"https://huggingface.co/timm/{DINO_ARCHITECTURE}.dino/resolve/main/model.safetensors"
