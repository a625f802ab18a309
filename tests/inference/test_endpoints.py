"""A judge behind an OpenAI-compatible server, over real HTTP."""

import asyncio
import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cai.config.errors import CaiError, RequestRefused
from cai.data.records import Message
from cai.inference.cache import Cache
from cai.inference.cached_engine import CachedEngine
from cai.inference.chat_template import ChatSettings
from cai.inference.endpoints import ServerEngine
from cai.inference.engine import BoundedLogProbs, Choose, Generate
from cai.inference.models import Server, model_fingerprint, resolve_model
from cai.inference.servers import key_variable, resolve_judges, resolve_server

Answer = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]
JUDGING = [Message(role="user", content="A or B?"), Message(role="assistant", content="Answer")]


def completion(text: str, top: dict[str, float] | None, finish: str = "stop") -> dict[str, Any]:
    entries = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in (top or {}).items()]
    logprobs = {"content": [{"token": text, "logprob": 0.0, "bytes": None, "top_logprobs": entries}]} if top else None
    message = {"role": "assistant", "content": text}
    return {
        "id": "1", "object": "chat.completion", "created": 0, "model": "big",
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": logprobs}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }  # fmt: skip


class HttpServer(ThreadingHTTPServer):
    request_queue_size = 256  # connections that wait; more are reset
    daemon_threads = True


class Service:
    """A server whose chat completions are what `answer` says; keeps what it was asked."""

    def __init__(self, models: list[str], port: int = 0) -> None:
        self.models, self.asked, self.keys = models, list[dict[str, Any]](), list[str]()
        self.headers, self.listed = list[dict[str, str]](), list[str]()
        self.tokenized = list[str]()
        self.tokens: dict[str, list[int]] | None = None  # of the texts that /tokenize knows, if there is one
        self.answer: Answer = lambda asked: (200, completion(" A ", {"A": 0.5, " A": 0.1, "B": 0.2, "C": 0.01}))
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.listed.append(self.path)
                if not self.path.startswith("/v1/"):
                    self.reply(404, {"error": {"message": "Not Found"}})
                    return
                self.reply(
                    200,
                    {
                        "object": "list",
                        "data": [{"id": m, "object": "model", "created": 0, "owned_by": "me"} for m in service.models],
                    },
                )

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/tokenize":
                    service.tokenized.append(asked["prompt"])
                    self.reply(*((200, {"tokens": service.tokens[asked["prompt"]]}) if service.tokens else (404, {})))
                    return
                service.asked.append(asked)
                service.keys.append(self.headers["Authorization"])
                service.headers.append(dict(self.headers))
                self.reply(*service.answer(asked))

            def reply(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = HttpServer(("127.0.0.1", port), Handler)
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    opened = Service(["big"])
    yield opened
    opened.close()


def ask(service: Service, *requests: Generate | Choose) -> list[Any]:
    return ask_of(Server.at(service.url, "big"), *requests)


def ask_of(server: Server, *requests: Generate | Choose) -> list[Any]:
    async def all_of_them() -> list[Any]:
        engine = ServerEngine(server, "f")
        try:
            return [await (engine.choose(r) if isinstance(r, Choose) else engine.generate(r)) for r in requests]
        finally:
            await engine.close()

    return asyncio.run(all_of_them())


def test_an_answer_comes_with_its_length_and_why_it_ended(service: Service) -> None:
    service.answer = lambda asked: (200, completion(" It is blue. ", None, "length"))
    (found,) = ask(service, Generate([Message(role="user", content="Why?")], 3, 0.5, 42))
    assert (found.text, found.finish, found.prompt_tokens, found.completion_tokens) == ("It is blue.", "length", 7, 3)
    asked = service.asked[0]
    assert (asked["model"], asked["max_tokens"], asked["temperature"], asked["seed"]) == ("big", 3, 0.5, 42)


def test_an_option_has_the_mass_of_all_its_spellings(service: Service) -> None:
    (found,) = ask(service, Choose(JUDGING, (" A", " B", " D")))
    assert found == pytest.approx([math.log(0.6), math.log(0.2), math.log(0.01)])  # D: at most as likely as the last
    assert service.asked[0]["continue_final_message"] is True
    assert service.asked[0]["messages"] == JUDGING


def exactly(log_probs: dict[int, float]) -> Answer:
    """vLLM's answer about tokens by their numbers, and to all else what `completion` says."""

    def answer(asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if "logprob_token_ids" not in asked:
            return 200, completion("A", {"A": 0.9})
        listed = {f"token_id:{number}": math.exp(log_probs[number]) for number in asked["logprob_token_ids"]}
        return 200, completion("A", listed | {"token_id:99": 0.5})

    return answer


def test_verdicts_are_exact_where_a_server_returns_the_tokens_it_is_asked_for(service: Service) -> None:
    service.tokens, service.answer = {" A": [7, 1], " B": [8]}, exactly({7: -0.25, 8: -12.5})
    found = ask(service, Choose(JUDGING, (" A", " B")), Choose(JUDGING, (" A", " B")))
    assert found == [pytest.approx([-0.25, -12.5])] * 2
    assert not isinstance(found[0], BoundedLogProbs)
    assert [asked["logprob_token_ids"] for asked in service.asked] == [[7, 8], [7, 8]]
    assert service.asked[0]["continue_final_message"] is True
    assert service.tokenized == [" A", " B"]  # once each


@pytest.mark.parametrize("why", ["ignores", "refuses", "begins alike"])
def test_verdicts_come_from_the_likeliest_tokens_elsewhere(service: Service, why: str) -> None:
    service.tokens = {" A": [7], " B": [7] if why == "begins alike" else [8]}

    def answer(asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if why == "refuses" and "logprob_token_ids" in asked:
            return 400, {"error": {"message": "logprob_token_ids: Extra inputs are not permitted"}}
        return 200, completion("A", {"A": 0.6, " B": 0.2} if asked.get("top_logprobs") else None)

    service.answer = answer
    found = ask(service, *[Choose(JUDGING, (" A", " B"))] * 3)
    assert found == [pytest.approx([math.log(0.6), math.log(0.2)])] * 3
    assert sum("logprob_token_ids" in asked for asked in service.asked) == (0 if why == "begins alike" else 1)


def test_a_request_that_is_refused_does_not_end_exact_verdicts(service: Service) -> None:
    service.tokens = {" A": [7], " B": [8]}
    service.answer = lambda asked: (400, {"error": {"message": "maximum context length is 8 tokens"}})

    async def verdicts() -> None:
        engine = ServerEngine(Server.at(service.url, "big"), "f")
        with pytest.raises(RequestRefused, match="maximum context length"):
            await engine.choose(Choose(JUDGING, (" A", " B")))
        service.answer = exactly({7: -0.25, 8: -12.5})
        assert await engine.choose(Choose(JUDGING, (" A", " B"))) == pytest.approx([-0.25, -12.5])
        service.answer, before = lambda asked: (400, {"error": {"message": "no"}}), len(service.asked)
        with pytest.raises(RequestRefused, match="no"):
            await engine.choose(Choose(JUDGING, (" A", " B")))
        assert len(service.asked) == before + 1  # not in another way
        await engine.close()

    asyncio.run(verdicts())


def test_an_option_that_a_server_does_not_list_is_bounded_and_counted(service: Service, tmp_path: Path) -> None:
    service.answer = lambda asked: (200, completion("A", {"A": 0.6, "X": 0.2}))

    async def verdicts() -> list[float]:
        with closing(Cache(tmp_path / "cache.sqlite")) as store:
            engine = CachedEngine("f", store, lambda: ServerEngine(Server.at(service.url, "big"), "f"))
            found = await engine.choose(Choose(JUDGING, (" A", " B")))
            assert isinstance(found, BoundedLogProbs)
            assert engine.tally.bounded == 1
            await engine.close()
        return found

    for _ in range(2):  # the second time from the cache
        assert asyncio.run(verdicts()) == pytest.approx([math.log(0.6), math.log(0.2)])
    assert len(service.asked) == 1


def test_a_server_that_cannot_go_on_with_a_turn_is_asked_without_it_from_then_on(service: Service) -> None:
    def strict(asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if "continue_final_message" in asked:
            return 400, {"error": {"message": "Unrecognized request argument supplied: continue_final_message"}}
        return 200, completion("B", {"A": 0.25, "B": 0.75})

    service.answer = strict
    found = ask(service, Choose(JUDGING, (" A", " B")), Choose(JUDGING, (" A", " B")))
    assert found == [pytest.approx([math.log(0.25), math.log(0.75)])] * 2
    assert [len(asked["messages"]) for asked in service.asked] == [2, 1, 1]


@pytest.mark.slow
def test_a_server_without_log_probabilities_is_no_judge(service: Service) -> None:
    service.answer = lambda asked: (200, completion("A", None))
    with pytest.raises(CaiError, match=r"#big': the server returns no log-probabilities"):
        ask(service, Choose(JUDGING, (" A", " B")))
    service.answer = lambda asked: (400, {"error": {"message": "logprobs is not supported with this model"}})
    with pytest.raises(CaiError, match=r"#big': the server returns no log-probabilities"):
        ask(service, Choose(JUDGING, (" A", " B")))


def test_a_request_that_is_refused_is_one_request_and_other_faults_end_the_run(service: Service) -> None:
    service.answer = lambda asked: (400, {"error": {"message": "maximum context length is 8 tokens"}})
    with pytest.raises(RequestRefused, match="maximum context length"):
        ask(service, Choose(JUDGING, (" A", " B")))
    service.answer = lambda asked: (401, {"error": {"message": "no such key"}})
    with pytest.raises(CaiError, match=r"#big': .*no such key"):
        ask(service, Generate(JUDGING[:1], 3, 0.0, 0))


def test_a_busy_server_is_asked_again(service: Service) -> None:
    def busy(asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return (200, completion("yes", None)) if len(service.asked) > 1 else (503, {"error": {"message": "busy"}})

    service.answer = busy
    assert ask(service, Generate(JUDGING[:1], 3, 0.0, 0))[0].text == "yes"
    assert len(service.asked) == 2


def test_a_servers_model_is_named_by_address_and_name(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_server(service.url) == resolve_server(f"{service.url}#big") == Server.at(service.url, "big")
    with pytest.raises(CaiError, match=r"has no model 'bog'; it has: big$"):
        resolve_server(f"{service.url}#bog")
    service.models.append("small")
    with pytest.raises(CaiError, match=r"has 2 models; name one behind a #: big, small"):
        resolve_server(service.url)
    with pytest.raises(
        CaiError, match=r"the server does not list its models: .*; is it running at this address\? With its .* #"
    ):
        resolve_server("http://127.0.0.1:9/v1")
    bare = service.url.removesuffix("/v1")
    for address in (f"{bare}#big", f"{bare}/#big"):
        with pytest.raises(CaiError, match=rf"status 404: Not Found; did you mean {service.url}#big\?$"):
            resolve_server(address)
    service.models.clear()
    with pytest.raises(CaiError, match=r"the server does not list its models: its list has no models: [^;]*$"):
        resolve_server(service.url)
    assert model_fingerprint(Server.at("http://here/v1", "big")) == model_fingerprint(
        Server.at("http://there/v1", "big")
    )


def test_a_key_goes_to_the_host_it_is_named_for(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "openai-secret")
    monkeypatch.setenv("MINE", "my-secret")
    ask(service, Choose(JUDGING, (" A", " B")))
    assert service.keys == [None]  # OpenAI's key is for OpenAI
    for named in ("MINE", {"127.0.0.1": "MINE", "elsewhere": "OPENAI_API_KEY"}):
        assert resolve_server(service.url, named) == Server.at(service.url, "big", "MINE")
    ask_of(Server.at(service.url, "big", "MINE"), Choose(JUDGING, (" A", " B")))
    assert service.keys[1:] == ["Bearer my-secret"]


def test_openais_key_needs_no_name_at_openai_over_https_alone() -> None:
    assert key_variable("https://api.openai.com/v1", None) == "OPENAI_API_KEY"
    for other in ("http://api.openai.com/v1", "https://api.openai.com.evil.org/v1", "https://evil.org/api.openai.com"):
        assert key_variable(other, None) is None


def test_a_key_that_is_no_variable_is_not_shown(service: Service) -> None:
    with pytest.raises(CaiError, match="expected the name of an environment variable") as error:
        resolve_server(service.url, "sk-the-key-itself")
    assert "sk-the" not in str(error.value)
    with pytest.raises(CaiError, match=r"the environment variable NOT_SET is not set; .* key for 127\.0\.0\.1"):
        resolve_server(service.url, "NOT_SET")


def test_one_key_is_not_sent_to_every_host_of_a_panel(service: Service) -> None:
    with pytest.raises(CaiError, match="the judges are on 2 hosts; name a variable for each"):
        resolve_judges([service.url, "http://elsewhere/v1"], "MINE")


@pytest.mark.parametrize(
    "address", ["http://me:secret@host/v1", "HTTP://secret@host/v1#m", "http://host/v1?key=secret"]
)
@pytest.mark.parametrize("resolve", [lambda name: resolve_judges([name]), resolve_model])
def test_an_address_with_a_secret_is_refused_without_repeating_it(
    address: str, resolve: Callable[[str], object]
) -> None:
    with pytest.raises(CaiError) as error:
        resolve(address)
    assert "host/v1" in str(error.value)
    assert "secret" not in str(error.value)


def test_a_server_that_sends_the_key_back_does_not_get_it_into_a_message(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", "my-secret")
    service.answer = lambda asked: (401, {"error": {"message": "wrong key: my-secret"}})
    with pytest.raises(CaiError, match=r"status 401: wrong key: \[key\]"):
        ask_of(Server.at(service.url, "big", "MINE"), Choose(JUDGING, (" A", " B")))


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_a_thought_that_the_server_parses_is_kept_beside_the_text(service: Service, field: str) -> None:
    def thinking(asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        body = completion("Blue.", None, "stop" if asked["seed"] else "length")
        body["choices"][0]["message"] |= {field: "\nhm\n"} | ({} if asked["seed"] else {"content": None})
        return 200, body

    service.answer = thinking
    question = [Message(role="user", content="Why?")]
    whole, cut = ask(service, Generate(question, 3, 0.5, 1), Generate(question, 3, 0.5, 0))
    assert (whole.text, whole.reasoning) == ("Blue.", "hm")
    assert (cut.text, cut.finish, cut.reasoning) == ("", "length", "hm")


def test_a_thought_that_the_server_leaves_in_the_text_is_taken_off(service: Service) -> None:
    service.answer = lambda asked: (200, completion("hm\n</think>\n\nBlue.", None))
    (found,) = ask(service, Generate([Message(role="user", content="Why?")], 3, 0.5, 1))
    assert (found.text, found.reasoning) == ("Blue.", "hm")


@pytest.mark.parametrize("exact", [False, True])
def test_every_request_has_the_system_prompt_and_the_templates_arguments(service: Service, exact: bool) -> None:
    if exact:
        service.tokens, service.answer = {" A": [7], " B": [8]}, exactly({7: -0.25, 8: -12.5})
    chat = ChatSettings(system_prompt="Be brief.", chat_template_kwargs={"enable_thinking": False})
    engine = ServerEngine(Server.at(service.url, "big"), "judge", chat=chat)

    async def both() -> None:
        await engine.choose(Choose(JUDGING, (" A", " B")))
        service.answer = lambda asked: (200, completion("Blue.", None))
        await engine.generate(Generate(JUDGING[:1], 3, 0.5, 1))
        await engine.close()

    asyncio.run(both())
    system = {"role": "system", "content": "Be brief."}
    assert [asked["messages"] for asked in service.asked] == [[system, *JUDGING], [system, *JUDGING[:1]]]
    assert all(asked["chat_template_kwargs"] == {"enable_thinking": False} for asked in service.asked)
    assert ("logprob_token_ids" in service.asked[0]) == exact
