"""Servers by their addresses: names of models and judges, keys, and what a server says in words.

A key goes to the one host it is meant for, and into no message and no file. Where a server sends it back, an error's
text has `[key]` in its place before it is cut, and an answer or a list of models that holds it is not used: replaced
there, it would be stored as what the model wrote.
"""

import difflib
import json
import os
import re
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from cai.config.errors import CaiError, notice, without_password
from cai.config.hashing import fingerprint
from cai.config.locate import cache_folder
from cai.data.jsonl import write_text
from cai.inference.engine import EngineConfig, UnusableAnswer
from cai.inference.models import (
    SERVER_SCHEMES,
    Address,
    Model,
    Server,
    model_fingerprint,
    resolve_model,
)
from cai.stats.formatting import duration

OPENAI_HOST, OPENAI_KEY = "api.openai.com", "OPENAI_API_KEY"
LIST_SECONDS = 20.0  # for a server's list of models
LARGEST_BODY = 16 * 2**20  # bytes of a response
SHORTEST_SECRET = 8  # characters; shorter keys are stand-ins such as EMPTY, which answers may well contain


@cache
def ssl_context() -> ssl.SSLContext:
    """What httpx checks certificates with: one for all clients, because to read the authorities takes 50 ms."""
    import httpx

    return httpx.create_ssl_context()


def read_json(body: bytes, key: str | None) -> Any:
    """The value of a response. Raises: UnusableAnswer for what holds the key, or is no JSON, with how it begins."""
    try:
        value = json.loads(body)
        holds = key is not None and len(key) >= SHORTEST_SECRET and _in_json(key) in _in_json(value)
    except (ValueError, RecursionError):
        start = one_line(body.decode("utf-8", "replace"), key, 80) or "nothing"
        raise UnusableAnswer(f"the server's response is not JSON; it begins with: {start}") from None
    if holds:
        raise UnusableAnswer("the server's response holds the key that was sent to it, and is not used")
    return value


def _in_json(value: Any) -> str:
    """JSON, of a text without its quotes: a text is in another one where this is in the other's."""
    written = json.dumps(value, ensure_ascii=False)
    return written[1:-1] if isinstance(value, str) else written


def without_key(text: str, key: str | None) -> str:
    """A text with `[key]` in place of the key, also where that is escaped as in an address or in JSON."""
    for form in {key, quote(key), quote(key, safe=""), _in_json(key)} if key else ():
        text = text.replace(form, "[key]")
    return text


def server_message(body: bytes, key: str | None) -> str:
    """What a server says about an error, in one line without the key that was sent to it."""
    text = body.decode("utf-8", "replace")
    try:
        parsed = json.loads(text)
        error = parsed.get("error", parsed) if isinstance(parsed, dict) else parsed
        message = error.get("message", error) if isinstance(error, dict) else error
        text = message if isinstance(message, str) else json.dumps(message)
    except (ValueError, RecursionError):
        pass
    return one_line(text, key) or "no message"


def one_line(text: object, key: str | None, most: int = 300) -> str:
    """A text, or an error, without a key, in one line of so many characters at most."""
    line = " ".join(without_key(str(text), key).split())[:most]
    return line or (type(text).__name__ if isinstance(text, Exception) else "")


