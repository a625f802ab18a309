"""Policy, reference and value function of PPO over as few copies of the weights as possible. Imports torch."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cai.config.errors import CaiError
from cai.training import distributed, sharding
from cai.training.ppo.sampling import Batch, plain_weights
from cai.training.reward_model import classifier, read_about, read_member, shares_weights
from cai.training.settings import PPOConfig
from cai.training.trl_stage import lora_config, merged_into_plain, model_options


class Evaluated(NamedTuple):
    """Outputs of a forward pass for the response tokens, each of shape (sequences, tokens)."""

    logps: Tensor
    values: Tensor
    entropy: Any  # a Tensor too, or None without `with_entropy`


class Actor:
    """With LoRA one copy of the weights serves all: the reference is the adapter switched off, and a separate value
    function has an adapter of its own. Without LoRA the reference and a separate value function are copies.
    """

    def __init__(
        self, folder: Path, settings: PPOConfig, reference: Path | None = None, reward: Path | None = None
    ) -> None:
        """Load the policy that training starts from, and the `reference` of the KL where that is another one.

        `reward` is the reward model that a separate value function starts as.
        Raises: CaiError where its weights do not fit the policy's.
        """
        from transformers import AutoModelForCausalLM

        self.device, self._temperature = distributed.device(), settings.temperature
        self._separate, self._quantized = settings.value == "separate", settings.quantization is not None
        self._start = folder, settings

        where = "cpu" if settings.fsdp else self.device  # `shard` takes the weights to the device, layer by layer

        def load(path: Path) -> Any:
            model = AutoModelForCausalLM.from_pretrained(path, **model_options(settings, path))
            return model if self._quantized else model.to(where)  # a quantized one is there, and cannot be moved

        model = load(folder)
        self._reference: Any = None if reference is None else load(reference).requires_grad_(False).eval()
        self._value_model: Any = None
        self.value_head = torch.nn.Linear(model.config.get_text_config().hidden_size, 1).to(where)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)
        self.peft: Any = None
        if (lora := lora_config(settings)) is not None:
            from peft import get_peft_model

            self.peft = get_peft_model(model, lora, adapter_name="policy")
            if self._separate:
                self._add_value_adapter(lora_config(settings), folder, reward)
            self.peft.set_adapter("policy")
        else:
            if self._reference is None:
                self._reference = copy.deepcopy(model).requires_grad_(False).eval()
            if self._separate:
                self._value_model = copy.deepcopy(model) if reward is None else self._value_model_of(reward).to(where)
        self.model = model.eval()  # no dropout: the ratio of new to old must be 1 before the first step
        recompute = settings.gradient_checkpointing
        if recompute is None:
            recompute = self.device != "cpu" and not (self._separate and self.peft is not None)
        for trained in (model, self._value_model) if recompute else ():
            if trained is not None:
                recompute_layers(trained)

    def _add_value_adapter(self, config: Any, folder: Path, reward: Path | None) -> None:
        if reward is None:
            self.peft.add_adapter("value", config)
            return
        if not shares_weights(reward, folder):
            raise CaiError(f"value_init: the reward model {reward} is no LoRA on the policy's own weights")
        member = read_member(reward / read_about(reward)["members"][0])
        self.peft.add_adapter("value", member.lora(task_type="CAUSAL_LM"))
        member.load_into(self.peft, "value")
        self.value_head.weight.data.copy_(member.head)

    def _value_model_of(self, reward: Path) -> Any:
        about = read_about(reward)
        if about["base"]:
            raise CaiError(
                f"value_init: the reward model {reward} is a LoRA, and the policy has none; set lora_r in both"
            )
        model = classifier(reward / about["members"][0])
        self.value_head.weight.data.copy_(model.score.weight[:1])
        return model

    def shard(self) -> None:
        """Shard all weights by FSDP2, the frozen ones as well, once every adapter is on them. Before `trainable`."""
        sharding.shard(self.value_head, bfloat16=False)  # it computes in float32 everywhere
        modules = [self.model, self._reference]
        if self._value_model is not None:
            modules.append(_trunk(self._value_model))
        for module in modules:
            if module is not None:
                sharding.shard(module)

    def trainable(self) -> dict[str, Any]:
        """Every parameter that PPO changes, by name."""
        parameters = {f"value_head.{name}": p for name, p in self.value_head.named_parameters()}
        for name, p in self.model.named_parameters():
            if self.peft is None or ".policy." in name or ".value." in name:
                parameters[name] = p
        if self._value_model is not None:
            parameters |= {f"value_model.{name}": p for name, p in _trunk(self._value_model).named_parameters()}
        return parameters

    def evaluate(self, batch: Batch, with_entropy: bool) -> Evaluated:
        """The policy's and the value function's outputs on a batch, with gradients where they are enabled."""
        logits, hidden = response_logits(self.model, batch, self._temperature)
        values = self.values(batch) if self._separate else self._values(hidden)
        return Evaluated(chosen_logps(logits, batch.responses), values, entropy(logits) if with_entropy else None)

    def values(self, batch: Batch) -> Tensor:
        """The separate value function's estimate at each response token."""
        if self._value_model is not None:
            return self._values(self._hidden(_trunk(self._value_model), batch))
        with self.through("value"):
            return self._values(self._hidden(sharding.trunk_of(self.model), batch))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def reference_logps(self, batch: Batch) -> Tensor:
        """Log-probabilities of the response tokens under the policy that the KL is taken from."""
        with contextlib.nullcontext() if self.peft is None else self.peft.disable_adapter():
            model = self.model if self._reference is None else self._reference
            return chosen_logps(response_logits(model, batch, self._temperature)[0], batch.responses)

    @contextlib.contextmanager
    def through(self, adapter: str) -> Iterator[None]:
        """Let the trunk run through another adapter inside the block."""
        self.peft.set_adapter(adapter)
        try:
            yield
        finally:
            self.peft.set_adapter("policy")
            for name, parameter in self.peft.named_parameters():
                if f".{adapter}." in name:  # peft froze it on leaving; its gradient is still to come
                    parameter.requires_grad_(True)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The policy's `plain_weights` as they stand."""
        return plain_weights(self.model, "policy")

    def policy_weights(self, parameters: dict[str, Any]) -> dict[str, Tensor]:
        """The policy's part of the `trainable` parameters, sharded, whole in the first process; {} in the others.

        The names are those of the model with its LoRA; all processes call it.
        """
        within, weights = "" if self.peft is None else "base_model.model.", dict[str, Tensor]()
        for name, parameter in parameters.items():
            if name.startswith(("value_head.", "value_model.")) or ".value." in name:
                continue
            if (tensor := sharding.kept_by_first(parameter)) is not None:
                weights[within + name] = tensor
        return weights

    def merged(self) -> Any:
        """The trained policy as a plain model; the actor is used up."""
        if self.peft is None:
            return self.model
        if self._quantized:
            return merged_into_plain(self.peft, "policy", *self._start)
        return self.peft.merge_and_unload(adapter_names=["policy"])

    def _hidden(self, trunk: Any, batch: Batch) -> Tensor:
        """The states in which the response tokens are chosen, (sequences, response tokens, hidden)."""
        with distributed.autocast():
            out = trunk(
                input_ids=batch.ids, attention_mask=batch.attention, position_ids=batch.positions, use_cache=False
            )
        return out.last_hidden_state[:, batch.predicting]

    def _values(self, hidden: Tensor) -> Tensor:
        return self.value_head(hidden.float())[..., 0]


