"""The demo model that ships with the gateway: `MODEL_PATH` is its GGUF file."""

from pathlib import Path

MODEL_PATH = Path(__file__).with_name("demo.gguf")