def check_address(address: str) -> None:
    """Raises: CaiError for a server's address that is none, or that holds a password or a query, which are secrets."""
    url = address.partition("#")[0]
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if not host:
        raise CaiError(f"model '{without_password(address)}': expected an address such as http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query:
        what = "a password" if "@" in parts.netloc else "a query"
        raise CaiError(
            f"model '{without_password(address)}': the address holds {what}, which would be written to files; keep the "
            "key in an environment variable and name it (key_env)"
        )


def key_variable(url: str, key_env: str | Mapping[str, str] | None) -> str | None:
    """The environment variable with the key for a server's host: the one named for it, or OpenAI's for OpenAI alone.

    Raises: CaiError for what cannot be a variable's name, or names one that is not set.
    """
    host = urlsplit(url).hostname or ""
    named = key_env if isinstance(key_env, str) or key_env is None else key_env.get(host)
    if named is None:
        return OPENAI_KEY if host == OPENAI_HOST and url.startswith("https://") else None
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", named):  # not quoted: it may be the key itself
        raise CaiError("key_env: expected the name of an environment variable such as MY_KEY, not the key itself")
    if not os.environ.get(named):
        raise CaiError(f"key_env: the environment variable {named} is not set; it is to hold the key for {host}")
    return named


def server_key(address: Address) -> str | None:
    """The key for a server, from its environment variable; None without one."""
    return os.environ.get(address.key_env) or None if address.key_env else None


def server_headers(address: Address) -> dict[str, str]:
    """Headers of a request, with the key. Raises: CaiError for a key that no header can hold."""
    key = server_key(address)
    if key is not None and not re.fullmatch(r"[\x21-\x7e]+", key):
        raise CaiError(f"${address.key_env}: expected a key of printable characters without spaces")
    return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})


def resolve_server(address: str, key_env: str | Mapping[str, str] | None = None) -> Server:
    """A server's model from `URL#NAME`, or from the address alone where the server has one model.

    A named model whose server cannot be reached is not `listed`, and checked by `check_listed`.
    Raises: CaiError for an address with a password in it, a key that is not set, or when the server does not list its
    models or has no such model.
    """
    check_address(address)
    url, _, name = address.partition("#")
    place = Address(url, key_variable(url, key_env))
    try:
        known = _models(place, address)
    except _Unreachable as error:
        name = name or _last_name(place, "")
        if not name:
            raise CaiError(f"{error} With its model's name behind a #, cached calls need no server") from None
        return _unlisted(Server((place,), name, listed=False), str(error))
    if not name and len(known) == 1:
        return Server((place,), _kept_name(place, "", known[0]))
    if name in known:
        return Server((place,), name)
    wanted = f"no model '{name}'; it has" if name else f"{len(known)} models; name one behind a #"
    raise CaiError(f"model '{address}': the server has {wanted}: {_near(name, known)}")


def _models(server: Address, address: str) -> list[str]:
    """The names of a server's models, asked for twice at most."""
    problem, hint, kind = "", "", CaiError
    for _ in range(2):
        try:
            return _model_list(server)
        except UnusableAnswer as error:
            problem, hint = str(error), _hint(error, address)
            kind = _Unreachable if isinstance(error, _Down) else CaiError
    raise kind(f"model '{address}': the server does not list its models: {problem}{hint}")


def _name_file(address: Address, name: str) -> Path:
    """Where the name is kept by which a server lists a model that has this name here, or none."""
    return cache_folder() / "servers" / fingerprint("served", address.url, name)


def _kept_name(address: Address, name: str, listed: str) -> str:
    """A name that a server listed, kept for when it is down."""
    if listed != _last_name(address, name):
        with suppress(CaiError, OSError):  # without it, the server has to be up the next time
            path = _name_file(address, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, listed)
    return listed


def _last_name(address: Address, name: str) -> str:
    """The name that a server listed the last time; empty for none."""
    try:
        return _name_file(address, name).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _unlisted(server: Server, problem: str) -> Server:
    """A model that no server lists now, with a warning."""
    end = "" if problem.endswith("?") else "."
    notice(f"warning: {problem}{end} Cached calls need no server; the first that is not cached asks again")
    return server


def require_servers(models: Iterable[Model | None]) -> None:
    """`check_listed` of those on servers, before results are cleared that one which is down could not make again."""
    for model in models:
        if isinstance(model, Server):
            check_listed(model)


def check_listed(server: Server) -> None:
    """Ask again for a model that no server could be asked for. Raises: CaiError where one lacks it, or all are down."""
    if server.listed:
        return
    models, down = _lists(server.addresses)
    if not models:
        raise CaiError(f"model '{server}': a call is not in the cache, and no server can be reached: {'; '.join(down)}")
    for address, names in models.items():
        if server.name not in names:
            raise CaiError(f"model '{server}': {address.url} has no such model; it has {_near(server.name, names)}")


