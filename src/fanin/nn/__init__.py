"""Transformer blocks to read and to run: attention, encoders, language models.

They start through fanin's plans, take masks of one polarity (bool, True = attend), have any
leading axes, and give zeros where a query may attend to nothing.
"""

from __future__ import annotations

from ._attention import KVCache as KVCache
from ._attention import MultiHeadAttention as MultiHeadAttention
from ._base import Block as Block
from ._basic import Embedding as Embedding
from ._basic import LayerNorm as LayerNorm
from ._basic import Linear as Linear
from ._basic import RMSNorm as RMSNorm
from ._convert import from_torch as from_torch
from ._convert import from_transformers as from_transformers
from ._convert import to_torch as to_torch
from ._dropout import Dropout as Dropout
from ._dropout import dropout as dropout
from ._dropout import name_dropouts_ as name_dropouts_
from ._feedforward import FeedForward as FeedForward
from ._feedforward import SwiGLU as SwiGLU
from ._functional import attention as attention
from ._functional import call as call
from ._functional import cross_entropy as cross_entropy
from ._functional import silu as silu
from ._functional import softmax as softmax
from ._language import TransformerLM as TransformerLM
from ._onnx import export_onnx as export_onnx
from ._positions import LearnedPositions as LearnedPositions
from ._positions import RotaryEmbedding as RotaryEmbedding
from ._positions import SinusoidalPositions as SinusoidalPositions
from ._transformer import TransformerBlock as TransformerBlock
from ._transformer import TransformerEncoder as TransformerEncoder
