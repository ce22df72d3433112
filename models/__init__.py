"""Transformers, written to be read: BERT, GPT, ViT and MLP-Mixer are one stack of one block.

The idea in one line: `X @ X.T @ X` lets every token meet every other. Give each X a matrix of its own (queries, keys,
values) and normalise the affinities with a softmax: this is self-attention. Attention and an MLP, each with a skip
connection around it, make a block. The models are stacks of blocks and differ in these choices:

| model          | input   | each one attends to | positions mixed by | head                                |
|----------------|---------|---------------------|--------------------|-------------------------------------|
| BERT           | tokens  | all real tokens     | attention          | the masked token, a class, a vector |
| GPT            | tokens  | earlier tokens      | attention          | the next token                      |
| ViT            | patches | all patches         | attention          | a class                             |
| MLP-Mixer      | patches | all patches         | an MLP             | a class                             |
| attention-only | tokens  | earlier tokens      | attention, no MLP  | the next token                      |

Read in this order: attention, mlp, block, stack, masks, embed, heads, then bert, gpt, vit, mixer, attention_only.
`checkpoints` loads published weights.

Trailing comments give shapes where they change, in these letters:

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
