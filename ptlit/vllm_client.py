"""Asks a vLLM server to write behind the soft prompt of this folder: python client.py "the text"

The server is started with: vllm serve <base model> --enable-prompt-embeds
It needs torch, transformers and safetensors, and nothing of ptlit.
"""

import base64
import io
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent


class Client:
    def __init__(self, folder: Path = HERE, url: str = "http://localhost:8000/v1"):
        said = json.loads((folder / "client.json").read_text(encoding="utf-8"))
        self.url, self.base_model, self.leading = url, said["base_model"], said["leading"]
        self.before, self.after = said["before"], said["after"]
        self.virtual = load_file(folder / "prompt.safetensors")["prompt_embeddings"]  # (P, H)
        self.tokenizer = AutoTokenizer.from_pretrained(self.base_model)
        lm = AutoModelForCausalLM.from_pretrained(self.base_model, dtype=self.virtual.dtype)
        self.words = lm.get_input_embeddings()

    @torch.no_grad()
    def prompt_embeds(self, text: str) -> torch.Tensor:
        """(P + T, H): the soft prompt, what begins every text, and the text in the template of training."""
        read = f"{self.before}{text.strip()}{self.after}" if self.before or self.after else text
        ids = self.leading + self.tokenizer(read, add_special_tokens=False)["input_ids"]
        return torch.cat([self.virtual, self.words(torch.tensor(ids))])

    def request(self, text: str, **options: Any) -> dict[str, Any]:
        """The body of a request: vLLM wants the tensor as torch saves it, in base64."""
        saved = io.BytesIO()
        torch.save(self.prompt_embeds(text), saved)
        embeds = base64.b64encode(saved.getvalue()).decode()
        return {"model": self.base_model, "prompt": "", "prompt_embeds": embeds, **options}

    def write(self, text: str, **options: Any) -> str:
        body = json.dumps(self.request(text, **options)).encode()
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{self.url}/completions", body, headers)
        with urllib.request.urlopen(asked) as answer:
            return str(json.load(answer)["choices"][0]["text"])


if __name__ == "__main__":
    print(Client().write(sys.argv[1], max_tokens=30, temperature=0.0))
