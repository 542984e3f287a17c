"""Prints, as JSON, what torchtitan's own classes make of a plan's module: `python torchtitan_rates.py growthlaw_stages.py`.

Run in an environment of torchtitan, which does not install beside the project's own packages.
"""

import importlib.util
import json
import sys

import torch

specification = importlib.util.spec_from_file_location("growthlaw_stages", sys.argv[1])
module = importlib.util.module_from_spec(specification)
specification.loader.exec_module(module)
told = {}
for stage in ("base", "grown"):
    config = getattr(module, stage)()
    with torch.device("meta"):
        model = config.model_spec.model.build()
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=config.optimizer.param_groups[0].optimizer_kwargs["lr"])
    scheduler = config.lr_scheduler.build(optimizers=[optimizer], training_steps=config.training.steps)
    rates = []
    for _ in range(config.training.steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    told[stage] = {
        "num_layers": len(config.model_spec.model.layers),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "rates": rates,
    }
print(json.dumps(told))
