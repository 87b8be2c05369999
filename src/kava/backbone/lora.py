"""LoRA on the backbone. Of the embedding only the rows of special tokens are trained, if there are any."""

from typing import Any

from kava.backbone.families import Family
from kava.backbone.tokens import SpecialTokens
from kava.config import LoraConfig
from kava.errors import ConfigError


def add_lora(lm: Any, family: Family, special: SpecialTokens | None, lora: LoraConfig) -> Any:
    """The model with LoRA, a PeftModel. The projection is not part of it and is trained in full."""
    import peft

    names = list(lora.target_modules or family.linear)
    present = {name.rsplit(".", 1)[-1] for name, _ in lm.named_modules()}
    missing = [name for name in names if name not in present]
    if missing:
        raise ConfigError(
            f"lora.target_modules: the model has no layer named {', '.join(missing)}",
            "its linear layers: " + ", ".join(family.linear),
        )
    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=names,
        fan_in_fan_out=family.conv1d,
        trainable_token_indices=None if special is None else {family.embedding: special.ids},
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(lm, config)
