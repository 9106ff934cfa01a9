"""The training configuration of each target, equal in meaning; keys are the framework's own.

In: a ``HandoverPlan``. Out: plain data, which ``write`` puts into YAML and JSON files. Paths are relative to the folder that is
handed over.
"""

from __future__ import annotations

from typing import Any

from pipeline.handover.plan import HandoverPlan

ZERO: dict[str, Any] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
}


def _common(plan: HandoverPlan) -> dict[str, Any]:
    """What transformers' TrainingArguments call it, and TRL, LLaMA-Factory and ms-swift with them."""
    t, profile = plan.profile.training, plan.profile
    found = {
        "per_device_train_batch_size": plan.per_device,
        "per_device_eval_batch_size": t.per_device_eval_batch_size or t.per_device_train_batch_size,
        "gradient_accumulation_steps": plan.accumulation,
        "max_steps": plan.steps,
        "learning_rate": t.learning_rate,
        "lr_scheduler_type": t.lr_scheduler_type,
        "warmup_steps": plan.warmup,
        "weight_decay": t.weight_decay,
        "max_grad_norm": t.max_grad_norm,
        "optim": t.optim,
        "gradient_checkpointing": t.gradient_checkpointing,
        "bf16": plan.in_bfloat16,
        "seed": profile.seed,
        "data_seed": profile.seed,
        "eval_strategy": "steps",
        "eval_steps": t.eval_steps,
        "save_steps": t.save_steps,
        "save_total_limit": t.save_total_limit,
        "logging_steps": t.logging_steps,
        "report_to": "none",
        "output_dir": "out",
    }
    return found | ({"neftune_noise_alpha": t.neftune_noise_alpha} if t.neftune_noise_alpha else {})


def _revision(plan: HandoverPlan, key: str) -> dict[str, str]:
    """Which version of a hub's model, where the profile names one."""
    revision = plan.profile.model.revision
    return {key: revision} if revision else {}


def trl(plan: HandoverPlan) -> dict[str, Any]:
    """``trl sft --config train.yaml``: parquet files with input_ids and labels, which SFTTrainer takes as they are."""
    lora, profile = plan.profile.lora, plan.profile
    found = _common(plan) | {
        "model_name_or_path": plan.base,
        "dtype": "bfloat16" if plan.in_bfloat16 else "float32",
        "dataset_name": "data",
        "dataset_train_split": "train",
        "dataset_test_split": "validation",
        "max_length": profile.length_limit,
        "packing": False,
    }
    if plan.adapter:
        found |= {"use_peft": True, "lora_r": lora.rank, "lora_alpha": lora.scale_alpha, "lora_dropout": lora.dropout}
        found |= {"lora_target_modules": lora.target_modules, "use_rslora": plan.rslora, "use_dora": plan.dora}
    if plan.in_4bit:
        found |= {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}
    return found | _revision(plan, "model_revision")


def llama_factory(plan: HandoverPlan) -> dict[str, Any]:
    """``llamafactory-cli train train.yaml``: a dataset that is tokenised already (tokenized_path)."""
    lora, profile = plan.profile.lora, plan.profile
    found = _common(plan) | {
        "model_name_or_path": plan.base,
        "stage": "sft",
        "do_train": True,
        "do_eval": True,
        "template": "qwen3",
        "dataset": "train",  # it wants a name, and reads what is at tokenized_path
        "eval_dataset": "validation",
        "dataset_dir": ".",
        "tokenized_path": "tokenized",
        "cutoff_len": profile.length_limit,
        "packing": False,
        "finetuning_type": "lora" if plan.adapter else "full",
    }
    if plan.adapter:
        found |= {"lora_rank": lora.rank, "lora_alpha": lora.scale_alpha, "lora_dropout": lora.dropout}
        found |= {"lora_target": ",".join(lora.target_modules), "use_rslora": plan.rslora, "use_dora": plan.dora}
        found |= {"loraplus_lr_ratio": lora.plus_lr_ratio} if lora.plus_lr_ratio else {}
    if plan.in_4bit:
        found |= {"quantization_bit": 4, "quantization_method": "bnb", "quantization_type": "nf4"}
    return found | _revision(plan, "model_revision")