def _lists(addresses: Sequence[Address]) -> tuple[dict[Address, list[str]], list[str]]:
    """The models of the servers that are up, and why each other one cannot be reached."""
    with ThreadPoolExecutor(len(addresses)) as threads:
        lists = dict(zip(addresses, threads.map(_models_if_up, addresses), strict=True))
    models = {address: found for address, found in lists.items() if not isinstance(found, _Down)}
    return models, [f"{address.url}: {found}" for address, found in lists.items() if isinstance(found, _Down)]


def _hint(error: UnusableAnswer, address: str) -> str:
    """What may be wrong with the address of a server that lists no models; empty where that is not known."""
    if isinstance(error, _Down):
        return "; is it running at this address?"
    url, hash_, name = address.partition("#")
    if isinstance(error, _NotFound) and urlsplit(url).path in ("", "/"):
        return f"; did you mean {url.rstrip('/')}/v1{hash_}{name}?"
    return ""


def _model_list(server: Address) -> list[str]:
    import httpx

    end, body = time.monotonic() + LIST_SECONDS, b""
    headers = server_headers(server)
    try:
        with (
            httpx.Client(headers=headers, timeout=LIST_SECONDS, follow_redirects=False, verify=ssl_context()) as client,
            client.stream("GET", f"{server.url.rstrip('/')}/models") as response,
        ):
            for part in response.iter_bytes():
                body += part
                if time.monotonic() > end or len(body) > LARGEST_BODY:
                    raise UnusableAnswer(f"its list is not complete after {duration(LIST_SECONDS)}")
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise _Down(one_line(error, server_key(server))) from None
    return listed_models(response.status_code, body, server_key(server))


def listed_models(status: int, body: bytes, key: str | None) -> list[str]:
    """The names in a server's list of models. Raises: UnusableAnswer for a response that is none, or holds the key."""
    if status != 200:
        down = status == 429 or status >= 500
        kind = _Down if down else _NotFound if status == 404 else UnusableAnswer
        raise kind(f"status {status}: {server_message(body, key)}")
    listed = read_json(body, key)
    data = listed.get("data") if isinstance(listed, dict) else None
    entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    names = [name for entry in entries if isinstance(name := entry.get("id"), str)]
    if not names:
        raise UnusableAnswer(f"its list has no models: {server_message(body, key)}")
    return names


class _Down(UnusableAnswer):
    """A server that cannot be reached, or is not ready."""


class _Unreachable(CaiError):
    """An address whose server cannot be reached, or is not ready."""


class _NotFound(UnusableAnswer):
    """A server that has no list of models at its address."""


def resolve_endpoints(name: str, settings: EngineConfig, key_env: str | Mapping[str, str] | None = None) -> Server:
    """A model on the endpoints of its engine's settings.

    It is asked for by `served_model_name`, else by its name here if a server lists that, else as the only model of
    every server. A server that is down now may come back; all others must have it. With all down, a model that has a
    `served_model_name` is not `listed`.
    Raises: CaiError naming the server that lacks it, does not take the key, or is down with all others.
    """
    addresses = _addresses(settings, key_env)
    models, down = _lists(addresses)
    if not models:
        problem = f"engine.endpoints: no server can be reached: {'; '.join(down)}"
        known_as = settings.served_model_name or next(filter(None, (_last_name(each, name) for each in addresses)), "")
        if not known_as:
            raise CaiError(f"{problem}; with engine.served_model_name, cached calls need no server")
        return _unlisted(Server(tuple(addresses), known_as, listed=False), problem)
    wanted = settings.served_model_name or _kept_name(next(iter(models)), name, _name_on(models, name))
    for address, names in models.items():
        if wanted not in names:
            raise CaiError(
                f"engine.endpoints: {address.url} has no model '{wanted}': it has {_near(wanted, names)}; "
                "engine.served_model_name names the model on the servers"
            )
    for problem in down:
        notice(f"warning: engine.endpoints: {problem}; the other servers get its requests until it is up")
    return Server(tuple(addresses), wanted)


