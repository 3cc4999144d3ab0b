"""Engram's share of the sparse parameters, from none to half, their total fixed; and the same table added on top (preset `micro`).

python experiments/engram/run.py [--seeds 0 1] [--tokens N] [--only ARM ...]

The sparse parameters (routed experts and tables) are those of 20 experts in each of three layers: a share of them goes to the
tables, and there are so many experts fewer, as in 2601.07372, section 3. A token takes 4 experts in every arm. Without Engram its
projections are missing too; three more shared experts, which every token takes, make up for them. Without indexer and multi-token
prediction.
"""

from typing import TYPE_CHECKING, Any

from experiments.lib.runs import curve, forget, last_score, micro_recipe, one_stage, settings_of, trained
from experiments.lib.sizes import TOLERANCE, nearest, sizes
from experiments.lib.stats import over_seeds, paired, said
from experiments.lib.study import Found, Study, Unit
from fourfold.errors import ConfigError
from fourfold.training.recipes import Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPERTS = 20  # in each layer, when all sparse parameters are experts
SHARED_INSTEAD = 4  # shared experts of an arm without Engram
ARMS = {"share-0": 0, "share-25": 25, "share-50": 50, "share-10": 10, "share-40": 40, "added-25": 25}  # per cent


class EngramShare(Study):
    name, tokens, seeds = "engram", 400_000, (0, 1)
    arms = tuple(ARMS)

    def rank(self, arm: str, seed: int) -> int:
        return 11 + seed

    def model(self, arm: str) -> dict[str, Any]:
        """Changed fields of `micro`. Raises ConfigError when the sizes are not as promised."""
        bare: dict[str, Any] = {"selection": None, "num_nextn_predict_layers": 0}
        base = sizes(_config(bare | {"n_routed_experts": EXPERTS}))
        if not (share := ARMS[arm]):
            model = bare | {"memory": None, "n_routed_experts": EXPERTS, "n_shared_experts": SHARED_INSTEAD}
        else:
            wanted = round(share / 100 * base["routed_experts"])
            rows = nearest(lambda r: sizes(_config(bare | {"engram_vocab_size": [r, r]}))["engram_tables"], wanted)
            experts = EXPERTS if arm.startswith("added") else round(EXPERTS * (1 - share / 100))
            model = bare | {"n_routed_experts": experts, "engram_vocab_size": [rows, rows]}
        found = sizes(_config(model))
        if abs(found["active"] / base["active"] - 1) > TOLERANCE:
            raise ConfigError(f"{arm}: has {found['active']:,} active parameters, not {base['active']:,}")
        return model

    def recipe(self, arm: str, seed: int, tokens: int) -> Recipe:
        return micro_recipe(f"engram-{arm}", seed, one_stage(tokens), self.model(arm))

    def settings(self, arm: str, seed: int, tokens: int) -> dict:
        return settings_of(self.recipe(arm, seed, tokens))

    def measure(self, unit: Unit, tokens: int) -> dict:
        recipe = self.recipe(unit.arm, unit.seed, tokens)
        model = trained(recipe, unit.folder)
        config = recipe.model_config()
        rows = list(config.memory.engram_vocab_size) if config.memory else []
        held = {"sizes": sizes(config), "experts": config.experts.n_routed_experts, "rows_per_head": rows}
        result = held | {"held_out": last_score(model)} | curve(unit.folder)
        forget(unit.folder)
        return result

    def merge(self, found: Found, tokens: int) -> dict:
        rows = {}
        base = _last(found.get("share-0", {}))
        for arm in sorted((arm for arm in ARMS if arm in found), key=lambda arm: (arm.startswith("added"), ARMS[arm])):
            first = next(iter(found[arm].values()))
            held = first["sizes"]
            rows[arm] = {
                "sizes": held, "experts": first["experts"], "rows_per_head": first["rows_per_head"],
                "share": held["engram_tables"] / (held["engram_tables"] + held["routed_experts"]),
                "bits_per_byte": over_seeds(_last(found[arm])),
                "difference_to_none": paired(_last(found[arm]), base),
                "curve": {seed: unit["points"] for seed, unit in found[arm].items()},
                "tokens_per_second": {seed: unit["tokens_per_second"] for seed, unit in found[arm].items()},
            }  # fmt: skip
        return {"arms": rows}

    def table(self, result: dict) -> str:
        lines = [
            "| arm | experts | tables | share | active | all | bits per byte | against none |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for arm, row in result["arms"].items():
            held = row["sizes"]
            difference = "-" if arm == "share-0" else said(row["difference_to_none"], sign=True)
            lines.append(
                f"| {arm} | {row['experts']} | {held['engram_tables']:,} | {row['share']:.0%} | {held['active']:,} "
                f"| {held['total']:,} | {said(row['bits_per_byte'])} | {difference} |"
            )
        return "\n".join(lines)

    def draw(self, result: dict) -> "Figure":
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for kind, colour, label in (("share", "tab:blue", "same sparse parameters in all"), ("added", "tab:orange", "table added")):
            rows = [row for arm, row in result["arms"].items() if arm.startswith(kind)]
            if not rows:
                continue
            shares, means = [100 * row["share"] for row in rows], [row["bits_per_byte"]["mean"] for row in rows]
            line = "o-" if kind == "share" else "s"
            axes.plot(shares, means, line, color=colour, label=label)
            for share, row in zip(shares, rows, strict=True):
                values = row["bits_per_byte"]["values"]
                axes.plot([share] * len(values), values, ".", color=colour, alpha=0.5)
        axes.set_xlabel("Engram's share of the sparse parameters, %")
        axes.set_ylabel("held-out bits per byte (small dots: seeds)")
        axes.grid(alpha=0.3)
        axes.legend()
        return figure


def _config(model: dict[str, Any]):
    return micro_recipe("", 0, one_stage(1), model).model_config()


def _last(units: dict[int, dict]) -> dict[int, float]:
    return {seed: unit["held_out"]["sparse"] for seed, unit in units.items()}


if __name__ == "__main__":
    EngramShare().main()
