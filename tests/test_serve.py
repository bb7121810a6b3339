"""A baked checkpoint behind a server that knows nothing of soft prompts, asked by a client of OpenAI's."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import pytest
from openai import OpenAI
from test_bake import TEXT, lm_of, prompt_for

from ptlit.bake import Ingredient, bake
from ptlit.data.example import encode
from ptlit.data.templates import Template
from ptlit.lm import FrozenLM
from ptlit.prompt import EmbeddingPrompt
from ptlit.prompted_lm import PromptedLM

MOOD = Template("Tweet: {text}\nMood:")
NEW_TOKENS = 12


class Served(NamedTuple):
    lm: FrozenLM
    prompts: dict[str, EmbeddingPrompt]
    prefixes: dict[str, str]
    client: OpenAI
    model: str

    def ours(self, name: str, text: str) -> str:
        row = self.lm.tokenizer(text, return_tensors="pt")
        ids = PromptedLM(self.lm, self.prompts[name]).generate(
            row["input_ids"], row["attention_mask"], max_new_tokens=NEW_TOKENS, do_sample=False
        )
        new = ids[0, row["input_ids"].shape[1] :]
        return str(self.lm.tokenizer.decode(new, skip_special_tokens=True))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("baked")
    lm = lm_of("llama")
    prompts = {"free": prompt_for(lm, seed=1), "mood": prompt_for(lm, "ptuning_mlp", seed=2)}
    ingredients = {"free": Ingredient(prompts["free"]), "mood": Ingredient(prompts["mood"], MOOD)}
    baked = bake(lm, ingredients, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = (folder.parent / "serve.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "transformers.cli.transformers", *words],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=log,
        stderr=log,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, Path(log.name))
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
            yield Served(lm, prompts, {each.name: each.prefix for each in baked.prompts}, client, str(folder))
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except URLError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


@pytest.mark.parametrize("name", ["free", "mood"])
def test_text_behind_its_prefix(served: Served, name: str) -> None:
    answer = served.client.completions.create(
        model=served.model, prompt=served.prefixes[name] + TEXT, max_tokens=NEW_TOKENS, temperature=0
    )
    assert answer.choices[0].text == served.ours(name, TEXT)


def test_chats_by_the_name_of_the_prompt(served: Served) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": TEXT}]
    asked = {"model": served.model, "max_tokens": NEW_TOKENS, "temperature": 0}
    answer = served.client.chat.completions.create(messages=messages, **asked)
    read = served.lm.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert answer.choices[0].message.content == served.ours("free", read.removeprefix("<bos>"))

    named = {"chat_template_kwargs": {"prompt": "mood"}}
    answer = served.client.chat.completions.create(messages=messages[1:], extra_body=named, **asked)
    read = served.lm.tokenizer.decode(encode(MOOD.example(TEXT), served.lm.tokenizer, 99)["input_ids"])
    assert answer.choices[0].message.content == served.ours("mood", read.removeprefix("<bos>"))
