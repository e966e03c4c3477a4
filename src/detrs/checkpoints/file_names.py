"""Names of the files that contain checkpoints."""

BEST, LAST = "best.safetensors", "last.safetensors"
"""In the folder of a run."""
CONFIG, PREPROCESSING = "config.json", "preprocessor_config.json"
WEIGHTS, INDEX, OLD_WEIGHTS = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
"""In a folder of ``transformers``."""
TORCH_SUFFIXES = (".pth", ".pt", ".bin")
"""Files of ``torch.save``."""
