"""Objectives: pure functions from posterior draws to named terms, one paper per file."""

from kerasvae.objectives.adversarial import AdversarialAutoencoder
from kerasvae.objectives.base import Draws, Objective, Terms
from kerasvae.objectives.capacity import Capacity
from kerasvae.objectives.commitment import Commitment
from kerasvae.objectives.dip_vae import DIPVAE
from kerasvae.objectives.elbo import ELBO
from kerasvae.objectives.factor_vae import FactorVAE
from kerasvae.objectives.free_bits import FreeBits
from kerasvae.objectives.independence import WithAdversary, WithHSIC
from kerasvae.objectives.iwae import IWAE, DReG
from kerasvae.objectives.miwae import MIWAE
from kerasvae.objectives.mmd import WAEMMD, InfoVAE
from kerasvae.objectives.monte_carlo import MonteCarloELBO
from kerasvae.objectives.rae import RAE, Reconstruction
from kerasvae.objectives.ssim import WithMSSSIM
from kerasvae.objectives.sticking import StickingTheLanding
from kerasvae.objectives.total_correlation import BetaTCVAE
from kerasvae.objectives.wrapper import Wrapper

__all__ = [
    "DIPVAE",
    "ELBO",
    "IWAE",
    "MIWAE",
    "RAE",
    "WAEMMD",
    "AdversarialAutoencoder",
    "BetaTCVAE",
    "Capacity",
    "Commitment",
    "DReG",
    "Draws",
    "FactorVAE",
    "FreeBits",
    "InfoVAE",
    "MonteCarloELBO",
    "Objective",
    "Reconstruction",
    "StickingTheLanding",
    "Terms",
    "WithAdversary",
    "WithHSIC",
    "WithMSSSIM",
    "Wrapper",
]
