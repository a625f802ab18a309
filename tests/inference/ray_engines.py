"""Engines for Ray replicas; a replica imports this module and opens one."""

import asyncio
import ctypes
import os
from pathlib import Path

from cai.config.errors import CaiError, RequestRefused
from cai.inference.chat import ControlTokenRefused
from cai.inference.engine import Completion, Engine, EngineConfig, Generate, ScriptedEngine, UnusableAnswer


class Slow(ScriptedEngine):
    """Answers after a tenth of a second, and a text that begins with `later` after three seconds."""

    async def generate(self, request: Generate) -> Completion:
        await asyncio.sleep(3.0 if request.messages[-1]["content"].startswith("later") else 0.1)
        return await super().generate(request)


class Faulty(ScriptedEngine):
    """Does what the last message says, or answers; after a tenth of a second if that begins with `slow`."""

    async def generate(self, request: Generate) -> Completion:
        match request.messages[-1]["content"]:
            case "refuse":
                raise RequestRefused("too long", retryable=False)
            case "control":
                raise ControlTokenRefused("a control token")
            case "unusable":
                raise UnusableAnswer("NaN")
            case "cancel":
                raise asyncio.CancelledError
            case "die":
                os._exit(1)
            case "stop":
                raise CaiError("vLLM stopped")
            case "pid":
                return Completion(str(os.getpid()), "stop", 1, 1)
            case "threads":
                return Completion(os.environ["OMP_NUM_THREADS"], "stop", 1, 1)
            case "requests":
                return Completion(str(len(self.requests)), "stop", 1, 1)
            case "hang":
                ctypes.PyDLL(None).sleep(60)  # with Python's lock held, as a driver's call may
            case "later":
                await asyncio.sleep(1.5)
            case text if text.startswith("slow"):
                await asyncio.sleep(0.1)
        return await super().generate(request)


class Unloadable(ScriptedEngine):
    """A model that does not load."""

    async def generate(self, request: Generate) -> Completion:
        raise CaiError("out of memory; lower engine.max_model_len")


def varied(model: Path, fingerprint: str, settings: EngineConfig) -> Engine:
    """Texts that differ, so that there is something to judge, after a moment each."""

    def answer(request: Generate) -> str:
        return f"{request.seed} words that answer {request.messages[-1]['content'][:20]}"

    return ScriptedEngine(fingerprint, answer, delay=0.01)


def slow(model: Path, fingerprint: str, settings: EngineConfig) -> Engine:
    return Slow(fingerprint)


def faulty(model: Path, fingerprint: str, settings: EngineConfig) -> Engine:
    return Faulty(fingerprint)


def unloadable(model: Path, fingerprint: str, settings: EngineConfig) -> Engine:
    return Unloadable(fingerprint)


def dying(model: Path, fingerprint: str, settings: EngineConfig) -> Engine:
    os._exit(1)