def ms_swift(plan: HandoverPlan) -> dict[str, Any]:
    """``swift sft train.yaml``: rendered text in two parts, prompt and answer, to which no chat template is put.

    The template is named only for its end token; one without a thinking mode, as ms-swift would else take the loss from an empty
    think block that a row wants to teach (after /no_think).
    """
    lora, profile = plan.profile.lora, plan.profile
    found = _common(plan) | {
        "adam_beta2": 0.999,  # its own default is 0.95; here and in the other three it is torch's
        "model": plan.base,
        "use_hf": profile.model.source != "modelscope",  # its own default is ModelScope
        "model_type": "qwen3",
        "template": "qwen3_nothinking",
        "use_chat_template": False,
        "torch_dtype": "bfloat16" if plan.in_bfloat16 else "float32",
        "dataset": ["train.jsonl"],
        "val_dataset": ["validation.jsonl"],
        "max_length": profile.length_limit,
        "tuner_type": "lora" if plan.adapter else "full",
    }
    if plan.adapter:
        found |= {"lora_rank": lora.rank, "lora_alpha": lora.scale_alpha, "lora_dropout": lora.dropout}
        found |= {"target_modules": lora.target_modules, "use_rslora": plan.rslora, "use_dora": plan.dora}
        found |= {"lorap_lr_ratio": lora.plus_lr_ratio} if lora.plus_lr_ratio else {}
    if plan.in_4bit:
        found |= {"quant_method": "bnb", "quant_bits": 4, "bnb_4bit_quant_type": "nf4"}
    return found | _revision(plan, "model_revision")


def axolotl(plan: HandoverPlan) -> dict[str, Any]:
    """``axolotl train train.yaml``: parquet files with input_ids, attention_mask and labels, which it takes as they are."""
    lora, profile, t = plan.profile.lora, plan.profile, plan.profile.training
    common = _common(plan)
    same = (
        "gradient_accumulation_steps",
        "max_steps",
        "learning_rate",
        "warmup_steps",
        "weight_decay",
        "max_grad_norm",
    )
    also = (
        "gradient_checkpointing",
        "seed",
        "eval_steps",
        "save_steps",
        "save_total_limit",
        "logging_steps",
        "output_dir",
    )
    found = {key: common[key] for key in (*same, *also)} | {
        "base_model": plan.base,
        "datasets": [{"path": "data/train.parquet", "ds_type": "parquet", "split": "train"}],
        "test_datasets": [{"path": "data/validation.parquet", "ds_type": "parquet", "split": "train"}],
        "sequence_len": profile.length_limit,
        "sample_packing": False,
        "shuffle_merged_datasets": False,
        "dataset_prepared_path": "prepared",
        "val_set_size": 0,
        "micro_batch_size": plan.per_device,
        "eval_batch_size": common["per_device_eval_batch_size"],
        "num_epochs": 1,
        "optimizer": t.optim,
        "lr_scheduler": t.lr_scheduler_type,
        "bf16": plan.in_bfloat16,
    }
    if plan.adapter:
        found |= {"adapter": "qlora" if plan.in_4bit else "lora", "load_in_4bit": plan.in_4bit, "lora_r": lora.rank}
        found |= {"lora_alpha": lora.scale_alpha, "lora_dropout": lora.dropout}
        found |= {"lora_target_modules": lora.target_modules}
        found |= {"peft_use_rslora": True} if plan.rslora else {}
        found |= {"peft_use_dora": True} if plan.dora else {}
        found |= {"loraplus_lr_ratio": lora.plus_lr_ratio} if lora.plus_lr_ratio else {}
    if t.neftune_noise_alpha:
        found["neftune_noise_alpha"] = t.neftune_noise_alpha
    return found | _revision(plan, "revision_of_model")


