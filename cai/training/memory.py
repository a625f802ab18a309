"""How much memory a stage takes, by parts, from its settings and the shape of its model. Imports no torch.

A process holds weights, adapters, gradients and optimizer states all the time (Rajbhandari et al. 2020, "ZeRO",
arXiv:1910.02054 §3), and activations in proportion to tokens and layers (Korthikanti et al. 2022, arXiv:2205.05198
§4.1).
The parts are not all there at once, so each has its size at three moments, and the largest sum is the peak:

- sampling: an online stage writes its answers, with a cache of keys and values;
- loss: the forward pass is over, its activations are all there, and the gradient of the logits is computed;
- update: the backward pass has reached the first layer, and all gradients are there.

Counted are the tensors that cai's own trainers, trl's and transformers' models keep, at the settings' full batch and
length. Not counted: Python with its libraries (0.6 GB), CUDA's context (0.5 to 1 GB), and freed memory that an
allocator keeps.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from cai.config.errors import CaiError
from cai.stats.formatting import percent
from cai.training.model_shape import Linear, ModelShape
from cai.training.settings import (
    DPOConfig,
    GRPOConfig,
    KTOConfig,
    Online,
    OnlineDPOConfig,
    ORPOConfig,
    PPOConfig,
    RewardConfig,
    RLOOConfig,
    SFTConfig,
    TrainConfig,
)

MOMENTS = SAMPLING, LOSS, UPDATE = "sampling", "loss", "update"
FLOAT, HALF = 4, 2  # bytes
PAIR = 2  # answers of a preference, or to a prompt of online DPO
TILE_ROWS, TILE_COLUMNS = 4096, 32768  # tokens × vocabulary of the logits that trl 1.16 holds at a time
TILES_ON_CPU = 8.25  # of them, of which one is of booleans, that trl's gradient of a tile takes without Triton
LOGITS = 3  # copies in the gradient of a cross-entropy: the log-probabilities, their gradient and that of the logits
ENTROPY_LOGITS = 2  # copies more where the loss holds the entropy: probabilities and logits
SAMPLED_LOGITS = 4  # copies to draw a token: logits, over temperature, probabilities and their sums
SCORED = 16  # conversations that a reward model reads at once
OPTIMIZERS = {
    "adamw_torch": 8, "adamw_torch_fused": 8, "adamw_torch_xla": 8, "adamw_apex_fused": 8, "adamw_anyprecision": 8,
    "paged_adamw": 8, "paged_adamw_32bit": 8, "adamw_8bit": 2, "adamw_bnb_8bit": 2, "adamw_torch_8bit": 2,
    "paged_adamw_8bit": 2, "adamw_torch_4bit": 1, "lion": 4, "lion_32bit": 4, "paged_lion": 4, "paged_lion_32bit": 4,
    "lion_8bit": 1, "paged_lion_8bit": 1, "rmsprop": 4, "adagrad": 4, "adafactor": 0, "sgd": 0,
}  # fmt: skip
"""Bytes of states for each trained parameter, by `optim` of transformers; AdamW's are two moments in float32."""
QUANTIZED = {"4bit": (4 + 0.127) / 8, "8bit": 1.0}
"""Bytes of a weight; NF4's constants, quantized too, take 0.127 bits (Dettmers et al. 2023, arXiv:2305.14314 §3)."""
UNEXPANDED = ("flash_attention_2", "flash_attention_3", "flex_attention")  # with kernels for grouped keys and padding


class RewardMemory(NamedTuple):
    """Bytes of the reward models of an online stage: of those that cai trained, which FSDP shards, and of others."""

    trained: int
    others: int = 0
    note: str = ""


class Part(NamedTuple):
    """Something that takes memory: bytes by moment, and what it is of."""

    name: str
    at: Mapping[str, int]
    note: str = ""


class Estimate(NamedTuple):
    """The memory of one process by parts."""

    moments: tuple[str, ...]
    parts: tuple[Part, ...]

    def total(self, moment: str) -> int:
        """Bytes at a moment."""
        return sum(part.at.get(moment, 0) for part in self.parts)

    @property
    def peak(self) -> int:
        """Bytes at the moment that takes most."""
        return max(map(self.total, self.moments))


