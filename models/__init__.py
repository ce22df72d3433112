"""Transformers, written to be read: BERT, GPT, ViT and MLP-Mixer are one stack of one block.

The idea in one line: `X @ X.T @ X` lets every token meet every other. Give each X a matrix of its own (queries, keys,
values), normalise the affinities with a softmax, and it is self-attention. Attention and an MLP, each with a skip
connection around it, make a block. Stack blocks, and what is left to choose is

| model          | input   | who may look at whom | positions mixed by | head                               |
|----------------|---------|----------------------|--------------------|------------------------------------|
| BERT           | words   | all real tokens      | attention          | the masked word, a class, a vector |
| GPT            | words   | the past             | attention          | the next word                      |
| ViT            | patches | all patches          | attention          | a class                            |
| MLP-Mixer      | patches | all patches          | an MLP             | a class                            |
| attention-only | words   | the past             | attention, no MLP  | the next word                      |

Read in this order: attention, mlp, block, masks, embed, heads, then bert, gpt, vit, mixer, attention_only.
Published weights come in through checkpoints.

Shapes stand in trailing comments, where they change, in these letters:

    b  batch              h  heads                     v  vocabulary
    t  query positions    k  width of one head         c  classes
    s  key positions      d  width of the stack        n  selected positions
    p  side of a patch    i  side of the image, in patches

Nothing here knows of ONNX, of serving, or of request formats.
"""

from models.attention_only import AttentionOnly
from models.bert import Bert
from models.config import BertConfig, GptConfig, MixerConfig, VectorLayer, VitConfig
from models.gpt import Gpt
from models.mixer import Mixer
from models.vit import Vit

__all__ = [
    "AttentionOnly",
    "Bert",
    "BertConfig",
    "Gpt",
    "GptConfig",
    "Mixer",
    "MixerConfig",
    "VectorLayer",
    "Vit",
    "VitConfig",
]
