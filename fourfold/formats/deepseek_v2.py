"""DeepSeek-V2's format: V2, V2-Lite (no query latent), V2.5 and Coder-V2; tensors as in `latent`.

Softmax routing, plain (`greedy`, Lite) or within the best groups (`group_limited_greedy`), without a bias. The weights of the
chosen are not renormalised: the code that came with the weights would then leave out `routed_scaling_factor`, other readers
ignore the field, and no published member asks for it.
"""

from typing import ClassVar

from fourfold.formats.latent import LatentAdapter


class DeepseekV2Adapter(LatentAdapter):
    model_type = "deepseek_v2"
    architecture = "DeepseekV2ForCausalLM"
    choices: ClassVar = {
        "topk_method": ("greedy", "group_limited_greedy"),
        "scoring_func": ("softmax",),
        "norm_topk_prob": (False,),
    }
    defaults: ClassVar = {"aux_loss_alpha": 1e-3, "bias_update_speed": 0.0}


ADAPTER = DeepseekV2Adapter()
