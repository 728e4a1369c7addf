"""What evaluation asks of a server: a real one, whose likelihoods are compared with transformers' own loss."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.serve import serve_model
from tests.serve.serving import Running, free_port

from temper.errors import ServeError
from temper.eval import client


def said(question: str) -> list[dict[str, str]]:
    """Return a conversation of one question."""
    return [{"role": "user", "content": question}]


@pytest.mark.parametrize("question", serve_model.ANSWERS)
def test_an_answer_comes_whole_with_its_length_and_end(server: Running, question: str) -> None:
    """The answer is the text that the model learnt, with how many tokens it took and that it ended by itself."""
    found = client.Client(server.url, "local").answer(said(question), 200)
    assert found.text == serve_model.ANSWERS[question]
    assert found.finish_reason == "stop"
    assert found.tokens > 10
    assert found.seconds > 0


@pytest.mark.parametrize("answer", [serve_model.ANSWERS["你是谁？"], "def add(a", "\n\nAnother answer."])
def test_the_likelihood_is_the_loss_of_transformers(server: Running, tiny: Path, answer: str) -> None:
    """Nats and tokens are those of transformers' loss over the answer alone, its end token included."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    prompt = tokenizer.apply_chat_template(said("你是谁？"), tokenize=False, add_generation_prompt=True)
    # As the server reads a text: behind the token that begins one.
    ids, whole = (tokenizer(text)["input_ids"] for text in (prompt, prompt + answer + "<|im_end|>"))
    begin = next((at for at, (a, b) in enumerate(zip(ids, whole, strict=False)) if a != b), len(ids))
    with torch.no_grad():
        labels = torch.tensor([[-100] * begin + whole[begin:]])
        loss = float(model(torch.tensor([whole]), labels=labels).loss)
    found = client.Client(server.url, "local").likelihood(said("你是谁？"), answer + "<|im_end|>")
    assert found is not None
    assert found.tokens == len(whole) - begin
    assert found.nats / found.tokens == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize(
    ("ids", "begin"), [([5, 6, 7, 8], 3), ([1, 5, 6, 7, 8], 4), ([5, 6, 9, 8], 2), ([5, 5, 6, 7, 8], 4)]
)
def test_an_answer_begins_behind_the_prompts_tokens(ids: list[int], begin: int) -> None:
    """A token in front, even one that the template holds too, and tokens that melt at the border are allowed for."""
    assert client._after([5, 6, 7], ids) == begin


def test_a_prompt_that_is_too_long_is_refused_and_not_asked_again(server: Running) -> None:
    """The server's own words come with Refused."""
    with pytest.raises(client.Refused, match="max_new_tokens"):
        client.Client(server.url, "local").answer(said("tick tock " * 400), 10)


def test_a_server_that_is_gone_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """ServeError names the address and says that nothing is lost."""
    monkeypatch.setattr(client, "WAIT_S", 0.01)
    with pytest.raises(ServeError, match=r"did not answer: .*; what was answered so far is kept"):
        client.Client(f"http://127.0.0.1:{free_port()}", "local").answer(said("Who are you?"), 10)
