"""Networks of value-based agents: torso -> streams -> head."""

from nap_rl.nn.activations import ACTIVATIONS
from nap_rl.nn.embedding import QuantileEmbedding
from nap_rl.nn.heads import Categorical, ExpectedValue, Head, HeadLoss, ImplicitQuantile, Quantile, Target
from nap_rl.nn.noisy import LayerNoise, NoisyLinear
from nap_rl.nn.q_network import QNetwork
from nap_rl.nn.spec import NetworkSpec
from nap_rl.nn.spectral import FIRST_ITERATIONS, SpectralConv2d, iterate_spectral_norms
from nap_rl.nn.streams import InjectedStream, Streams
from nap_rl.nn.torsos import DataEfficientTorso, ImpalaTorso, MlpTorso, NatureTorso

__all__ = [
    "ACTIVATIONS",
    "Categorical",
    "DataEfficientTorso",
    "ExpectedValue",
    "FIRST_ITERATIONS",
    "Head",
    "HeadLoss",
    "ImpalaTorso",
    "ImplicitQuantile",
    "InjectedStream",
    "LayerNoise",
    "MlpTorso",
    "NatureTorso",
    "NetworkSpec",
    "NoisyLinear",
    "QNetwork",
    "Quantile",
    "QuantileEmbedding",
    "SpectralConv2d",
    "Streams",
    "Target",
    "iterate_spectral_norms",
]
