"""The gymnasium ids of our environments: importing this makes `gymnasium.make("nap_rl/Catch-v0")` work."""

from __future__ import annotations

import gymnasium

CATCH_ID = "nap_rl/Catch-v0"
LABEL_MDP_ID = "nap_rl/LabelMdp-v0"
MINATAR_ID = "nap_rl/MinAtar-v0"
RANDOM_MDP_ID = "nap_rl/RandomMdp-v0"

ENTRY_POINTS = {
    CATCH_ID: "nap_rl.envs.catch:Catch",
    LABEL_MDP_ID: "nap_rl.envs.label_mdp:LabelMdp",
    MINATAR_ID: "nap_rl.envs.minatar:MinAtar",
    RANDOM_MDP_ID: "nap_rl.envs.random_mdp:RandomMdp",
}

for name, entry_point in ENTRY_POINTS.items():
    if name not in gymnasium.registry:
        gymnasium.register(name, entry_point=entry_point)