def deepspeed(stage: int) -> dict[str, Any]:
    """DeepSpeed's ZeRO 2 or 3; what is "auto" comes from the training configuration."""
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if stage == 3:
        zero |= {"stage3_gather_16bit_weights_on_model_save": True}
    return ZERO | {"zero_optimization": zero}


def fsdp2(plan: HandoverPlan) -> dict[str, Any]:
    """accelerate's configuration of torch's fully_shard."""
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP",
        "num_machines": 1,
        "machine_rank": 0,
        "num_processes": plan.gpus,
        "main_training_function": "main",
        "rdzv_backend": "static",
        "same_network": True,
        "mixed_precision": "bf16" if plan.in_bfloat16 else "no",
        "use_cpu": False,
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_reshard_after_forward": True,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_transformer_layer_cls_to_wrap": "Qwen3DecoderLayer",
            "fsdp_state_dict_type": "FULL_STATE_DICT",
            "fsdp_offload_params": False,
            "fsdp_cpu_ram_efficient_loading": True,
        },
    }


# axolotl's own words for the same, put over its configuration.
AXOLOTL_FSDP2: dict[str, Any] = {
    "fsdp_version": 2,
    "fsdp_config": {
        "reshard_after_forward": True,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": "Qwen3DecoderLayer",
        "state_dict_type": "FULL_STATE_DICT",
        "offload_params": False,
        "cpu_ram_efficient_loading": True,
    },
}


def commands(target: str, plan: HandoverPlan) -> dict[str, str]:
    """How to start the training from the folder that is handed over: a title → a command line."""
    gpus = plan.gpus
    hub = "USE_MODELSCOPE_HUB=1 " if target == "llama-factory" and plan.profile.model.source == "modelscope" else ""
    several = {
        "trl": {
            "one GPU": "trl sft --config train.yaml",
            "ZeRO-2": f"trl sft --config train.yaml --accelerate_config zero2 --num_processes {gpus}",
            "ZeRO-3": f"trl sft --config train.yaml --accelerate_config zero3 --num_processes {gpus}",
            "FSDP2": f"trl sft --config train.yaml --accelerate_config fsdp2.yaml --num_processes {gpus}",
        },
        "llama-factory": {
            "one GPU": "llamafactory-cli train train.yaml",
            "ZeRO-2": f"FORCE_TORCHRUN=1 NPROC_PER_NODE={gpus} llamafactory-cli train train.yaml deepspeed=zero2.json",
            "ZeRO-3": f"FORCE_TORCHRUN=1 NPROC_PER_NODE={gpus} llamafactory-cli train train.yaml deepspeed=zero3.json",
            "FSDP2": "accelerate launch --config_file fsdp2.yaml -m llamafactory.launcher train.yaml",
        },
        "ms-swift": {
            "one GPU": "swift sft train.yaml",
            "ZeRO-2": f"NPROC_PER_NODE={gpus} swift sft train.yaml --deepspeed zero2.json",
            "ZeRO-3": f"NPROC_PER_NODE={gpus} swift sft train.yaml --deepspeed zero3.json",
            "FSDP2": f"NPROC_PER_NODE={gpus} swift sft train.yaml --fsdp fsdp2",
        },
        "axolotl": {
            "one GPU": "axolotl train train.yaml",
            "ZeRO-2": f"axolotl train train.yaml --deepspeed zero2.json --launcher torchrun -- --nproc_per_node={gpus}",
            "ZeRO-3": f"axolotl train train.yaml --deepspeed zero3.json --launcher torchrun -- --nproc_per_node={gpus}",
            "FSDP2": f"axolotl train train_fsdp2.yaml --launcher torchrun -- --nproc_per_node={gpus}",
        },
    }[target]
    return {title: hub + line for title, line in several.items() if (title == "one GPU") == (gpus == 1)}