def estimate(settings: TrainConfig, shape: ModelShape, gpus: int = 0, reward: RewardMemory | None = None) -> Estimate:
    """The memory of one process of a stage, at its largest batch.

    Args: `gpus` processes with a GPU each, 0 for one on the CPU; `reward` of an online stage, None for one LoRA trained
    from the same model.
    Raises: CaiError for an optimizer whose states are not known, and a LoRA on no layer.
    """
    return _Process(settings, shape, gpus, reward).estimate()


@dataclass(frozen=True)
class _Process:
    """One process of a stage; sizes in bytes unless they say otherwise."""

    settings: TrainConfig
    shape: ModelShape
    gpus: int
    reward: RewardMemory | None

    def estimate(self) -> Estimate:
        """All parts, those that take nothing left out."""
        moments = MOMENTS if isinstance(self.settings, Online) else (LOSS, UPDATE)
        parts = (Part(p.name, {m: p.at.get(m, 0) for m in moments}, p.note) for p in self._parts())
        return Estimate(moments, tuple(part for part in parts if any(part.at.values())))

    def _parts(self) -> Iterator[Part]:
        yield from self._standing()
        yield from self._learning()
        if isinstance(self.settings, Online):
            yield from self._sampling(self.settings)

    @property
    def sharded(self) -> bool:
        """Whether FSDP2 divides what stands all the time among the processes."""
        return self.settings.fsdp and self.gpus > 1

    def _standing(self) -> Iterator[Part]:
        settings, shape = self.settings, self.shape
        held = shape.parameters - (shape.embedding if isinstance(settings, RewardConfig) and not shape.tied else 0)
        kind = settings.quantization or ("float32" if self.weight_bytes == FLOAT else "bfloat16")
        layers = shape.layers * shape.layer_parameters if settings.quantization else 0
        weights = layers * QUANTIZED.get(kind, 0) + (held - layers) * self.weight_bytes
        yield self._always("weights", weights, f"{held / 1e6:,.0f} M parameters, {kind}")
        if self._has_reference:
            yield self._always("reference", held * FLOAT, "a second copy of the weights")
        if self._separate_model:
            yield self._always("value model", held * FLOAT, "a copy of its own")
        if self.adapters:
            number = "two, policy and value" if self._adapters_of_policy == PAIR else f"rank {settings.lora_r}"
            yield self._always("LoRA", self.adapters * FLOAT, f"{self.adapters / 1e6:,.1f} M parameters, {number}")
        yield self._always("optimizer", self.trained * self._state_bytes, f"{self._state_bytes} bytes a trained weight")
        if reward := self._reward():
            share = reward.trained // (self.gpus if self.sharded else 1)
            yield Part("reward model", dict.fromkeys(MOMENTS, share + reward.others), reward.note)
        if self.gpus > 1 and not self.sharded and not isinstance(settings, PPOConfig):
            yield self._always("DDP", self.trained * FLOAT, "buckets of gradients")

    def _always(self, name: str, size: float, note: str) -> Part:
        size /= self.gpus if self.sharded else 1
        note += f", 1/{self.gpus} here" if self.sharded else ""
        return Part(name, dict.fromkeys(MOMENTS, round(size)), note)

    @property
    def weight_bytes(self) -> int:
        """Of a parameter below a LoRA, or trained."""
        small = self.settings.dtype == "bfloat16" or (self.settings.dtype == "auto" and self.gpus > 0)
        return HALF if small and self.settings.lora_r is not None else FLOAT

    @property
    def compute_bytes(self) -> int:
        """Of a number in a linear layer: on a GPU autocast makes it bfloat16."""
        return HALF if self.gpus or self.weight_bytes == HALF else FLOAT

    @property
    def targets(self) -> list[Linear]:
        """The layers of a block that have a LoRA."""
        names = self.settings.lora_target_modules
        if self.settings.lora_r is None:
            return []
        if names == "all-linear":
            return list(self.shape.linear)
        ends, layers = {name.rpartition(".")[2] for name in names}, self.shape.linear
        if found := [linear for linear in layers if linear.name in ends]:
            return found
        known = ", ".join(layer.name for layer in layers)
        raise CaiError(f"lora_target_modules: {', '.join(names)}: not among {known}")

    @property
    def adapters(self) -> int:
        """Parameters of the trained LoRAs: rank × (inputs + outputs) of each target (Hu et al. 2021 §4.1)."""
        width = sum(linear.inputs + linear.outputs for linear in self.targets)
        return self._adapters_of_policy * (self.settings.lora_r or 0) * width * self.shape.layers

    @property
    def _separate(self) -> bool:
        return isinstance(self.settings, PPOConfig) and self.settings.value == "separate"

    @property
    def _adapters_of_policy(self) -> int:
        return 1 + self._separate

    @property
    def _learns_answers(self) -> bool:
        """Whether PPO learns answers of a file, after a step's rollouts."""
        return isinstance(self.settings, PPOConfig) and self.settings.ptx is not None

    @property
    def _separate_model(self) -> bool:
        return self._separate and self.settings.lora_r is None

    @property
    def _has_reference(self) -> bool:
        """Whether a second copy of the weights stays for the KL; with a LoRA it is the weights below."""
        settings = self.settings
        if settings.lora_r is not None:
            return False
        if isinstance(settings, RLOOConfig | GRPOConfig):
            return settings.beta > 0
        return isinstance(settings, PPOConfig | OnlineDPOConfig)  # dpo and kto compute its log-probabilities before

    @property
    def trained(self) -> int:
        """Parameters that the optimizer changes."""
        if self.settings.lora_r is not None:
            return self.adapters
        return self.shape.parameters * (1 + self._separate_model)

    @property
    def _state_bytes(self) -> int:
        name = getattr(self.settings, "trl", {}).get("optim", "adamw_torch")
        if name not in OPTIMIZERS:
            raise CaiError(f"trl.optim: the states of {name} are not known; known are {', '.join(OPTIMIZERS)}")
        return OPTIMIZERS[name]

    def _reward(self) -> RewardMemory | None:
        if not isinstance(self.settings, Online) or self.reward is not None:
            return self.reward
        trained = reward_of_stage(RewardConfig(stage="reward"), self.settings, self.shape)
        return trained._replace(note=f"assumed: {trained.note}")

    @property
    def sequences(self) -> int:
        """In a forward pass."""
        batch = self.settings.per_device_train_batch_size
        return batch * (
            PAIR if isinstance(self.settings, DPOConfig | RewardConfig | ORPOConfig | OnlineDPOConfig) else 1
        )

    @property
    def tokens(self) -> int:
        """In a forward pass, at the settings' length."""
        return self.sequences * self.settings.max_length

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again; by default on a GPU."""
        if self.settings.gradient_checkpointing is not None or isinstance(self.settings, OnlineDPOConfig):
            return bool(self.settings.gradient_checkpointing)
        return self.gpus > 0 and not (self._separate and self.settings.lora_r is not None)

    @property
    def hidden_bytes(self) -> int:
        """Of a number between layers: in the type of the embedding, which FSDP2 gathers in bfloat16."""
        return self.compute_bytes if self.sharded else self.weight_bytes

    @property
    def padded(self) -> bool:
        """Whether a batch has a mask: texts of one length have none."""
        return self.sequences > 1

    def _layer(self) -> int:
        """Activations that one layer keeps for the backward pass.

        Korthikanti et al. 2022 count the tensors of a layer of GPT-3; here they are those of a layer with RMSNorm,
        gated MLP and grouped keys as transformers computes it. A frozen linear layer keeps no input, its LoRA does.
        """
        s, c, full = self.shape, self.compute_bytes, self.settings.lora_r is None
        normed = s.norms * s.hidden + (s.queries + s.keys if s.query_norms else 0)
        token = normed * FLOAT * (2 if full else 1) + s.norms * FLOAT  # inputs in float32, and scaled ones
        spread = self._attention not in UNEXPANDED and (self.padded or self._attention == "eager")
        keys = s.queries if spread else s.keys  # keys and values are repeated for each query where there is a mask
        token += c * (2 * s.queries + 2 * keys)  # queries, keys, values and output
        token += c * 3 * s.intermediate  # gate, its activation, and what that multiplies
        token += self._linear_inputs()
        square = 0
        if self._attention == "eager":
            square = s.heads * (FLOAT + (HALF if c == HALF else 0))
        elif self._attention not in UNEXPANDED:
            token += s.heads * FLOAT  # the logarithm of each softmax's sum
            square = c if self.padded else 0  # the mask as numbers
        return round(self.tokens * token) + self.sequences * self.settings.max_length**2 * square

    def _linear_inputs(self) -> int:
        """Bytes a token that the linear layers of a layer keep beside what others keep."""
        settings, copied = self.settings, self.compute_bytes != self.hidden_bytes or bool(self.gpus)
        kept = list(self.shape.linear) if settings.lora_r is None else self.targets
        ranks = 0 if settings.lora_r is None else settings.lora_r * self.compute_bytes * len(kept)
        if settings.lora_r is None:
            attended = [linear for linear in kept if linear.name != "o_proj"]
        else:
            attended = kept if copied else [linear for linear in kept if linear.name != "o_proj"]
        dropped = getattr(settings, "lora_dropout", 0.0) > 0 and settings.lora_r is not None
        if dropped:  # each target reads a copy of its own, and its mask
            return ranks + sum(linear.inputs * (self.compute_bytes + 1) for linear in kept)
        if copied:  # each casts its input itself
            return ranks + sum(linear.inputs * self.compute_bytes for linear in attended)
        distinct = {_reads(linear): linear.inputs for linear in attended}
        return ranks + sum(distinct.values()) * self.compute_bytes

    @property
    def _attention(self) -> str:
        return self.settings.attn_implementation or ("eager" if self.shape.softcapped else "sdpa")

    def _activations(self) -> tuple[int, str]:
        """(what all layers keep, how they do): their inputs alone where the rest is computed again."""
        s, tokens = self.shape, f"{self.sequences} × {self.settings.max_length:,} tokens"
        outside = self.tokens * s.hidden * (self.hidden_bytes + FLOAT * (2 if self.settings.lora_r is None else 1))
        if self.checkpointing:
            return s.layers * self.tokens * s.hidden * self.hidden_bytes + outside, f"{tokens}, layers' inputs alone"
        layers = s.layers * self._layer()
        if self.settings.lora_r is not None:  # nothing is trained before the first layer's adapters
            layers -= self.tokens * (s.hidden + 1) * FLOAT
        passes = 2 if self._separate else 1  # the policy's, and that of the value function
        return passes * (layers + outside), tokens + (", policy and value" if passes == 2 else "")

    def _learning(self) -> Iterator[Part]:
        settings, shape = self.settings, self.shape
        kept, how = self._activations()
        layer, gradients = self._layer(), self.trained * FLOAT // (self.gpus if self.sharded else 1)
        yield Part("activations", {LOSS: kept, UPDATE: layer}, how)
        copies = shape.layers * shape.layer_parameters * HALF * (1 + self._separate_model)
        if not self.gpus or settings.lora_r is not None or self.sharded:
            copies = 0  # a frozen weight has the type already, and FSDP gathers it so
        work, what = self._at_work(layer, copies)
        yield Part("at work", {LOSS: work}, what)
        if not self.checkpointing:  # else they end with the forward pass
            yield Part("autocast", {LOSS: copies}, "weights in bfloat16")
        held = gradients if settings.gradient_accumulation_steps > 1 or self._learns_answers else 0
        yield Part("gradients", {LOSS: held, UPDATE: gradients}, "float32")
        if self.gpus and isinstance(settings, PPOConfig):
            yield Part("AdamW", {UPDATE: gradients}, "all updates at once")
        if self.sharded:
            outside = shape.embedding * (1 if shape.tied else 2)
            size = (2 * shape.layer_parameters + outside) * self.hidden_bytes
            yield Part("gathered", dict.fromkeys(MOMENTS, size), "two layers, embedding and head")

    def _at_work(self, layer: int, copies: int) -> tuple[int, str]:
        """(the most that a part of the passes takes for itself, of what); `copies` are autocast's of all weights."""
        logits, of_logits = self._logits()
        again = layer if self.checkpointing else 0
        backward = 2 * self.tokens * self.shape.intermediate * self.compute_bytes + again  # 3, what one read is free
        if self.settings.quantization:  # the largest weight, as its layer computes with it
            backward += max(linear.inputs * linear.outputs for linear in self.shape.linear) * self.compute_bytes
        forward = copies + logits if self.checkpointing and copies else 0
        return max(
            (logits, of_logits),
            (backward, "one layer, computed again" if again else "gradients in the MLP"),
            (forward, "weights in bfloat16, logits"),
        )

    def _logits(self) -> tuple[int, str]:
        """(the most that the logits and their gradient take, of what)."""
        settings, shape = self.settings, self.shape
        if isinstance(settings, RewardConfig):
            return 0, ""
        if isinstance(settings, SFTConfig | DPOConfig | KTOConfig | RLOOConfig | GRPOConfig):
            rows = min(self.sequences * (settings.max_length - 1), TILE_ROWS)
            states = self.tokens * shape.hidden * FLOAT
            head = shape.embedding * FLOAT if settings.lora_r is None else 0
            columns = TILE_COLUMNS if self.gpus else min(shape.vocabulary, TILE_COLUMNS)
            tile = rows * columns * self.compute_bytes
            size = tile * (1 if self.gpus else TILES_ON_CPU)
            return round(size) + states + head, f"logits of {rows:,} × {columns:,} at a time"
        answer = settings.max_length
        if isinstance(settings, PPOConfig | OnlineDPOConfig) and not self._learns_answers:
            answer = settings.max_tokens
        copies = LOGITS + (ENTROPY_LOGITS if getattr(settings, "entropy_coef", 0) else 0)
        size = self.sequences * answer * shape.vocabulary * FLOAT * copies
        if isinstance(settings, OnlineDPOConfig):  # reads the prompt's logits as well, and has a gradient of 0 for them
            size += self.tokens * shape.vocabulary * FLOAT
        return size, f"logits of {self.sequences} × {answer:,} × {shape.vocabulary:,}"

    def _sampling(self, settings: Any) -> Iterator[Part]:
        shape, prompt = self.shape, max(1, settings.max_length - settings.max_tokens)
        rows, cached = self._rows(settings), shape.keys * (self.compute_bytes + self.hidden_bytes) * shape.layers
        cache = rows * settings.max_length * cached
        if getattr(settings, "use_vllm", False):
            size = HALF if self.gpus else FLOAT
            share = f"; takes {percent(settings.vllm_gpu_memory_utilization)} of a GPU" if self.gpus else ""
            note = f"weights, keys, values{share}"
            held = shape.parameters * size + rows * settings.max_length * 2 * shape.keys * shape.layers * size
            yield Part("vLLM", dict.fromkeys(MOMENTS, held), note)
            read, growing = 0, 0
        else:
            read = self._reading(rows, prompt) - rows * settings.max_tokens * cached
            growing = rows * (settings.max_length * 2 * shape.queries * self.compute_bytes
                              + shape.vocabulary * SAMPLED_LOGITS * FLOAT)  # fmt: skip
            yield Part("keys, values", {SAMPLING: cache}, f"{rows} × {settings.max_length:,} tokens")
        score = self._reading(min(rows, SCORED), settings.max_length) - (0 if read == growing == 0 else cache)
        yield Part("reading", {SAMPLING: max(read, growing, score, 0)}, f"a layer's states, logits of {rows}")

    def _rows(self, settings: Any) -> int:
        """Answers sampled together by this process."""
        if isinstance(settings, PPOConfig):
            return -(-settings.rollouts // max(1, self.gpus))
        batch: int = settings.per_device_train_batch_size
        if isinstance(settings, OnlineDPOConfig):
            return batch * PAIR
        return batch * int(settings.gradient_accumulation_steps)

    def _reading(self, rows: int, length: int) -> int:
        """The most that one layer takes to read texts without gradients."""
        s = self.shape
        token = 3 * s.intermediate * self.compute_bytes + 3 * s.hidden * self.hidden_bytes
        square = s.heads * 3 * FLOAT if self._attention == "eager" else self.compute_bytes + 1
        attention = rows * length * (4 * s.queries * self.compute_bytes + 2 * s.hidden * self.hidden_bytes)
        return max(rows * length * token, attention + rows * length**2 * square)


def _reads(linear: Linear) -> str:
    """What a linear layer reads, so that those that read the same keep it once."""
    if linear.name.startswith(("q_", "k_", "v_", "qkv")):
        return "attention"
    return "mlp" if "gate" in linear.name or "up" in linear.name else linear.name


def reward_of_stage(trained: RewardConfig, settings: TrainConfig, shape: ModelShape) -> RewardMemory:
    """What the reward model holds that a stage `trained` from the same model, in the online stage of `settings`."""
    adapters = _Process(trained, shape, 0, None).adapters * FLOAT * trained.members
    return rewarding(settings, shape, adapters, shared=trained.lora_r is not None)


def rewarding(settings: TrainConfig, base: ModelShape, adapters: int, shared: bool) -> RewardMemory:
    """PPO with a LoRA reads its rewards through the policy's own weights; others load the reward model's base."""
    if shared and isinstance(settings, PPOConfig) and settings.lora_r is not None:
        return RewardMemory(adapters, 0, "LoRA on the policy's weights")
    size = base.parameters * FLOAT + adapters
    return RewardMemory(size, 0, f"{base.parameters / 1e6:,.0f} M parameters, float32")
