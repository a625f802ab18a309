"""Servers by their addresses: names of models and judges, keys, and what a server says in words.

A key goes to the one host it is meant for, and into no message.
"""

import difflib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from cai.config.errors import CaiError
from cai.inference.engine import UnusableAnswer
from cai.inference.models import (
    SERVER_SCHEMES,
    Address,
    Model,
    Server,
    model_fingerprint,
    resolve_model,
    without_password,
)
from cai.stats.formatting import duration

OPENAI_HOST, OPENAI_KEY = "api.openai.com", "OPENAI_API_KEY"
LIST_SECONDS = 20.0  # for a server's list of models
LARGEST_BODY = 16 * 2**20  # bytes of a response


def read_json(body: bytes) -> Any:
    """The value of a response. Raises: UnusableAnswer for what is no JSON, with how it begins."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        start = one_line(body[:80].decode("utf-8", "replace")) or "nothing"
        raise UnusableAnswer(f"the server's response is not JSON; it begins with: {start}") from None


def server_message(body: bytes) -> str:
    """What a server says about an error, in one line."""
    text = body.decode("utf-8", "replace")
    try:
        parsed = json.loads(text)
        error = parsed.get("error", parsed) if isinstance(parsed, dict) else parsed
        message = error.get("message", error) if isinstance(error, dict) else error
        text = message if isinstance(message, str) else json.dumps(message)
    except (ValueError, RecursionError):
        pass
    return one_line(text) or "no message"


def one_line(text: object) -> str:
    """A text, or an error, in one line of at most 300 characters."""
    return " ".join(str(text).split())[:300] or (type(text).__name__ if isinstance(text, Exception) else "")


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
            "key in an environment variable and name it (judge.key_env)"
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
        raise CaiError("judge.key_env: expected the name of an environment variable such as MY_KEY, not the key itself")
    if not os.environ.get(named):
        raise CaiError(f"judge.key_env: the environment variable {named} is not set; it is to hold the key for {host}")
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

    Raises: CaiError for an address with a password in it, a key that is not set, or when the server does not list its
    models or has no such model.
    """
    check_address(address)
    url, _, name = address.partition("#")
    place = Address(url, key_variable(url, key_env))
    known = _models(place, address)
    if name in known or (not name and len(known) == 1):
        return Server((place,), name or known[0])
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.3) or known[:5]
    wanted = f"the server has no model '{name}'" if name else f"the server has {len(known)} models; name one behind a #"
    raise CaiError(f"model '{address}': {wanted}: {', '.join(near) or 'none at all'}")


def _models(server: Address, address: str) -> list[str]:
    """The names of a server's models, asked for twice at most."""
    problem = ""
    for _ in range(2):
        try:
            return _model_list(server)
        except UnusableAnswer as error:
            problem = str(error)
    key = server_key(server)
    problem = problem.replace(key, "[key]") if key else problem
    raise CaiError(f"model '{address}': the server does not list its models: {problem}")


def _model_list(server: Address) -> list[str]:
    import httpx

    end, body = time.monotonic() + LIST_SECONDS, b""
    try:
        with (
            httpx.Client(headers=server_headers(server), timeout=LIST_SECONDS, follow_redirects=False) as client,
            client.stream("GET", f"{server.url.rstrip('/')}/models") as response,
        ):
            for part in response.iter_bytes():
                body += part
                if time.monotonic() > end or len(body) > LARGEST_BODY:
                    raise UnusableAnswer(f"its list is not complete after {duration(LIST_SECONDS)}")
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise UnusableAnswer(one_line(error)) from None
    return listed_models(response.status_code, body)


def listed_models(status: int, body: bytes) -> list[str]:
    """The names in a server's list of models. Raises: UnusableAnswer for a response that is none."""
    if status != 200:
        raise UnusableAnswer(f"status {status}: {server_message(body)}")
    listed = read_json(body)
    data = listed.get("data") if isinstance(listed, dict) else None
    entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    names = [name for entry in entries if isinstance(name := entry.get("id"), str)]
    if not names:
        raise UnusableAnswer(f"its list has no models: {server_message(body)}")
    return names


def resolve_judges(names: Sequence[str], key_env: str | Mapping[str, str] | None = None) -> list[Model]:
    """A judge's folder or server, or a panel's; `key_env` names the key's environment variable, of several by host.

    Raises: CaiError, also when two of a panel are the same model, or one key is named for several hosts.
    """
    servers = [name for name in names if name.lower().startswith(SERVER_SCHEMES)]
    for server in servers:
        check_address(server)
    hosts = {urlsplit(server).hostname for server in servers}
    if isinstance(key_env, str) and len(hosts) > 1:
        raise CaiError(
            f"judge.key_env: the judges are on {len(hosts)} hosts; name a variable for each, as HOST: VARIABLE"
        )
    judges: list[Model] = [resolve_server(name, key_env) if name in servers else resolve_model(name) for name in names]
    seen: dict[str, str] = {}
    for name, judge in zip(names, judges, strict=True):
        identity = model_fingerprint(judge)
        if identity in seen:
            raise CaiError(f"judge.model: '{seen[identity]}' and '{name}' are the same model; a panel has each once")
        seen[identity] = name
    return judges