def _trunk(model: Any) -> Any:
    """A causal language model without its head."""
    return getattr(model, model.base_model_prefix)


def recompute_layers(model: Any) -> None:
    """Keep the inputs of a model's layers alone for the backward pass, which runs each layer again.

    transformers does so in training mode only, which has dropout. The layers must not run another adapter by then.
    """
    from torch.utils.checkpoint import checkpoint
    from transformers.modeling_layers import GradientCheckpointingLayer

    def recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*arguments, **named)
            return checkpoint(forward, *arguments, use_reentrant=False, **named)

        return call

    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = recomputed(layer.forward)


def response_logits(model: Any, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """(logits over `temperature`, hidden states) in which the response tokens are chosen; the head reads the latter.

    Both of shape (sequences, response tokens, …), by the model's own forward pass: between head and logits, Gemma 2 and
    4 have a soft-cap, Granite and Cohere a scale.
    """
    inputs: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        with distributed.autocast():
            logits = model(
                input_ids=batch.ids,
                attention_mask=batch.attention,
                position_ids=batch.positions,
                use_cache=False,
                logits_to_keep=batch.predicting,
            ).logits
    finally:
        hook.remove()
    return logits.float() / temperature, inputs[0]


def chosen_logps(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits) at `tokens`, without a copy of the logits more than its gradient needs."""
    return -cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)


def entropy(logits: Tensor) -> Tensor:
    """Of each distribution, in nats."""
    return logits.logsumexp(dim=-1) - (logits.softmax(dim=-1) * logits).sum(dim=-1)