def addresses_of(settings: EngineConfig) -> list[str]:
    """The addresses of an engine's endpoints, without the names of their keys."""
    return [endpoint if isinstance(endpoint, str) else endpoint.url for endpoint in settings.endpoints]


def _addresses(settings: EngineConfig, key_env: str | Mapping[str, str] | None) -> list[Address]:
    addresses = []
    for endpoint in settings.endpoints:
        url = endpoint if isinstance(endpoint, str) else endpoint.url
        if not url.lower().startswith(SERVER_SCHEMES) or "#" in url:
            raise CaiError(
                f"engine.endpoints: '{without_password(url)}': expected an address such as http://localhost:8000/v1; "
                "engine.served_model_name names the model there"
            )
        check_address(url)
        named = key_env if isinstance(endpoint, str) else endpoint.key_env
        addresses.append(Address(url, key_variable(url, named)))
    if len({address.url.rstrip("/") for address in addresses}) < len(addresses):
        raise CaiError("engine.endpoints: one address is there twice; name each server once")
    return addresses


def _models_if_up(address: Address) -> "list[str] | _Down":
    """Raises: CaiError for a server that is up and does not list its models."""
    try:
        return _model_list(address)
    except _Down:
        pass  # once more
    except UnusableAnswer:
        return _models(address, address.url)
    try:
        return _model_list(address)
    except _Down as down:
        return down
    except UnusableAnswer:
        return _models(address, address.url)


def _name_on(models: Mapping[Address, list[str]], name: str) -> str:
    """The name by which servers know a model that has this name here. Raises: CaiError where that is not clear."""
    listed = set().union(*models.values())
    if name in listed:
        return name
    if len(listed) == 1:
        return listed.pop()
    raise CaiError(
        f"engine.endpoints: no server lists '{name}', and they list several models; name one as "
        f"engine.served_model_name: {_near(name, sorted(listed))}"
    )


def _near(name: str, known: Sequence[str]) -> str:
    return ", ".join(difflib.get_close_matches(name, known, n=5, cutoff=0.3) or known[:5]) or "none at all"


def is_address(name: str) -> bool:
    """Whether a model is named by the address of a server."""
    return name.lower().startswith(SERVER_SCHEMES)


def resolve_judges(
    names: Sequence[str], key_env: str | Mapping[str, str] | None = None, engine: EngineConfig | None = None
) -> list[Model]:
    """A judge's folder or server, or a panel's; `key_env` names the key's environment variable, of several by host.

    With endpoints in the settings of their `engine`, models that are no addresses are asked there.
    Raises: CaiError, also when two of a panel are the same model, or one key is named for several hosts.
    """
    endpoints = engine.endpoints if engine else []
    servers = [name for name in names if is_address(name)]
    if endpoints and servers:
        raise CaiError(
            f"model '{without_password(servers[0])}': is on a server, and engine.endpoints names servers too; keep one "
            "of them"
        )
    for server in servers:
        check_address(server)
    hosts = {urlsplit(url).hostname for url in [*servers, *(url for url in endpoints if isinstance(url, str))]}
    if isinstance(key_env, str) and len(hosts) > 1:
        raise CaiError(
            f"judge.key_env: the judges are on {len(hosts)} hosts; name a variable for each, as HOST: VARIABLE"
        )

    def resolve(name: str) -> Model:
        if engine is not None and engine.endpoints:
            return resolve_endpoints(name, engine, key_env)
        return resolve_server(name, key_env) if name in servers else resolve_model(name)

    judges = [resolve(name) for name in names]
    seen: dict[str, str] = {}
    for name, judge in zip(names, judges, strict=True):
        identity = model_fingerprint(judge)
        if identity in seen:
            raise CaiError(f"judge.model: '{seen[identity]}' and '{name}' are the same model; a panel has each once")
        seen[identity] = name
    return judges
